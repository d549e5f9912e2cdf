"""What is finished of an output directory: `DIR/.quantize/journal`, a line of JSON for each fact.

    {"plan": {"source": "...", "format": "int4", ...}}                           what is being made; always first
    {"file": "model-00001-of-00061.safetensors", "nbytes": ..., "sha256": ...}   a shard that is whole and on disk

A line is written when its shard is on disk. One that cannot be read (the last one, after a power cut) is passed over:
its shard is made again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

STATE = ".quantize"  # the folder in DIR for everything unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    file: str
    nbytes: int
    sha256: str
    tensor_bytes: int
    losses: dict[str, tuple[float, float]]  # by class of tensors: sums of squares of the difference, of the source


class Journal:
    def __init__(self, state: Path) -> None:
        self.path = state / "journal"

    def read(self) -> tuple[dict[str, Any] | None, dict[str, Finished]]:
        """The plan, None where nothing was begun; and the finished shards by name."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return None, {}
        facts = [fact for line in lines if (fact := _parse(line)) is not None]
        plan = facts[0].get("plan") if facts else None
        if not isinstance(plan, dict):
            return None, {}
        finished = [Finished(**fact) for fact in facts[1:] if fact.keys() == Finished.__dataclass_fields__.keys()]
        return cast("dict[str, Any]", plan), {each.file: each for each in finished}

    def start(self, plan: dict[str, Any]) -> None:
        unfinished = self.path.with_name("journal.new")
        unfinished.write_text(json.dumps({"plan": plan}) + "\n", encoding="utf-8")
        sync(unfinished)
        unfinished.replace(self.path)
        sync(self.path.parent)

    def add(self, finished: Finished) -> None:
        # The line break first: a torn line before it stays alone.
        with self.path.open("ab") as file:
            file.write(b"\n" + json.dumps(asdict(finished)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def sync(path: Path) -> None:
    """A file's bytes, or a directory's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        fact: object = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", fact) if isinstance(fact, dict) else None
