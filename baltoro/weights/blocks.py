"""Where each routed expert of a packed checkpoint lies: one block, one direct read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baltoro.errors import CheckpointError
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.layout import PACKED_SCALE, PAGE

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class ExpertBlock:
    """`offset` and `nbytes` are multiples of 4096."""

    shard: Path
    offset: int  # in the file
    nbytes: int
    # gate weight, gate scales, up weight, ...: offset inside the block and bytes; bf16 has no scales, their bytes are 0
    parts: tuple[tuple[int, int], ...]


def expert_block(checkpoint: Checkpoint, layer: int, expert: int) -> ExpertBlock:
    """Raises CheckpointError where the expert does not lie in one piece: another program has written the file."""
    prefix = f"model.layers.{layer}.mlp.experts.{expert}."
    first = checkpoint.entry(f"{prefix}gate_proj.weight")
    at = first.offset
    parts: list[tuple[int, int]] = []
    names = [f"{prefix}{each}.weight{scale}" for each in PROJECTIONS for scale in ("", PACKED_SCALE)]
    for name in (*names, f"{prefix}padding"):
        entry = checkpoint.entries.get(name)
        if entry is not None and (entry.shard, entry.offset) != (first.shard, at):
            raise _scattered(first.shard, name)
        size = 0 if entry is None else entry.nbytes
        parts.append((at - first.offset, size))
        at += size
    if first.offset % PAGE or at % PAGE:
        raise _scattered(first.shard, names[0])
    return ExpertBlock(first.shard, first.offset, at - first.offset, tuple(parts[:-1]))


def _scattered(shard: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{shard.name}: {name} is not where it belongs in the block of its expert",
        hint="the file was rewritten by another program, or is not packed; make it with `baltoro quantize`",
    )
