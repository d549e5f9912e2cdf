"""GSM8K (openai/grade-school-math, MIT) and AIME 2024: one number, read out of what was said."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path

from baltoro.eval.code import Runner
from baltoro.eval.score import Score
from baltoro.eval.task import Item, Said, Task, asking, rows, verdict

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_GSM8K = "Solve the problem step by step. End with a last line `#### N`, where N is the answer, a number alone.\n\n"
_AIME = "Solve the problem step by step. The answer is an integer from 0 to 999; put it into \\boxed{}.\n\n"


def number(text: str) -> Decimal | None:
    """The answer: behind the last `####`, else in the last \\boxed{}, else the last number that is there."""
    if "####" in text:
        text = text.rpartition("####")[2].strip().split("\n")[0]
        found = _NUMBER.findall(text)[:1]
    elif boxes := _BOX.findall(text):
        found = _NUMBER.findall(boxes[-1])[-1:]
    else:
        found = _NUMBER.findall(text)[-1:]
    try:
        return Decimal(found[0].replace(",", "").replace("$", "")) if found else None
    except InvalidOperation:
        return None


def _score(item: Item, said: Said, _: Runner) -> Score:
    found, wanted = number(said.text), Decimal(str(item.truth))
    return verdict(item, "" if found == wanted else f"{found}, expected {wanted}: {said.text[-200:]!r}")


def _gsm8k(folder: Path) -> list[Item]:
    return [
        Item(
            id=f"gsm8k_{place}", kind="gsm8k", body=asking(_GSM8K + row["question"]),
            truth=str(number(row["answer"])),
        )
        for place, row in enumerate(rows(folder / "test.jsonl"))
    ]  # fmt: skip


def _aime(folder: Path) -> list[Item]:
    return [
        Item(id=f"aime24_{row['id']}", kind="aime24", body=asking(_AIME + row["problem"]), truth=str(row["answer"]))
        for row in rows(folder / "aime24.jsonl")
    ]


GSM8K = Task(name="gsm8k", benchmark=None, data="evals/gsm8k", items=_gsm8k, score=_score)
AIME24 = Task(name="aime24", benchmark="AIME 2024", data="evals/math-misc", items=_aime, score=_score)
