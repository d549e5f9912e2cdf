"""Runs of reinforcement learning small enough for a test: nano itself, a few prompts, a few samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baltoro.chat.tokenizer import Tokenizer
from baltoro.train.muonclip import OptimizerConfig
from baltoro.train.rl_recipe import RLRecipe, TaskSource
from baltoro.train.rollouts import Group
from baltoro.train.tasks import Tasks

NANO = Path(__file__).parents[2] / "baltoro" / "nano"


def recipe(out: Path, **changes: Any) -> RLRecipe:
    fields: dict[str, Any] = {
        "seed": 5, "out": str(out), "init": str(NANO), "tokenizer": str(NANO), "iterations": 3, "prompts": 2,
        "samples": 3,
        "optimizer": OptimizerConfig(lr=1e-3), "tasks": (TaskSource(kind="single", answer_tokens=60),),
        "temperature": 1.5, "temperature_end": 1.0, "kl_tokens": 0, "cache_mb": 16, "max_running": 8,
    }  # fmt: skip
    return RLRecipe(**(fields | changes))


def groups(recipe: RLRecipe, count: int) -> list[Group]:
    tokenizer, tasks = Tokenizer.open(NANO), Tasks(recipe)
    return [Group.of(number, tasks.task(number), recipe.samples, tokenizer) for number in range(count)]
