"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from baltoro.sizes import parse_bytes

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


Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")]
ExpertMemory = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE",
        parser=parse_bytes,
        help="Memory for routed experts of a packed checkpoint, as 12GiB; the others are read from disk when they are "
        "wanted. [default: all, or what is free]",
    ),
]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="Record which experts are chosen: `baltoro bench trace`.")
]
PrefixDirectory = Annotated[
    Path | None,
    typer.Option(
        "--prefix-cache",
        metavar="DIR",
        help="Keep the beginnings of prompts on disk too: what memory has no room for, and for the next start.",
    ),
]
PrefixSize = Annotated[
    int | None,
    typer.Option(
        "--prefix-cache-size", metavar="SIZE", parser=parse_bytes, help="The most that DIR may take. [default: 20GiB]"
    ),
]
NoPrefixCache = Annotated[
    bool, typer.Option("--no-prefix-cache", help="Compute every prompt from its first token, whoever asked it before.")
]
AnyFormat = Annotated[
    WeightFormat | None,
    typer.Option(
        help="Keep matrices so. [default: packed and large block-fp8 models as they are; others in bf16 to talk to, "
        "unpacked for forward]"
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="BALTORO_DATABASE",
        show_envvar=False,
        help="Of keys and usage: sqlite:////a/path/keys.db or postgresql://user:password@host/name; better in the "
        "environment, as BALTORO_DATABASE. [default: ~/.local/share/baltoro/baltoro.db]",
    ),
]
