"""Experts that lie in blocks of memory, each with its gate, up and down: what is read from disk in one piece.

A block's place has nothing to do with the expert's number, and not all experts are there. Everything else is as in
`ops.experts`, with the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import silu

from baltoro.kernels import formats, ops
from baltoro.kernels.door import check
from baltoro.kernels.formats import Format, Packed
from baltoro.kernels.targets import chosen_target, native

PROJECTIONS = 3  # gate, up, down: weights and scales of each in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What every block of a model looks like."""

    format: Format
    hidden: int  # D
    width: int  # F
    nbytes: int
    parts: tuple[tuple[int, int], ...]  # gate weights, gate scales, up weights, ...: where in the block, and bytes

    def __post_init__(self) -> None:
        wanted = [
            math.prod(shape) * size for outputs, inputs in self.matrices for shape, size in self._of(outputs, inputs)
        ]
        found = [size for _, size in self.parts]
        last = max((at + size for at, size in self.parts), default=0)
        aligned = all(at >= 0 and at % 4 == 0 for at, _ in self.parts)
        if found != wanted or last > self.nbytes or not aligned:
            raise ValueError(f"parts are {self.parts} of {self.nbytes} bytes, expected sizes {wanted}")

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(O, I) of gate, up and down."""
        return (self.width, self.hidden), (self.width, self.hidden), (self.hidden, self.width)

    def _of(self, outputs: int, inputs: int) -> list[tuple[tuple[int, ...], int]]:
        data, scales = formats.shapes(self.format, outputs, inputs, formats.group_for(self.format, inputs))
        return [(data, 1), (scales, formats.SCALES[self.format].itemsize)]

    def views(self, block: Tensor) -> tuple[Packed, Packed, Packed]:
        """The three matrices of one block (nbytes,) uint8, where they lie."""
        found: list[Packed] = []
        for index, (outputs, inputs) in enumerate(self.matrices):
            group = formats.group_for(self.format, inputs)
            tensors: list[Tensor] = []
            for part, ((at, size), (shape, _)) in enumerate(
                zip(self.parts[2 * index : 2 * index + 2], self._of(outputs, inputs), strict=True)
            ):
                dtype = formats.SCALES[self.format] if part else torch.uint8
                tensors.append(block[at : at + size].view(dtype).view(shape))
            found.append(Packed(self.format, outputs, inputs, group, *tensors))
        return found[0], found[1], found[2]


def experts(
    x: Tensor, chosen: Tensor, weights: Tensor, shape: Shape, blocks: Tensor, places: Tensor, onto: Tensor,
    *, target: str | None = None,
) -> None:  # fmt: skip
    """Add to `onto` (T, D) what those experts give that have a place; the others are left out.

    x, chosen, weights: as in `ops.experts`
    blocks: (any, shape.nbytes) uint8, contiguous
    places: (E,) int64: which of the blocks an expert is, or -1
    """
    (T, K), (E,), count = chosen.shape, places.shape, len(blocks)
    check("x", x, torch.float32, (T, shape.hidden))
    check("chosen", chosen, torch.int64, (T, K))
    check("weights", weights, torch.float32, (T, K))
    check("onto", onto, torch.float32, (T, shape.hidden))
    check("blocks", blocks, torch.uint8, (count, shape.nbytes))
    check("places", places, torch.int64, (E,))
    if not (blocks.is_contiguous() and onto.is_contiguous()):
        raise ValueError("blocks and onto are not contiguous")
    if places.numel() and not (int(places.min()) >= -1 and int(places.max()) < count):
        raise ValueError(f"places are {int(places.min())} .. {int(places.max())}, expected -1 .. {count - 1}")
    if chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < E):
        raise ValueError(f"chosen holds {int(chosen.min())} .. {int(chosen.max())}, expected 0 .. {E - 1}")
    target = target or chosen_target()
    if target == "torch":
        for expert in cast("list[int]", chosen.unique().tolist()):  # rising
            if (place := int(places[expert])) >= 0:
                _add_torch(x, chosen == expert, weights, shape.views(blocks[place]), onto)
        return
    x, chosen, weights, places = (t.contiguous() for t in (x, chosen, weights, places))
    base = blocks.data_ptr()
    described = [
        (formats.FORMATS.index(shape.format), outputs, inputs, formats.group_for(shape.format, inputs),
         base + data, base + scales if size else 0)
        for (outputs, inputs), (data, _), (scales, size)
        in zip(shape.matrices, shape.parts[::2], shape.parts[1::2], strict=True)
    ]  # fmt: skip
    native().block_experts(
        target, described[0], described[1], described[2], shape.nbytes, places.data_ptr(), x.data_ptr(),
        chosen.data_ptr(), weights.data_ptr(), onto.data_ptr(), T, K, E, torch.get_num_threads(),
    )  # fmt: skip


def _add_torch(x: Tensor, chosen: Tensor, weights: Tensor, three: tuple[Packed, Packed, Packed], onto: Tensor) -> None:
    """chosen: (T, K) bool, where this expert is."""
    rows, choices = torch.where(chosen)
    gate, up = (ops.matmul(x[rows], w, target="torch") for w in three[:2])
    h = ops.matmul(silu(gate) * up, three[2], target="torch")
    onto.index_add_(0, rows, weights[rows, choices, None] * h)
