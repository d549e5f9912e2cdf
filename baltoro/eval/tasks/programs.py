"""HumanEval (MIT), HumanEval-X (CodeGeeX, Apache-2.0), MBPP as functions (mxeval, CC-BY-4.0): tests that must pass."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from baltoro.eval.code import Limits, Runner
from baltoro.eval.score import Score
from baltoro.eval.task import Item, Said, Task, asking, rows, verdict

Json = Any
_FENCE = re.compile(r"```[ \t]*([\w+#-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """How a program of it is run. `programs` must be there."""

    title: str
    file: str
    commands: tuple[tuple[str, ...], ...]
    programs: tuple[str, ...]
    limits: Limits = _PYTHON


LANGUAGES: Mapping[str, Language] = {
    "python": Language(title="Python", file="main.py", commands=((sys.executable, "-I", "main.py"),), programs=()),
    "js": Language(
        title="JavaScript", file="main.js", commands=(("node", "main.js"),), programs=("node",),
        limits=Limits(memory_bytes=None),
    ),
    "cpp": Language(
        title="C++", file="main.cpp", programs=("g++",), limits=Limits(seconds=60),
        commands=(("g++", "-std=c++17", "-O0", "-w", "main.cpp", "-o", "main"), ("./main",)),
    ),
    "java": Language(
        title="Java", file="Main.java", programs=("javac", "java"), limits=Limits(seconds=60, memory_bytes=None),
        commands=(("javac", "Main.java"), ("java", "-ea", "-Xmx1g", "Main")),
    ),
}  # fmt: skip


def missing(language: str) -> str:
    lacking = [program for program in LANGUAGES[language].programs if shutil.which(program) is None]
    return f"{', '.join(lacking)} is not installed" if lacking else ""


def program(text: str) -> str:
    """The longest block of code; all of the text where there is none."""
    blocks = [code for _, code in _FENCE.findall(text)]
    return max(blocks, key=len) if blocks else text


def _ask(row: Mapping[str, Json], language: Language) -> dict[str, Json]:
    return asking(
        f"Complete this {language.title} function. Answer with the whole program up to the end of the function, "
        f"with all that it includes or imports, in one block of code.\n\n```\n{row['prompt'].strip()}\n```"
    )


def completed(row: Mapping[str, Json], code: str, language: str) -> str:
    """A program: the answer, or the declaration with the answer behind it where that is a body alone, and the tests."""
    named = (
        re.search(r"(\w+)\s*(?:=\s*)?\(", row["prompt"].rstrip().rpartition("\n")[2]) if language != "python" else None
    )
    name = row["entry_point"] if "entry_point" in row else named[1] if named else ""
    declared = re.search(rf"\b{re.escape(name)}\b", code) is not None if name else False
    if language == "python":
        whole = code if re.search(rf"^\s*def\s+{re.escape(name)}\b", code, re.MULTILINE) else row["prompt"] + code
        head = row["prompt"].split(f"def {name}")[0]  # imports that the answer takes for granted, and helpers
        return (
            f"{head}\n{whole}\n{row['test']}\ncheck({name})\n"
            if "entry_point" in row
            else f"{head}\n{whole}\n{row['test']}"
        )
    before = row["declaration"] if language in ("js", "cpp", "java") else ""
    return f"{code if declared else before + code}\n{row['test']}"


def _score(item: Item, said: Said, runner: Runner, *, language: str) -> Score:
    spoken = LANGUAGES[language]
    source = completed(item.truth, program(said.text), language)
    if language == "js":  # console.assert tells a failure and goes on
        source = 'console.assert = (good) => { if (!good) throw new Error("assertion failed") };\n' + source
    ran = runner.run({spoken.file: source}, spoken.commands, spoken.limits)
    why = "" if ran.good else "too slow" if ran.code is None else ran.output.strip()[-300:] or f"exit {ran.code}"
    return verdict(item, why)


def _items(folder: Path, *, file: str, language: str) -> list[Item]:
    return [
        Item(id=row["task_id"], kind=language, body=_ask(row, LANGUAGES[language]), truth=_named(row, language))
        for row in rows(folder / file)
    ]


def _named(row: Mapping[str, Json], language: str) -> dict[str, Json]:
    """HumanEval-X's Python has no entry point: its tests name the function themselves."""
    kept = {name: row[name] for name in ("prompt", "test", "declaration", "entry_point") if name in row}
    if language == "python" and "entry_point" not in row:
        kept["entry_point"] = re.findall(r"^def\s+(\w+)", row["prompt"], re.MULTILINE)[-1]
        kept["test"] = re.sub(rf"^check\({kept['entry_point']}\)\s*$", "", row["test"], flags=re.MULTILINE)
    return kept


def _task(name: str, data: str, file: str, language: str) -> Task:
    return Task(
        name=name, benchmark=None, data=data, runs_code=True, items=partial(_items, file=file, language=language),
        score=partial(_score, language=language), needs=partial(missing, language),
    )  # fmt: skip


HUMANEVAL = _task("humaneval", "evals/humaneval", "HumanEval.jsonl", "python")
MBPP = _task("mbpp", "evals/mbpp", "mbpp_release_v1.jsonl", "python")
HUMANEVAL_X = tuple(
    _task(f"humaneval-{each}", "evals/humaneval-x", f"humaneval_{each}.jsonl", each) for each in LANGUAGES
)
