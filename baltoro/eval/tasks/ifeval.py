"""IFEval (google-research, Apache-2.0): prompts with instructions that can be checked; right where all are followed."""

from __future__ import annotations

from pathlib import Path

from baltoro.errors import BaltoroError
from baltoro.eval.code import Runner
from baltoro.eval.score import Score
from baltoro.eval.task import Item, Said, Task, asking, rows, verdict
from baltoro.eval.tasks.instructions import CHECKS, follows


def _items(folder: Path) -> list[Item]:
    items: list[Item] = []
    for row in rows(folder / "input_data.jsonl"):
        given = [{name: value for name, value in each.items() if value is not None} for each in row["kwargs"]]
        truth = list(zip(row["instruction_id_list"], given, strict=True))
        unknown = {name for name, _ in truth} - CHECKS.keys()
        if unknown:
            raise BaltoroError(f"{folder}: nobody here checks {', '.join(unknown)}", hint="IFEval has 25 instructions")
        items.append(Item(id=f"ifeval_{row['key']}", kind="prompt", body=asking(row["prompt"]), truth=truth))
    return items


def _score(item: Item, said: Said, _: Runner) -> Score:
    """Prompt strict; `checks` has the instructions."""
    checks = {f"{place} {name}": follows(name, said.text, given) for place, (name, given) in enumerate(item.truth)}
    broken = [name.split(" ")[1] for name, good in checks.items() if not good]
    return verdict(item, ", ".join(broken), checks)


IFEVAL = Task(name="ifeval", benchmark="IFEval", data="evals/ifeval", items=_items, score=_score)
