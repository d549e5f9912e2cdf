"""What packing costs: the packed numbers beside the source's, sampled, by class of tensors."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from baltoro.counts import BLOCK
from baltoro.kernels.formats import PANEL, Packed, unpack
from baltoro.weights.checkpoint import SCALE, Checkpoint

SAMPLED_EXPERTS = 24  # of a layer, at least, where it has as many
SAMPLED = f"16 outputs of a matrix, {SAMPLED_EXPERTS} experts of a layer, one head of its kv_b_proj"
CLASSES = {
    "self_attn.": "attention",
    ".mlp.experts.": "routed experts",
    ".mlp.shared_experts.": "shared experts",
    ".mlp.": "dense mlp",
    "lm_head.": "head",
}


class Losses:
    """Sums of squares by class. Unpacking everything would cost more than packing it, and 16 outputs of a matrix say as
    much: others for each, but the same in every run."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def matrix(self, packed: Packed, name: str, checkpoint: Checkpoint) -> None:
        """One panel of a matrix."""
        panel = zlib.crc32(name.encode()) % len(packed.data)
        start = panel * PANEL
        stop = min(start + PANEL, packed.outputs)
        self._add(name, _cut(packed, panel, panel + 1, stop - start), _rows(name, checkpoint, start, stop))

    def heads(self, stacks: Sequence[Packed], name: str, checkpoint: Checkpoint, split: list[int]) -> None:
        """One head: its keys, its values, and its keys for absorbed attention."""
        head = zlib.crc32(name.encode()) % len(stacks[0].data)
        rows = _rows(name, checkpoint, head * sum(split), (head + 1) * sum(split))
        keys, values = torch.split(rows, split)
        for stack, w in zip(stacks, (keys, values, keys.mT), strict=True):
            scales = stack.scales[head] if stack.scales.numel() else stack.scales
            self._add(name, replace(stack, data=stack.data[head], scales=scales), w)

    def _add(self, name: str, packed: Packed, w: Tensor) -> None:
        kind = next(kind for part, kind in CLASSES.items() if part in name)
        difference = (unpack(packed) - w).double().square().sum().item()
        lost, total = self.sums.get(kind, (0.0, 0.0))
        self.sums[kind] = (lost + difference, total + w.double().square().sum().item())


def errors(sums: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """Relative root-mean-square error of each class, over all shards."""
    shards = [dict(each) for each in sums]
    found: dict[str, float] = {}
    for kind in CLASSES.values():
        lost, total = (sum(shard[kind][i] for shard in shards if kind in shard) for i in (0, 1))
        if total:
            found[kind] = (lost / total) ** 0.5
    return found


def _rows(name: str, checkpoint: Checkpoint, start: int, stop: int) -> Tensor:
    """float32; scales of blocks are applied."""
    w = checkpoint.read(name)[start:stop].float()
    if name + SCALE in checkpoint:
        scales = checkpoint.read(name + SCALE).float()[torch.arange(start, stop) // BLOCK]
        w *= scales.repeat_interleave(BLOCK, 1)[:, : w.shape[1]]
    return w


def _cut(packed: Packed, start: int, stop: int, outputs: int) -> Packed:
    """Panels [start, stop) of a matrix."""
    scales = packed.scales[start:stop] if packed.scales.numel() else packed.scales
    return replace(packed, outputs=outputs, data=packed.data[start:stop], scales=scales)
