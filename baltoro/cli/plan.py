"""Will it fit, how fast, and which commands start it? Before anything is downloaded."""

from __future__ import annotations

import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baltoro.cli.app import app
from baltoro.errors import BaltoroError, PlanError
from baltoro.sizes import parse_bytes

if TYPE_CHECKING:
    from baltoro.config import ModelConfig
    from baltoro.plan.machine import Catalogue, Described, Machine
    from baltoro.plan.memory import Wish
    from baltoro.plan.planner import Plan


class Place(StrEnum):
    gpu = "gpu"
    hybrid = "hybrid"
    ram = "ram"
    disk = "disk"


class Engine(StrEnum):
    vllm = "vllm"
    sglang = "sglang"
    ktransformers = "ktransformers"
    tensorrt_llm = "tensorrt-llm"
    tgi = "tgi"
    baltoro = "baltoro"


class Form(StrEnum):
    shell = "shell"
    systemd = "systemd"
    compose = "compose"
    kubernetes = "kubernetes"
    ray = "ray"


def _rate(text: str) -> float:
    from baltoro.plan.machine import parse_rate

    return parse_rate(text)


def _size(text: str) -> float:
    return float(parse_bytes(text))


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A preset, a config.json or its directory; OWNER/NAME of the hub or an http address, of "
            "which headers alone are read.",
        ),
    ] = "kimi-k2-instruct",
    machine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the catalogue; --list-machines tells them. [default: this one, measured]"
        ),
    ] = None,
    machines: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A further catalogue, TOML; repeatable.")
    ] = None,
    list_machines: Annotated[
        bool, typer.Option("--list-machines", help="Print what the catalogue has, and leave.")
    ] = False,
    ram: Annotated[float | None, typer.Option(metavar="SIZE", parser=_size, help="Of a node, as 512GiB.")] = None,
    ram_bandwidth: Annotated[
        float | None, typer.Option(metavar="RATE", parser=_rate, help="Of a node on paper, as 460GB/s.")
    ] = None,
    sockets: Annotated[int | None, typer.Option(min=1, help="That share the RAM's bandwidth.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Of a node.")] = None,
    disk: Annotated[float | None, typer.Option(metavar="RATE", parser=_rate, help="Reading, as 7GB/s.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NxNAME", help="Of a node, as 8xH200.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Alike ones.")] = None,
    network: Annotated[float | None, typer.Option(metavar="RATE", parser=_rate, help="Between nodes, of one.")] = None,
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Whose disk is measured, where this machine is.", show_default="here")
    ] = Path(),
    format: Annotated[
        str | None,
        typer.Option(
            help="bf16, fp8, int8, int4, w4a16, or bits a weight, as 3.3bit. [default: the best that is not slow]"
        ),
    ] = None,
    place: Annotated[
        Place | None, typer.Option(help="Where weights are to be. [default: the fastest that fits]")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Of GPUs, as tp16, tp8+pp2, dp16+ep, tp16+dcp8. [default: the fastest that fits]")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a request. [default: 131072, or the model's]")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once, each with the whole context.")] = 1,
    cache_fp8: Annotated[
        bool, typer.Option("--cache-fp8", help="Keep the cache in 8 bits, as vLLM and SGLang can.")
    ] = False,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a usual prompt, for throughput and cost.")] = 2048,
    answer: Annotated[int, typer.Option(min=1, help="Tokens of a usual answer.")] = 512,
    price_hour: Annotated[float | None, typer.Option(min=0, help="Money for an hour of a node.")] = None,
    watts: Annotated[float | None, typer.Option(min=0, help="Of a node under load.")] = None,
    electricity: Annotated[float | None, typer.Option(min=0, help="Money for a kWh; goes with --watts.")] = None,
    engine: Annotated[Engine | None, typer.Option(help="Whose commands. [default: what fits the place]")] = None,
    form: Annotated[Form, typer.Option(help="Of the commands.")] = Form.shell,
    prefill_nodes: Annotated[
        int | None, typer.Option(min=1, help="SGLang: so many nodes read prompts, the others answer.")
    ] = None,
    hosts: Annotated[
        str | None, typer.Option(help="Names of the nodes with commas, the head first. [default: node0,node1,...]")
    ] = None,
    path: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where each node has the model. [default: /models/MODEL]")
    ] = None,
    ib_devices: Annotated[str, typer.Option(help="InfiniBand devices that carry caches, SGLang.")] = "mlx5_0",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the commands there, one file and more a node.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the plan.")] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FILE",
            help="Compare with what a running `baltoro serve` measures, or with `baltoro doctor --json`.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Say whether MODEL fits a machine, how fast it will be there, what it costs, and print the commands that start it.

    Nothing is downloaded and nothing loaded. Every figure comes with its formula and a band; docs/plan.md compares them
    with published results. What cannot fit is refused, with the bytes that are missing. Without a machine this one is
    measured, which takes some seconds.
    """  # fmt: skip
    from baltoro.plan import document, planner
    from baltoro.plan.formats import format_of
    from baltoro.plan.layout import parse
    from baltoro.plan.machine import Described, catalogue
    from baltoro.plan.memory import Wish

    known = catalogue(*(machines or []))
    if list_machines:
        for name, each in known.machines.items():
            rates = f"RAM {each.ram_bandwidth / 1e9:,.0f} GB/s, disk {each.disk_bandwidth / 1e9:g} GB/s"
            typer.echo(f"{name:18} {each.title}, {rates}")
        typer.echo(f"GPUs: {', '.join(known.gpus)}")
        return
    if electricity is not None and watts is None and machine is None:
        raise typer.BadParameter("goes with --watts", param_hint="--electricity")
    config, fetch_bytes, notes = _model(model)
    options = Described(
        ram=ram, ram_bandwidth=ram_bandwidth, sockets=sockets, cores=cores, disk=disk, gpu=gpu, nodes=nodes,
        network=network, price_hour=price_hour, watts=watts,
    )  # fmt: skip
    target = _machine(machine, options, known, directory)
    wish = Wish(
        context=context or min(131072, config.max_position_embeddings), concurrency=concurrency,
        cache_value_bytes=1 if cache_fp8 else 2, layout=parse(layout) if layout else None,
        place=place.value if place else None,
    )  # fmt: skip
    for note in notes:
        typer.echo(note, err=True)
    try:
        found = planner.make(
            model, config, target, wish, card=known.gpus["RTX-4090"], format=format_of(format) if format else None,
            mix=planner.Mix(prompt=prompt, answer=answer), electricity=electricity, fetch_bytes=fetch_bytes,
        )  # fmt: skip
    except PlanError as error:
        _refuse(model, config, target, wish, error, as_json=as_json)
        raise
    if check is not None:
        _check(found, check, as_json=as_json)
        return
    files = _launch(
        found, engine, form, asked=engine is not None or out is not None, prefill_nodes=prefill_nodes, hosts=hosts,
        path=path or f"/models/{model.rstrip('/').rpartition('/')[2]}", devices=ib_devices,
    )  # fmt: skip
    if out is not None:
        _write(out, files)
    if picture is not None:
        from baltoro.plan.picture import svg

        _write(picture.parent, {picture.name: svg(found)})
    if as_json:
        typer.echo(json.dumps(document.document(found) | {"commands": files}, indent=2))
        return
    from rich.console import Console

    from baltoro.plan import text

    shown = "\n".join(f"--- {name}\n{content}" for name, content in files.items())
    wide = None if sys.stdout.isatty() else 160
    text.show(found, Console(width=wide), shown if out is None else f"in {out}: {', '.join(files)}")


def _model(model: str) -> tuple[ModelConfig, int | None, list[str]]:
    """Its config; where its files are elsewhere, their bytes, and what their headers say."""
    from baltoro.config import PRESETS, ModelConfig

    here = model in PRESETS or Path(model).exists()
    if here or not (model.startswith(("http://", "https://")) or re.fullmatch(r"[\w.-]+/[\w.-]+", model)):
        return ModelConfig.open(model), None, []
    from baltoro.weights.fetch import headers

    found = headers.read(model)
    purposes = ", ".join(f"{name} {nbytes / 1e9:,.2f} GB" for name, nbytes in found.by_purpose.items())
    notes = [
        f"{found.source}: {found.tensors:,} tensors in {found.shards} shards, {found.tensor_bytes:,} bytes: {purposes}"
    ]
    return found.config, found.file_bytes, [*notes, *(f"warning: {each}" for each in found.mismatches)]


def _machine(name: str | None, options: Described, known: Catalogue, directory: Path) -> Machine:
    from baltoro.plan.machine import described, machine_named

    if name is not None or options.ram is not None or options.gpu is not None or options.ram_bandwidth is not None:
        return described(options, known, machine_named(name, known) if name is not None else None)
    from baltoro.doctor import here

    measured = here.machine(directory, known.gpus, lambda line: typer.echo(line, err=True))
    return described(options, known, measured) if options.says_anything else measured


def _refuse(
    model: str, config: ModelConfig, target: Machine, wish: Wish, error: BaltoroError, *, as_json: bool
) -> None:
    if as_json and isinstance(error, PlanError):
        from baltoro.plan import document

        typer.echo(json.dumps(document.refused(model, config, target, wish, error), indent=2))


def _launch(
    found: Plan, engine: Engine | None, form: Form, *, asked: bool, prefill_nodes: int | None, hosts: str | None,
    path: str, devices: str,
) -> dict[str, str]:  # fmt: skip
    from baltoro.plan.launch import engines, forms
    from baltoro.plan.launch.processes import Site

    names = tuple(each.strip() for each in hosts.split(",")) if hosts else ()
    if names and len(names) != found.machine.nodes:
        raise PlanError(f"{len(names)} hosts for {found.machine.nodes} nodes", hint="one name for each node")
    site = Site(model=path, tokenizer=path, hosts=names, devices=devices)
    try:
        launch = engines.launch(
            found, engine.value if engine else engines.default(found), site, prefill_nodes=prefill_nodes
        )
        return forms.files(form.value, found, launch, site)
    except PlanError as error:
        if asked:
            raise
        typer.echo(f"no commands: {error.message}", err=True)  # the plan stands without them, as for bits of others
        return {}


def _write(out: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        target = out / name
        fresh = target.with_name(target.name + ".new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(content, encoding="utf-8")
            if name.endswith(".sh"):
                fresh.chmod(0o755)
            fresh.replace(target)
        except OSError as error:
            raise BaltoroError(
                f"{target}: {error.strerror}", hint="--out and --picture name places of yours"
            ) from error


def _check(found: Plan, source: str, *, as_json: bool) -> None:
    from baltoro.plan import check

    measured = check.read(source) if not source.startswith(("http://", "https://")) else _watched(source)
    rows = check.compare(found, measured)
    typer.echo(json.dumps([row.document() for row in rows], indent=2) if as_json else "\n".join(map(check.line, rows)))


def _watched(url: str) -> dict[str, Any]:
    import os

    from baltoro.doctor import live

    return live.fetch(url, os.environ.get("BALTORO_API_KEY"))
