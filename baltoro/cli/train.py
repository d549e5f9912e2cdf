"""Commands that train, by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baltoro.cli.app import app

if TYPE_CHECKING:
    pass


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


@app.command()
def rl(recipe: Annotated[Path, typer.Argument(help="A TOML recipe, as in recipes/.")]) -> None:
    """Let a model learn from rewards that can be checked, or go on."""
    from baltoro.train import rl as training

    training.main(recipe)
