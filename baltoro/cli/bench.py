"""Commands that measure: kernels, layers, experts on disk, policies."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baltoro.cli.app import app
from baltoro.cli.options import Threads, WeightFormat
from baltoro.sizes import parse_bytes

if TYPE_CHECKING:
    from baltoro.model.whole import Machine


bench = typer.Typer(help="Measure this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")


@bench.command("kernels")
def bench_kernels(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Whose shapes; a config is enough.")
    ] = "kimi-k2-instruct",
    format: Annotated[list[WeightFormat] | None, typer.Option(help="Repeatable. [default: all four]")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=2, help="Prompt lengths; repeatable. [default: 512]")] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Of attention's decode; repeatable. [default: 4096 and 32768]")
    ] = None,
    experts: Annotated[int, typer.Option(min=8, help="How many experts the layer has here: 48 are 1 to 4 GB.")] = 48,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of repetitions a row; the best one counts.")] = 2.0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row, for scripts.")] = False,
) -> None:
    """Run the experts and the attention of one layer of MODEL with random numbers, beside this machine's roofs.

    decode: one token, in GB/s of weights; prefill: a prompt's share, in GFLOP/s. mla_decode: attention of one token to
    --context cached ones; mla_prefill: of a prompt to itself.
    """
    import torch

    from baltoro.config import ModelConfig
    from baltoro.kernels import measure, measure_attention
    from baltoro.kernels.formats import FORMATS, Format
    from baltoro.kernels.targets import chosen_target

    if threads is not None:
        torch.set_num_threads(threads)
    wanted: tuple[Format, ...] = tuple(FORMATS[list(WeightFormat).index(each)] for each in format or WeightFormat)
    config, prompts = ModelConfig.open(model), tuple(tokens or (512,))
    of_experts = measure.rows(config, wanted, experts=experts, prefill=prompts, seconds=seconds)
    of_attention = measure_attention.rows(
        config, contexts=tuple(context or (4096, 32768)), prompts=prompts, seconds=seconds, target=chosen_target()
    )
    for row in itertools.chain(of_experts, of_attention):
        typer.echo(json.dumps(asdict(row)) if as_json else measure.line(row))


@bench.command("layers")
def bench_layers(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Whose shapes; a config is enough.")
    ] = "kimi-k2-instruct",
    format: Annotated[list[WeightFormat] | None, typer.Option(help="Repeatable. [default: fp8 and int4]")] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens that a decoded one attends to; repeatable. [default: 4096]")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=2, help="Sequences decoded together; repeatable.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=2, help="Prompt lengths; repeatable. [default: 512]")] = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GB for weights and cache. [default: half of what is free]")
    ] = None,
    bandwidth: Annotated[
        list[float] | None, typer.Option(min=1, help="GB/s that a described machine reads; repeatable, with --ram.")
    ] = None,
    ram: Annotated[list[float] | None, typer.Option(min=1, help="GB of RAM of that machine.")] = None,
    cores: Annotated[
        list[int] | None, typer.Option(min=1, help="Its cores, each as fast as one of this machine's: for prefill.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of repetitions a row; the best one counts.")] = 2.0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row, for scripts.")] = False,
) -> None:
    """Say how fast MODEL would be here, without its checkpoint: two of its layers at real size, random weights.

    A dense layer, a mixture with as many experts as --memory holds, and the head run the model's own code: decode of
    one token and of batches, prefill. Then all layers, here and on described machines. Decode takes the bytes that a
    step reads / (GB/s of the machine * the fraction of the reading roof measured here). Prefill takes its operations /
    (cores * a core's peak here * the fraction of it measured here). Whether RAM holds the model is said beside it.
    """
    import torch

    from baltoro.config import ModelConfig
    from baltoro.kernels.formats import FORMATS, Format
    from baltoro.model import measure, rows, slices, whole

    machines = whole.DESCRIBED if not bandwidth else described(bandwidth, ram or [], cores or [])
    if not bandwidth and (ram or cores):
        raise typer.BadParameter("--ram and --cores describe a machine together with --bandwidth")
    if threads is not None:
        torch.set_num_threads(threads)
    config = ModelConfig.open(model)
    wanted = measure.Wanted(
        contexts=tuple(context or (min(4096, config.max_position_embeddings),)),
        batches=tuple(batch or ()),
        prompts=tuple(tokens or (min(512, config.max_position_embeddings),)),
        memory=None if memory is None else int(memory * 1e9),
        seconds=seconds,
    )
    names: tuple[Format, ...] = tuple(
        FORMATS[list(WeightFormat).index(each)] for each in format or (WeightFormat.fp8, WeightFormat.int4)
    )
    for name in names:
        model_bytes = slices.nbytes(config, name, experts=config.n_routed_experts)
        for found in measure.layers(config, name, wanted, progress=lambda text: typer.echo(text, err=True)):
            places = (whole.this_machine(found), *machines)
            results = [whole.whole(config, found, place, model_bytes=model_bytes) for place in places]
            if as_json:
                for row in (*found, *results):
                    typer.echo(json.dumps(asdict(row)))
                continue
            typer.echo(rows.title(found))
            for text in (*map(rows.line, found), *map(whole.line, results)):
                typer.echo(f"  {text}")


@bench.command("stream")
def bench_stream(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A packed checkpoint; without it one of MODEL is made.")
    ] = None,
    make: Annotated[bool, typer.Option("--make", help="Make DIR where it is not there.")] = False,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Whose layers are made, and of which the whole is told.")
    ] = "kimi-k2-instruct",
    place: Annotated[
        Path | None,
        typer.Option("--directory", help="Where what is made is kept for the next time. [default: ~/.cache/baltoro]"),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Mixture layers that are made, behind a dense one. [default: 4]")
    ] = None,
    experts: Annotated[int | None, typer.Option(min=1, help="Of each. [default: a quarter of MODEL's]")] = None,
    format: Annotated[WeightFormat | None, typer.Option(help="What is made. [default: int4]")] = None,
    expert_memory: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=parse_bytes, help="For experts, as 12GiB. [default: a third of them]"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Of the prompt.")] = 512,
    answer: Annotated[int, typer.Option(min=1, help="Tokens decoded behind it.")] = 64,
    resident: Annotated[bool, typer.Option("--resident", help="Keep everything in memory.")] = False,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row, for scripts.")] = False,
) -> None:
    """Run a model whose experts stay on disk, beside the speed of the disk and of computing.

    Without DIR a packed checkpoint of random weights is made: a dense layer of MODEL and --layers mixtures at real
    size. Tokens are made up, and so experts are chosen all alike. The limit is 1 / max(missed bytes / the disk's speed,
    seconds of computing). Then all of MODEL, here and on described machines, with made-up choices of experts.
    """
    import torch

    from baltoro.config import ModelConfig
    from baltoro.model.streaming import rows, run, whole
    from baltoro.weights.quantize.invent import invent

    def say(text: str) -> None:
        typer.echo(text, err=True)

    if threads is not None:
        torch.set_num_threads(threads)
    if resident and expert_memory is not None:
        raise typer.BadParameter("with --resident no expert is streamed", param_hint="--expert-memory")
    if directory is not None and place is not None:
        raise typer.BadParameter("DIR says where, already", param_hint="--directory")
    config = ModelConfig.open(model)
    if directory is None or make:
        short = run.shortened(config, mixtures=layers or 4, experts=experts)
        kept_in = (format or WeightFormat.int4).value
        directory = directory or run.place_of(place, model, kept_in, short)
        try:
            made = invent(short, kept_in, directory)
        except KeyboardInterrupt:
            say("stopped; nothing was kept")
            raise typer.Exit(130) from None
        say(f"{directory} was {'made' if made else 'there already'} and is kept: delete it when done")
    elif any(given is not None for given in (layers, experts, format)):
        raise typer.BadParameter("DIR is as it is; --make makes it", param_hint="--layers, --experts and --format")
    found = run.measure(
        directory, budget_bytes=expert_memory, tokens=tokens, answer=answer, resident=resident, progress=say
    )
    results = whole.everywhere(config, found)
    if not as_json:
        typer.echo(rows.summary(found.rows[0]))
    for row in (*found.rows, *results):
        if as_json:
            typer.echo(json.dumps(asdict(row)))
        else:
            typer.echo(f"  {rows.line(row) if isinstance(row, rows.Row) else whole.line(row)}")


@bench.command("trace")
def bench_trace(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A recorded routing trace.")] = None,
    synthetic: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Instead of FILE: made-up choices for this model's experts.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Memory for experts: bytes (64GiB) or their number; several with commas.")
    ] = "64GiB,256GiB",
    policy: Annotated[
        str, typer.Option(help="Several with commas; belady is the bound that none can pass.")
    ] = "lru,lfu,pinned-lru,pinned-lfu,belady",
    tokens: Annotated[int, typer.Option(min=1, help="Of the synthetic trace.")] = 1000,
    skew: Annotated[float, typer.Option(min=0, help="Weight of the expert of rank r: 1 / r ** skew.")] = 0.7,
    sticky: Annotated[float, typer.Option(min=0, max=1, help="How likely an expert is kept for the next token.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same trace.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row, for scripts.")] = False,
) -> None:
    """Replay which experts were chosen against a budget of memory: how often would one have to come from disk?

    A policy says which expert gives up its place. Every first use counts as a miss.
    """
    from baltoro.config import ModelConfig
    from baltoro.weights import display, eviction, simulate, trace

    if (file is None) == (synthetic is None):
        raise typer.BadParameter("either a FILE or --synthetic MODEL", param_hint="FILE")
    names = [name.strip() for name in policy.split(",")]
    for name in names:
        if name != simulate.BOUND:
            eviction.make(name, 1)  # an unknown name is told before the work
    if synthetic is not None:
        header = trace.Header.of(ModelConfig.open(synthetic), synthetic)
        records, reader = trace.synthetic(header, tokens=tokens, skew=skew, sticky=sticky, seed=seed), None
    else:
        assert file is not None
        reader = trace.Reader(file)
        header, records = reader.header, iter(reader)
    rooms = list(dict.fromkeys(simulate.room(each, header) for each in budget.split(",")))
    with display.Counted(f"reading {file or 'made-up choices'}"):
        uses = simulate.Uses.of(header, records)
    if reader is not None and reader.note:
        typer.echo(reader.note, err=True)
    typer.echo(f"{header.model}: {uses.tokens:,} tokens, {len(uses.needed):,} uses of experts", err=True)
    for count in rooms:
        for name in names:
            with display.Counted(f"{name}, {count:,} experts") as shown:
                result = simulate.run(uses, name, count, progress=shown.update)
            typer.echo(json.dumps(asdict(result)) if as_json else simulate.line(result))


def described(bandwidth: list[float], ram: list[float], cores: list[int]) -> tuple[Machine, ...]:
    """Machines of the command line: the nth --ram and --cores go with the nth --bandwidth."""
    from baltoro.model.whole import Machine

    if len(ram) != len(bandwidth) or len(cores) not in (0, len(bandwidth)):
        raise typer.BadParameter("each --bandwidth needs its --ram, and its --cores or none", param_hint="--bandwidth")
    counted: list[int | None] = [*cores] if cores else [None] * len(bandwidth)
    return tuple(
        Machine(name=f"{speed:g} GB/s, {room:g} GB", bandwidth_gbps=speed, ram_bytes=room * 1e9, cores=number)
        for speed, room, number in zip(bandwidth, ram, counted, strict=True)
    )
