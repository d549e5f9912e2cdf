"""MMLU (hendrycks/test, MIT) and BIG-Bench Hard (suzgunmirac/BIG-Bench-Hard, MIT): a letter, or a few exact words."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from pathlib import Path

from baltoro.errors import BaltoroError
from baltoro.eval.code import Runner
from baltoro.eval.score import Score
from baltoro.eval.task import Item, Said, Task, asking, read, verdict

_MMLU = "Answer the question about {subject}. End with a last line `Answer: X`, where X is one of A, B, C, D.\n\n"
_LETTER = re.compile(r"answer\s*(?:is|:)?\s*[*(\[`\"']*\s*([A-D])\b", re.IGNORECASE)
_ALONE = re.compile(r"^[\s*(\[`]*([A-D])(?=[\s*)\].:,`]|$)")


def letter(text: str) -> str | None:
    """Of the last `Answer: X`; else the one that the text begins with."""
    found = _LETTER.findall(text)
    if found:
        return found[-1].upper()
    alone = _ALONE.match(text)
    return alone[1] if alone else None


def _mmlu(folder: Path) -> list[Item]:
    items: list[Item] = []
    path = folder / "mmlu_csv.tar.gz"
    try:
        with tarfile.open(path) as archive:
            names = sorted(name for name in archive.getnames() if name.startswith("test/") and name.endswith(".csv"))
            for name in names:
                file = archive.extractfile(name)
                assert file is not None, "a name that ends in .csv is a file"
                subject = Path(name).stem.removesuffix("_test")
                for place, row in enumerate(csv.reader(io.TextIOWrapper(file, "utf-8"))):
                    question, *options, answer = row
                    answer = "ABCD"[int(answer)] if answer.isdigit() else answer  # copies number or name them
                    if answer not in ("A", "B", "C", "D"):  # some have a head line
                        continue
                    choices = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=True))
                    head = _MMLU.format(subject=subject.replace("_", " "))
                    body = asking(f"{head}{question}\n{choices}")
                    items.append(Item(id=f"{subject}_{place}", kind=subject, body=body, truth=answer))
    except (OSError, tarfile.TarError, ValueError) as error:
        raise BaltoroError(f"{path}: {error}", hint="--data names a folder as docs/eval.md describes it") from error
    return items


def _score_mmlu(item: Item, said: Said, _: Runner) -> Score:
    found = letter(said.text)
    return verdict(item, "" if found == item.truth else f"{found}, expected {item.truth}: {said.text[-200:]!r}")


def _bbh(folder: Path) -> list[Item]:
    """Three examples with their thoughts before each question, as the benchmark has them."""
    items: list[Item] = []
    for path in sorted((folder / "bbh").glob("*.json")):
        shown = read(folder / "cot-prompts" / f"{path.stem}.txt").partition("-----\n")[2].strip()
        for place, example in enumerate(json.loads(read(path))["examples"]):
            body = asking(f"{shown}\n\nQ: {example['input']}\nA: Let's think step by step.")
            items.append(Item(id=f"{path.stem}_{place}", kind=path.stem, body=body, truth=example["target"]))
    if not items:
        raise BaltoroError(f"{folder} has no bbh/*.json", hint="--data names a folder as docs/eval.md describes it")
    return items


def conclusion(text: str) -> str:
    """What follows the first "the answer is" of the answer itself, up to the line's end, without the point."""
    said = text.split("\nQ:")[0]  # weak models go on with questions of their own
    found = re.search(r"the answer is:?\s*(.*)", said, re.IGNORECASE)
    return (found[1] if found else said.strip().rpartition("\n")[2]).strip().strip("*").rstrip(".").strip()


def _score_bbh(item: Item, said: Said, _: Runner) -> Score:
    found, wanted = conclusion(said.text), str(item.truth).strip()
    same = found.casefold() == wanted.casefold() or (
        re.fullmatch(r"\([A-Z]\)", wanted) is not None and found.casefold().startswith(wanted.casefold())
    )
    return verdict(item, "" if same else f"{found!r}, expected {wanted!r}")


MMLU = Task(name="mmlu", benchmark="MMLU", data="evals/mmlu", items=_mmlu, score=_score_mmlu)
BBH = Task(name="bbh", benchmark=None, data="evals/bbh", items=_bbh, score=_score_bbh)
