"""A checkpoint's matrices -> packed for the kernels, straight into their place.

From bf16 or block-fp8 they are packed, from a packed checkpoint they are copied; to the same bits. Loading a model
(model/load.py) and writing a packed checkpoint (quantize/) both are this.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from baltoro.errors import BaltoroError, CheckpointError
from baltoro.kernels.formats import Packed
from baltoro.kernels.packing import pack_into
from baltoro.weights.checkpoint import SCALE, Checkpoint
from baltoro.weights.layout import PACKED_SCALE, head_names


def fill(to: Packed, name: str, checkpoint: Checkpoint, *, expert: int | None = None) -> None:
    """Make `to`, or one matrix of the stack that it is, the weight `name`. CheckpointErrors say shard and name."""
    if checkpoint.dtype(name) is torch.uint8:
        _copy(to, name, checkpoint, expert)
        return
    scale_inv = checkpoint.read(name + SCALE) if name + SCALE in checkpoint else None
    _pack(to, name, checkpoint, checkpoint.read(name), scale_inv, expert)
    release(name, checkpoint)


def fill_stack(to: Packed, names: Sequence[str], checkpoint: Checkpoint) -> None:
    """Make each matrix of the stack one of these weights."""
    if checkpoint.dtype(names[0]) is torch.uint8:

        def copy(expert: int) -> None:
            _copy(to, names[expert], checkpoint, expert)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(copy, range(len(names))))
        return
    for expert, name in enumerate(names):  # packing has threads of its own
        if expert + 1 < len(names):
            checkpoint.expect(names[expert + 1])
        fill(to, name, checkpoint, expert=expert)


def fill_heads(to: Sequence[Packed], name: str, checkpoint: Checkpoint, split: list[int]) -> None:
    """The stacks of kv_b_proj: keys, values, keys transposed. split: N, V."""
    if name not in checkpoint:
        for stack, part in zip(to, head_names(name), strict=True):
            _copy(stack, part, checkpoint, None)
        return
    w = checkpoint.read_weight(name, torch.float32)  # (H (N + V), C); a block of scales may hold rows of two heads
    release(name, checkpoint)
    keys, values = torch.split(w.view(-1, sum(split), w.shape[1]), split, dim=1)
    for stack, part in zip(to, (keys, values, keys.mT), strict=True):
        for head in range(len(part)):
            _pack(stack, name, checkpoint, part[head], None, head)


def release(name: str, checkpoint: Checkpoint) -> None:
    """A weight and its scales are in no memory of this process any more."""
    for each in (name, name + SCALE, name + PACKED_SCALE):
        if each in checkpoint:
            checkpoint.release(each)


def _copy(to: Packed, name: str, checkpoint: Checkpoint, expert: int | None) -> None:
    for whole, part in ((to.data, name), (to.scales, name + PACKED_SCALE)):
        if whole.numel():
            checkpoint.read_into(part, whole if expert is None else whole[expert])


def _pack(
    to: Packed, name: str, checkpoint: Checkpoint, w: Tensor, scale_inv: Tensor | None, expert: int | None
) -> None:
    try:
        pack_into(to, w, scale_inv, expert=expert)
    except BaltoroError as error:
        shard = checkpoint.entry(name).shard.name
        raise CheckpointError(f"{shard}: {name}: {error.message}", hint=error.hint) from error
