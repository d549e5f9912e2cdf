"""The command line: each command parses, calls one function of the library, prints.

Data to stdout, talk to stderr. Exit 0: done; 1: an explained failure; 2: wrong usage.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from baltoro.errors import BaltoroError, RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from baltoro.chat.messages import Tool
    from baltoro.llm import LLM
    from baltoro.model.whole import Machine

app = typer.Typer(
    name="baltoro",
    help="Run, train and serve Kimi K2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)

MODEL_HELP = "A directory with config.json, safetensors shards and tiktoken.model, or a preset."
OptionalModel = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default="nano")]


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class WeightFormat(StrEnum):
    bf16 = "bf16"
    fp8 = "fp8"
    int8 = "int8"
    int4 = "int4"


ExpertMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for routed experts of a packed checkpoint, as 12GiB; the others are read from disk when they are "
        "wanted. [default: all, or what is free]",
    ),
]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="Record which experts are chosen: `baltoro bench trace`.")
]
AnyFormat = Annotated[
    WeightFormat | None,
    typer.Option(help="Keep matrices so. [default: packed and large block-fp8 models as they are, others unpacked]"),
]


def main() -> None:
    """The entry point: what a user can repair is explained in two lines, without a traceback."""
    try:
        app(prog_name="baltoro")
    except BaltoroError as error:
        _fail(error)


def _fail(error: BaltoroError) -> None:
    hint = f"\n  hint: {error.hint}" if error.hint else ""
    typer.echo(f"error: {error.message}{hint}", err=True)
    sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("baltoro")
        except PackageNotFoundError:
            number = "from a source tree that is not installed"
        typer.echo(f"baltoro {number}")
        raise typer.Exit


def _open(
    model: str,
    *,
    threads: int | None,
    format: WeightFormat | None,
    max_context: int | None = None,
    max_running: int | None = None,
    expert_memory: str | None = None,
    trace: Path | None = None,
) -> LLM:
    from baltoro.llm import LLM
    from baltoro.sizes import parse_bytes

    began = time.monotonic()
    typer.echo(f"loading {model} ...", err=True)
    llm = LLM.open(
        model,
        max_context=max_context,
        max_running=max_running,
        threads=threads,
        format=format.value if format else None,
        expert_memory=parse_bytes(expert_memory) if expert_memory else None,
        trace=trace,
    )
    typer.echo(f"loaded in {time.monotonic() - began:.1f} s; context {llm.max_context} tokens", err=True)
    if store := llm.engine.store:
        typer.echo(
            f"{store.slots:,} experts in {store.budget_bytes / 1e9:.1f} GB, the others are read from disk", err=True
        )
        if store.slots < store.chosen:
            typer.echo(f"a token chooses {store.chosen} of each layer: every use is a read, and slow", err=True)
    return llm


@app.callback()
def baltoro(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    model: OptionalModel = "nano",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="Name that requests may use; repeatable. [default: MODEL and K2's names]")
    ] = None,
    max_context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer together.")] = None,
    max_running: Annotated[int | None, typer.Option(min=1, help="Requests decoded together. [default: 32]")] = None,
    format: AnyFormat = None,
    expert_memory: ExpertMemory = None,
    trace: TraceFile = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that running requests get after SIGTERM.")] = 30,
) -> None:
    """Serve MODEL over the API of OpenAI.

    POST /v1/chat/completions and /v1/completions, plain and streamed; GET /v1/models, /health, /stats and /docs.
    """
    from baltoro.server import listen
    from baltoro.server.app import Served, create_app

    sockets = listen.bind(host, port)  # before the model loads: a taken port is told at once
    opened = _open(
        model, max_context=max_context, max_running=max_running, threads=threads, format=format,
        expert_memory=expert_memory, trace=trace,
    )  # fmt: skip
    with closing(opened) as llm:
        served = Served(llm=llm, names=tuple(served_model_name or default_names(model)))
        url = listen.url(host, sockets[0])
        typer.echo(f"serving {served.names[0]} on {url}/v1 (Ctrl-C stops)", err=True)
        cut = listen.run(create_app(served), sockets, grace_s=grace)
    if cut:
        raise BaltoroError(f"left with {cut} request(s) unfinished", hint="--grace gives them more time")


def default_names(model: str) -> list[str]:
    """The model's own name first; programs written for K2 find theirs too."""
    return list(
        dict.fromkeys([Path(model).resolve().name, "baltoro", "kimi-k2-instruct", "moonshotai/Kimi-K2-Instruct"])
    )


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default="nano")] = None,
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this and leave; `-` or no terminal: ask what stdin says.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt. [default: K2's own]")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: always the likeliest token.")] = 0.6,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. [default: what the context leaves]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    tools: Annotated[
        Path | None,
        typer.Option(help="JSON list of tools as OpenAI declares them; calls are printed, you give results."),
    ] = None,
    format: AnyFormat = None,
    expert_memory: ExpertMemory = None,
    trace: TraceFile = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
) -> None:
    """Talk to MODEL in the terminal, or ask it one PROMPT.

    A single argument that names no model is the prompt: `baltoro chat "Who are you?"` asks nano.
    """
    from baltoro import terminal
    from baltoro.chat.messages import ChatRequest, Message

    if model is not None and prompt is None and not names_model(model):
        model, prompt = None, model
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("the prompt is empty", param_hint="PROMPT")
    request = ChatRequest(
        messages=(Message(role="system", content=system),) if system is not None else (),
        tools=read_tools(tools) if tools else (),
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )
    opened = _open(model or "nano", threads=threads, format=format, expert_memory=expert_memory, trace=trace)
    with closing(opened) as llm:
        if prompt is None:
            terminal.converse(llm, request)
        else:
            terminal.ask(llm, replace(request, messages=(*request.messages, Message(role="user", content=prompt))))


def names_model(word: str) -> bool:
    """Whether a lone argument of `chat` means a model: a preset, or something that looks like a path."""
    from baltoro.config import PRESETS

    return word in PRESETS or (not any(c.isspace() for c in word) and ("/" in word or Path(word).exists()))


def read_tools(path: Path) -> tuple[Tool, ...]:
    """The tools of a JSON file: a list, or an object with a list `tools`, as in a request's body."""
    from baltoro.server import body, openai

    try:
        document = body.parse_json(path.read_bytes())
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}", hint="--tools takes a JSON file") from error
    if isinstance(document, dict):
        document = cast("dict[str, Any]", document).get("tools")
    return openai.read_tools(document)


@app.command()
def info(
    model: OptionalModel = "nano",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Say what MODEL is, counted from its config.

    Parameters, bytes, cache bytes a token, and whether its files agree with its config.
    """
    from baltoro.weights.describe import describe

    facts = describe(model)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    files: dict[str, Any] = facts.pop("checkpoint") or {}
    for name, value in {**facts, **{f"checkpoint {name}": value for name, value in files.items()}}.items():
        typer.echo(f"{name:26} {f'{value:,}' if type(value) is int else value}")


@app.command()
def fetch(
    repo: Annotated[
        str, typer.Argument(help="OWNER/NAME on the hub, a preset, the address of a folder, or a directory.")
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go; made if it is not there.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub. [default: main]")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only files like this; * is anything; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No files like this; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Ranges that are fetched at the same time.")] = 8,
    patience: Annotated[int, typer.Option(min=0, help="Seconds without a byte before giving up.")] = 600,
    verify: Annotated[bool, typer.Option("--verify", help="Read and compare what is there; fetch nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Bring the files of a model to DIR, every byte compared with what is published.

    Stopped at any moment, the same command goes on. HF_TOKEN and HF_ENDPOINT are honoured.
    """
    from baltoro.weights.fetch import run
    from baltoro.weights.fetch.http import Patience

    pace = run.Pace(jobs=jobs, patience=Patience(total_s=patience))
    call = run.verify if verify else run.fetch
    try:
        result = call(repo, directory, revision=revision, include=include or (), exclude=exclude or (), pace=pace)
    except KeyboardInterrupt:
        typer.echo("stopped; what has arrived is kept, the same command goes on", err=True)
        raise typer.Exit(130) from None
    typer.echo(json.dumps(asdict(result), indent=2) if as_json else run.line(result))
    if isinstance(result, run.Verdict) and result.wrong:
        raise BaltoroError(
            f"{len(result.wrong)} of {result.files} files are not as published",
            hint="the same command without --verify repairs them",
        )


@app.command()
def quantize(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint's directory; or what `fetch` takes, never kept whole.")
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the packed model goes.")],
    format: Annotated[WeightFormat, typer.Option(help="What matrices are kept in.")],
    discard: Annotated[bool, typer.Option("--discard", help="Delete SRC's shards as they are used up.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub. [default: main]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Pack a model for the kernels once: DIR then loads at the speed of its disk, with no --format.

    The logits are those of SRC with the same --format. Of Kimi K2's terabyte int4 makes 0.58 TB, int8 1.04. Stopped at
    any moment, the same command goes on. `baltoro serve DIR`, `chat DIR` and `forward DIR` take what it makes.
    """
    import torch

    from baltoro.weights.quantize import run

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        result = run.quantize(src, directory, format.value, discard=discard, revision=revision)
    except KeyboardInterrupt:
        typer.echo("stopped; finished shards are kept, the same command goes on", err=True)
        raise typer.Exit(130) from None
    typer.echo(json.dumps(asdict(result), indent=2) if as_json else run.line(result))


@app.command()
def forward(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint; no tokenizer is needed.")],
    ids: Annotated[str, typer.Option(help='Token ids, "1 2 3".')],
    out: Annotated[Path, typer.Option(help="Where the logits go: NumPy, (T, V), float32.")],
    dtype: Annotated[Dtype, typer.Option(help="What the forward computes in.")] = Dtype.float32,
    format: AnyFormat = None,
    expert_memory: ExpertMemory = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
) -> None:
    """Write the logits of one forward."""
    import torch

    from baltoro.model.batch import Batch
    from baltoro.model.load import load
    from baltoro.sizes import parse_bytes

    tokens = parse_ids(ids)
    if threads is not None:
        torch.set_num_threads(threads)
    model = load(
        directory,
        dtype=getattr(torch, dtype),
        format=format.value if format else None,
        expert_memory=parse_bytes(expert_memory) if expert_memory else None,
    )
    beyond = [token for token in tokens if token >= model.config.vocab_size]
    if beyond:
        raise RequestError(f"token id {beyond[0]} is outside the vocabulary of {model.config.vocab_size}", param="ids")
    with torch.inference_mode():
        logits = model(Batch.of([tokens]))
    write_npy(out, logits.float().numpy())
    typer.echo(f"{out}: {logits.shape[0]} x {logits.shape[1]} logits", err=True)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default="nano")] = None,
    url: Annotated[
        str | None, typer.Option(help="Instead of MODEL: a running `baltoro serve`, as http://127.0.0.1:8000.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="With --url: between two looks. [default: 5]")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="That are measured; as many before them warm up. [default: 32]")
    ] = None,
    format: AnyFormat = None,
    expert_memory: ExpertMemory = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Say why MODEL is as slow as it is here, and what would help, each with the number behind it.

    Loads it as `serve` would, decodes, and compares with what memory, arithmetic and the disk reach, measured here.
    Larger budgets of memory for experts are replayed on the experts that this run chose. With --url a running server is
    looked at twice (GET /stats), and no model is loaded.
    """
    from baltoro.doctor import report
    from baltoro.sizes import parse_bytes

    if url is not None:
        if model or tokens or format or expert_memory or threads:
            raise typer.BadParameter("it looks at a server that has its own model and options", param_hint="--url")
        found, lines = report.of_server(url, seconds=seconds or 5.0)
    elif seconds is not None:
        raise typer.BadParameter("it goes with --url", param_hint="--seconds")
    else:
        found, lines = report.of_model(
            model or "nano",
            tokens=tokens or 32,
            threads=threads,
            format=format.value if format else None,
            expert_memory=parse_bytes(expert_memory) if expert_memory else None,
            say=lambda text: typer.echo(text, err=True),
        )
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))


def parse_ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    wrong = [word for word in words if not (word.isascii() and word.isdigit())]
    if wrong or not words:
        raise typer.BadParameter(f"'{wrong[0] if wrong else text}' is not a token id", param_hint="--ids")
    return [int(word) for word in words]


def write_npy(path: Path, array: NDArray[np.float32]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    import numpy as np

    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            np.save(file, array)
        unfinished.replace(path)
    except OSError as error:
        raise BaltoroError(
            f"{path} cannot be written: {error.strerror}", hint="--out names a file in a folder that exists"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


@app.command()
def pretrain(recipe: Annotated[Path, typer.Argument(help="A TOML recipe, as in recipes/.")]) -> None:
    """Train a model from scratch on text, or go on."""
    from baltoro.train import pretrain as training

    training.main(recipe)


@app.command()
def sft(recipe: Annotated[Path, typer.Argument(help="A TOML recipe, as in recipes/.")]) -> None:
    """Teach a model conversations, or go on."""
    from baltoro.train import sft as training

    training.main(recipe)


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
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row, for scripts.")] = False,
) -> None:
    """Run the experts and the attention of one layer of MODEL with random numbers, beside this machine's roofs.

    decode: one token, in GB/s of weights; prefill: a prompt's share, in GFLOP/s. mla_decode: attention of one token to
    --context cached ones; mla_prefill: of a prompt to itself.
    """
    import torch

    from baltoro.config import ModelConfig
    from baltoro.kernels import measure, measure_attention, ops
    from baltoro.kernels.formats import FORMATS, Format

    if threads is not None:
        torch.set_num_threads(threads)
    wanted: tuple[Format, ...] = tuple(FORMATS[list(WeightFormat).index(each)] for each in format or WeightFormat)
    config, prompts = ModelConfig.open(model), tuple(tokens or (512,))
    of_experts = measure.rows(config, wanted, experts=experts, prefill=prompts, seconds=seconds)
    of_attention = measure_attention.rows(
        config, contexts=tuple(context or (4096, 32768)), prompts=prompts, seconds=seconds, target=ops.chosen_target()
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
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
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
    layers: Annotated[int, typer.Option(min=1, help="Mixture layers that are made, behind a dense one.")] = 4,
    experts: Annotated[int | None, typer.Option(min=1, help="Of each. [default: a quarter of MODEL's]")] = None,
    format: Annotated[WeightFormat, typer.Option(help="What is made.")] = WeightFormat.int4,
    expert_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For experts, as 12GiB. [default: a third of them]")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Of the prompt.")] = 512,
    answer: Annotated[int, typer.Option(min=1, help="Tokens decoded behind it.")] = 64,
    resident: Annotated[bool, typer.Option("--resident", help="Keep everything in memory.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
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
    from baltoro.sizes import parse_bytes
    from baltoro.weights.quantize.invent import invent

    def say(text: str) -> None:
        typer.echo(text, err=True)

    if threads is not None:
        torch.set_num_threads(threads)
    config = ModelConfig.open(model)
    budget = parse_bytes(expert_memory) if expert_memory else None
    if directory is None or make:
        short = run.shortened(config, mixtures=layers, experts=experts)
        directory = directory or run.place_of(place, model, format.value, short)
        try:
            made = invent(short, format.value, directory)
        except KeyboardInterrupt:
            say("stopped; nothing was kept")
            raise typer.Exit(130) from None
        say(f"{directory} was {'made' if made else 'there already'} and is kept: delete it when done")
    found = run.measure(directory, budget_bytes=budget, tokens=tokens, answer=answer, resident=resident, progress=say)
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
    with display.Display(f"reading {file or 'made-up choices'}"):
        uses = simulate.Uses.of(header, records)
    if reader is not None and reader.note:
        typer.echo(reader.note, err=True)
    typer.echo(f"{header.model}: {uses.tokens:,} tokens, {len(uses.needed):,} uses of experts", err=True)
    for count in rooms:
        for name in names:
            with display.Display(f"{name}, {count:,} experts") as shown:
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
