"""What is finished of an output directory: `DIR/.quantize/journal`, a line of JSON for each fact.

    {"plan": {"source": "...", "format": "int4", ...}}                           what is being made; always first
    {"file": "model-00001-of-00061.safetensors", "nbytes": ..., "sha256": ...}   a shard that is whole and on disk

A line is written when its shard is on disk. Of one that cannot be read the shard is made again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from baltoro.weights.durable import append_fact, read_facts, replace_facts, sync

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
            facts = read_facts(self.path)
        except FileNotFoundError:
            return None, {}
        plan = facts[0].get("plan") if facts else None
        if not isinstance(plan, dict):
            return None, {}
        finished = [Finished(**fact) for fact in facts[1:] if fact.keys() == Finished.__dataclass_fields__.keys()]
        return cast("dict[str, Any]", plan), {each.file: each for each in finished}

    def start(self, plan: dict[str, Any]) -> None:
        replace_facts(self.path, [{"plan": plan}])
        sync(self.path.parent)

    def add(self, finished: Finished) -> None:
        append_fact(self.path, asdict(finished))
        sync(self.path)
