"""Commands that train, by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baltoro.cli.app import app

if TYPE_CHECKING:
    pass


@app.command()
def pretrain(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, as in recipes/.")],
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it costs: bytes, operations, days.")] = False,
    world: Annotated[int | None, typer.Option(help="For --plan: processes. Default: the recipe's.", min=1)] = None,
    mfu: Annotated[float, typer.Option(help="For --plan: share of the peak that is reached.")] = 0.4,
    peak_tflops: Annotated[float, typer.Option(help="For --plan: a process's peak; an H100's in bf16.")] = 989.0,
) -> None:
    """Train a model from scratch on text, or go on. Under torchrun this is one of its processes."""
    if plan:
        from baltoro.train import plan as planning
        from baltoro.train.recipe import read

        found = read(recipe)
        typer.echo(planning.text(planning.plan(found, world or found.processes), mfu=mfu, peak_tflops=peak_tflops))
        return
    if world is not None:
        raise typer.BadParameter(
            "goes with --plan; the recipe's processes or torchrun start them", param_hint="--world"
        )
    from baltoro.train import pretrain as training

    training.main(recipe)


@app.command()
def sft(recipe: Annotated[Path, typer.Argument(help="A TOML recipe, as in recipes/.")]) -> None:
    """Teach a model conversations, or go on."""
    from baltoro.train import sft as training

    training.main(recipe)


@app.command()
def rl(recipe: Annotated[Path, typer.Argument(help="A TOML recipe, as in recipes/.")]) -> None:
    """Let a model learn from rewards that can be checked, or go on."""
    from baltoro.train import rl as training

    training.main(recipe)
