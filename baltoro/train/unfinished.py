"""Rollouts that go on in the next iteration, on disk between two runs.

    out/rollouts/STEP-RANK.json    groups that were under way when the state of STEP was saved, one file a process

They are written before the state and the older ones deleted after it: a state on disk always finds its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.train.rollouts import Group
from baltoro.train.tasks import Tasks


def save(out: Path, step: int, rank: int, groups: Sequence[Group]) -> None:
    folder = out / "rollouts"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"group": g.number, "prompt": _digest(g), "rollouts": [rollout.saved() for rollout in g.rollouts]}
        for g in groups
    ]
    temporary = folder / f"{step}-{rank}.tmp"
    temporary.write_text(json.dumps(rows), encoding="utf-8")
    temporary.replace(folder / f"{step}-{rank}.json")


def forget_others(out: Path, step: int) -> None:
    for path in (out / "rollouts").glob("*-*.json"):
        if path.stem.split("-")[0] != str(step):
            path.unlink()


def load(out: Path, step: int, rank: int, processes: int, tasks: Tasks, tokenizer: Tokenizer) -> list[Group]:
    """This process's, whatever number of processes has written them, in the order of their numbers.

    Raises RecipeError where they do not belong to the recipe.
    """
    groups: list[Group] = []
    for path in sorted((out / "rollouts").glob(f"{step}-*.json")):
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                number = int(row["group"])
                if number % processes != rank:
                    continue
                group = Group.of(number, tasks.task(number), len(row["rollouts"]), tokenizer)
                if _digest(group) != row["prompt"]:
                    raise ValueError(f"group {number} has another prompt now: the tasks have changed")
                for rollout, saved in zip(group.rollouts, row["rollouts"], strict=True):
                    rollout.replay(saved)
                groups.append(group)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"{path} cannot be taken up: {error!r}", hint="delete the run's rollouts/ to draw them anew"
            ) from error
    return sorted(groups, key=lambda group: group.number)


def _digest(group: Group) -> str:
    """Of the prompt that its rollouts began from."""
    prompt = group.rollouts[0].prompt
    return hashlib.sha256(repr((prompt.messages, [tool.declaration for tool in prompt.tools])).encode()).hexdigest()
