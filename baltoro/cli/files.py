"""Commands about the files of a model: what they say, bringing them, packing them, one forward of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baltoro.cli.app import app
from baltoro.cli.options import AnyFormat, Dtype, ExpertMemory, OptionalModel, Threads, WeightFormat
from baltoro.errors import BaltoroError, RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    threads: Threads = None,
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
    threads: Threads = None,
) -> None:
    """Write the logits of one forward."""
    import torch

    from baltoro.model.batch import Batch
    from baltoro.model.load import load

    tokens = parse_ids(ids)
    if threads is not None:
        torch.set_num_threads(threads)
    model = load(
        directory,
        dtype=getattr(torch, dtype),
        format=format.value if format else None,
        expert_memory=expert_memory,
    )
    beyond = [token for token in tokens if token >= model.config.vocab_size]
    if beyond:
        raise RequestError(f"token id {beyond[0]} is outside the vocabulary of {model.config.vocab_size}", param="ids")
    with torch.inference_mode():
        logits = model(Batch.of([tokens]))
    write_npy(out, logits.float().numpy())
    typer.echo(f"{out}: {logits.shape[0]} x {logits.shape[1]} logits", err=True)


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
