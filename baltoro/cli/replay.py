"""What was asked, asked again."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baltoro.cli.app import app
from baltoro.cli.options import AnyFormat, Threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from baltoro.server.compare import Difference


@app.command()
def replay(
    journal: Annotated[Path, typer.Argument(metavar="JOURNAL", help="A file of `serve --journal DIR`, or DIR itself.")],
    against: Annotated[
        str, typer.Option(metavar="URL|MODEL", help="A server, as http://127.0.0.1:8000, or a model to load here.")
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the server calls its model. [default: the first it lists]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Requests, from the first one. [default: all]")] = None,
    format: AnyFormat = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: summary and every request.")] = False,
) -> None:
    """Ask again what a journal recorded, and say what is answered differently: tokens, text, calls, schemas, time.

    One request after the other. What BALTORO_API_KEY holds goes along to a server.
    """
    from baltoro.server import journal as journals
    from baltoro.server import replay as replaying
    from baltoro.server.compare import summary

    records = list(islice(journals.read(journal), limit))

    def tell(found: Difference) -> None:
        if not as_json and not found.same:
            typer.echo(f"{found.id}: {_told(found)}")

    async def ask_server() -> Sequence[Difference]:
        async with replaying.server(against, os.environ.get("BALTORO_API_KEY"), model) as target:
            return await replaying.run(target, records, tell)

    if against.startswith(("http://", "https://")):
        if format is not None or threads is not None:
            raise typer.BadParameter("is for a model that is loaded here", param_hint="--format, --threads")
        found = asyncio.run(ask_server())
    else:
        if model is not None:
            raise typer.BadParameter("is for a server", param_hint="--model")
        from baltoro.llm import LLM

        weights = format.value if format else None
        # Loose, for what a loose server answered: schemas that are enforced whole are no less so.
        with closing(LLM.open(against, threads=threads, format=weights, loose_schemas=True)) as llm:

            async def ask_model() -> Sequence[Difference]:
                async with replaying.loaded(llm) as target:
                    return await replaying.run(target, records, tell)

            found = asyncio.run(ask_model())
    numbers = summary(found)
    if as_json:
        typer.echo(json.dumps({"summary": numbers, "requests": [asdict(each) for each in found]}, indent=2))
        return
    for name, value in numbers.items():
        typer.echo(f"{name:16} {json.dumps(value).strip('{}').replace(chr(34), '')}")


def _told(found: Difference) -> str:
    if found.error is not None:
        return found.error
    names = {"same_prompt": "prompt", "same_tokens": "tokens", "same_text": "text", "same_calls": "calls"}
    differs = [name for field, name in names.items() if getattr(found, field) is False]
    where = "" if found.first_difference is None else f" from token {found.first_difference} on"
    return f"other {', '.join(differs)}{where}"
