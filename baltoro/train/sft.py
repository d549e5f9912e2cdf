"""`baltoro sft RECIPE`: go on from a checkpoint, learning only what the assistant says."""

from __future__ import annotations

from pathlib import Path

from baltoro.errors import RecipeError
from baltoro.train import pretrain
from baltoro.train.recipe import read


def main(path: str | Path) -> None:
    """The loop is pre-training's; what differs is where it starts and which tokens carry loss."""
    recipe = read(path)
    problems: list[str] = []
    if not recipe.init:
        problems.append("init is missing: SFT starts from a checkpoint")
    for phase in recipe.phases:
        problems += [
            f"phase {phase.name!r} learns every token of its {source.kind}, expected loss = 'assistant'"
            for source in phase.data
            if source.kind != "copy" and source.loss != "assistant"
        ]
    if problems:
        raise RecipeError(f"{path}: " + "; ".join(problems), hint="`baltoro pretrain` learns every token")
    pretrain.train(recipe)
