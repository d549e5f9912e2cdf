"""A benchmark that runs here: questions out of files at hand, and a verdict on each answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baltoro.chat.messages import ToolCall
from baltoro.errors import BaltoroError
from baltoro.eval.code import Runner
from baltoro.eval.endpoint import Reply
from baltoro.eval.score import Score

Json = Any
Talk = Callable[[Mapping[str, Json]], Awaitable[Reply]]  # a body without model and sampling -> its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    id: str
    kind: str  # scores are told apart by it
    body: Mapping[str, Json]  # of /v1/chat/completions, without model and sampling
    truth: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    name: str
    benchmark: str | None  # its name in published.json, where K2's card has it
    data: str  # where it lies under --data
    version: int = 1  # another one when prompts or verdicts change
    items: Callable[[Path], list[Item]]
    score: Callable[[Item, Said, Runner], Score]
    runs_code: bool = False
    play: Callable[[Item, Talk, Talk], Awaitable[Reply]] | None = None  # a conversation of the model with a user
    needs: Callable[[], str] = field(default=lambda: "")  # what is missing on this machine; nothing if it can run


def verdict(item: Item, reason: str, checks: Mapping[str, bool] | None = None) -> Score:
    """reason: why it is wrong; empty where it is right"""
    return Score(example=item.id, kind=item.kind, right=not reason, checks=checks or {}, reason=reason[:500])


def asking(text: str, system: str | None = None) -> dict[str, Json]:
    turns = [{"role": "system", "content": system}] if system else []
    return {"messages": [*turns, {"role": "user", "content": text}]}


def rows(path: Path) -> Iterator[Mapping[str, Json]]:
    """Of a file with an object a line, plain or gzipped (then `.gz` may be left out of the name)."""
    packed = path.with_name(path.name + ".gz")
    found = path if path.is_file() or not packed.is_file() else packed
    for number, line in enumerate(read(found).splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise BaltoroError(f"{found}, line {number}: {error}", hint="expected a JSON object a line") from error


def read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "--data names a folder as docs/eval.md describes it"
        raise BaltoroError(f"{path}: {error.strerror if isinstance(error, OSError) else error}", hint=hint) from error


def by_kind(items: Sequence[Item], most: int | None) -> list[Item]:
    """The first `most` of every kind; None: all."""
    taken: dict[str, int] = {}
    chosen: list[Item] = []
    for item in items:
        taken[item.kind] = taken.get(item.kind, 0) + 1
        if most is None or taken[item.kind] <= most:
            chosen.append(item)
    return chosen
