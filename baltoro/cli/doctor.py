"""Why is it slow?"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from baltoro.cli.app import app
from baltoro.cli.options import MODEL_HELP, AnyFormat, ExpertMemory, Threads

if TYPE_CHECKING:
    pass


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
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Say why MODEL is as slow as it is here, and what would help, each with the number behind it.

    Loads it as `serve` would, decodes, and compares with what memory, arithmetic and the disk reach, measured here.
    Larger budgets of memory for experts are replayed on the experts that this run chose. With --url a running server is
    looked at twice (GET /stats), and no model is loaded; what BALTORO_API_KEY holds goes along.
    """
    from baltoro.doctor import report

    if url is not None:
        if any(given is not None for given in (model, tokens, format, expert_memory, threads)):
            raise typer.BadParameter("it looks at a server that has its own model and options", param_hint="--url")
        found, lines = report.of_server(url, seconds=seconds or 5.0, key=os.environ.get("BALTORO_API_KEY"))
    elif seconds is not None:
        raise typer.BadParameter("it goes with --url", param_hint="--seconds")
    else:
        found, lines = report.of_model(
            model or "nano",
            tokens=tokens or 32,
            threads=threads,
            format=format.value if format else None,
            expert_memory=expert_memory,
            say=lambda text: typer.echo(text, err=True),
        )
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))
