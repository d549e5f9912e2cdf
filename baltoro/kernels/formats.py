"""Weights as the kernels read them: four formats, packed into panels of 16 outputs, and back.

    bf16   2 bytes a weight
    fp8    e4m3, one float32 scale for each block of 128 x 128, as Kimi K2 is shipped
    int8   -127 .. 127, one bf16 scale for each output and `group` inputs
    int4   -8 .. 7, the same

csrc/kernels.h describes the order of the bytes. A matrix is (O, I) or a stack (E, O, I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from baltoro.counts import BLOCK
from baltoro.errors import BaltoroError
from baltoro.kernels.slab import Slab

Format = Literal["bf16", "fp8", "int8", "int4"]
FORMATS: tuple[Format, ...] = get_args(Format)
PANEL = 16  # outputs whose weights lie together

_INPUTS = {"bf16": 4, "fp8": 4, "int8": 4, "int4": 8}  # a step of the kernels
SCALES = {"bf16": torch.float32, "fp8": torch.float32, "int8": torch.bfloat16, "int4": torch.bfloat16}
_LARGEST_GROUP = {"int8": 128, "int4": 32}
# What the largest weight of a group of int4 is tried to become before all are rounded: three of them let it be -8.
# Together as good as ten scales that are taken as they are (mean squared error of normal weights 1 % lower).
_REACHES = (-8.0, -8.4, -8.8, 7.0)
_NOTHING = 2.0**-100  # a group of nothing larger is a group of zeros
_LARGEST_FP8 = 448.0
_GROUP_LIMIT = 32768


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix, or a stack of them, in one format."""

    format: Format
    outputs: int
    inputs: int
    group: int  # inputs that share a scale; 0 for bf16
    data: Tensor  # (..., ceil(O / 16), bytes of a panel) uint8
    scales: Tensor  # int: (..., panels, I / group, 16) bf16; fp8: (..., panels, ceil(I / 128)) float32; bf16: (0,)

    @property
    def experts(self) -> int | None:
        """The height of the stack; None: a single matrix."""
        return self.data.shape[0] if self.data.dim() == 3 else None

    def put(self, matrix: Packed, expert: int | None = None) -> None:
        """Copy a matrix of the same shape and format here, or into its place in the stack."""
        assert (self.format, self.outputs, self.inputs) == (matrix.format, matrix.outputs, matrix.inputs)
        for whole, part in ((self.data, matrix.data), (self.scales, matrix.scales)):
            if part.numel():
                (whole if expert is None else whole[expert]).copy_(part)

    def one(self, expert: int) -> Packed:
        """A matrix of the stack, where it lies."""
        scales = self.scales[expert] if self.scales.numel() else self.scales
        return Packed(self.format, self.outputs, self.inputs, self.group, self.data[expert], scales)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes


def group_for(format: Format, inputs: int) -> int:
    """How many inputs share a scale: the largest power of two that divides them, up to the format's best."""
    if format == "bf16":
        return 0
    if format == "fp8":
        return BLOCK
    group = _LARGEST_GROUP[format]
    while inputs % group:
        group //= 2
    if group < 8:
        raise BaltoroError(
            f"{format} takes groups of at least 8 inputs, a matrix here has {inputs}", hint="use bf16 for this model"
        )
    return group


def shapes(
    format: Format, outputs: int, inputs: int, group: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of `data` and `scales` of one matrix. group: None: `group_for`."""
    panels, steps = -(-outputs // PANEL), -(-inputs // _INPUTS[format])
    data = (panels, steps * (128 if format == "bf16" else 64))
    if format == "bf16":
        return data, (0,)
    groups = -(-inputs // (group_for(format, inputs) if group is None else group))
    return data, (panels, groups) if format == "fp8" else (panels, groups, PANEL)


def nbytes(format: Format, outputs: int, inputs: int) -> int:
    """Of one packed matrix."""
    data, scales = shapes(format, outputs, inputs)
    return math.prod(data) + math.prod(scales) * SCALES[format].itemsize


def empty(format: Format, outputs: int, inputs: int, *, slab: Slab, experts: int | None = None) -> Packed:
    """Room for a matrix, or for a stack of them, in a slab; to be filled with `Packed.put`."""
    data, scales = shapes(format, outputs, inputs)
    lead = () if experts is None else (experts,)
    return Packed(
        format, outputs, inputs, group_for(format, inputs), slab.cut((*lead, *data), torch.uint8),
        slab.cut((*lead, *scales), SCALES[format]) if format != "bf16" else torch.empty(0),
    )  # fmt: skip


def pack(w: Tensor, format: Format, *, group: int | None = None) -> Packed:
    """A matrix of any float type -> `format`, rounded to the nearest. The twin of the native `packing.pack_into`.

    group: 8 or more, dividing I; None: `group_for`.
    """
    O, I = _sizes("w", w)
    if format == "fp8":
        each = [quantize_stripe(w[..., start : start + BLOCK, :].float()) for start in range(0, O, BLOCK)]
        scale_inv = torch.stack([scales for _, scales in each], -2)
        if not bool(scale_inv.isfinite().all()):
            raise not_finite(tuple(w.shape), format)
        return pack_fp8(torch.cat([q for q, _ in each], -2), scale_inv)
    group = group_for(format, I) if group is None else group
    if format == "bf16":
        w = w.bfloat16()
        _check_finite(w, format)
        return Packed(format, O, I, 0, _panels(w, format), torch.empty(0))
    check_group("group", group, I)
    _check_finite(w, format)
    quantize = _to_int8 if format == "int8" else _to_int4
    q, scales = quantize(w.float().reshape(*w.shape[:-1], -1, group))  # (..., O, G, group), (..., O, G)
    offset = 128 if format == "int8" else 8
    data = _panels((q.flatten(-2) + offset).to(torch.uint8), format)
    return Packed(format, O, I, group, data, _by_panel(scales).mT.contiguous())


def pack_fp8(q: Tensor, scale_inv: Tensor) -> Packed:
    """Block-fp8 as weights/fp8.py has it, its bytes in another order. A weight or scale that is no number: refused."""
    O, I = _sizes("q", q)
    blocks = (*q.shape[:-2], -(-O // BLOCK), -(-I // BLOCK))
    if q.dtype is not torch.float8_e4m3fn or scale_inv.shape != blocks:
        raise ValueError(
            f"q is {q.dtype} {tuple(q.shape)} and scale_inv {tuple(scale_inv.shape)}, expected e4m3fn and {blocks}"
        )
    if bool((q.view(torch.uint8) & 0x7F == 0x7F).any()) or not bool(scale_inv.isfinite().all()):
        raise damaged_fp8(tuple(q.shape))
    scales = scale_inv.float().repeat_interleave(BLOCK // PANEL, -2)[..., : -(-O // PANEL), :].contiguous()
    return Packed("fp8", O, I, BLOCK, _panels(q.view(torch.uint8), "fp8"), scales)


def damaged_fp8(shape: tuple[int, ...]) -> BaltoroError:
    return BaltoroError(
        f"a block-fp8 weight of shape {shape} or its scales hold inf or nan",
        hint="the file is damaged, or the training run that wrote it has diverged; fetch it again",
    )


def quantize_stripe(w: Tensor) -> tuple[Tensor, Tensor]:
    """(..., <= 128, I) float32 -> q of the same shape e4m3fn, scale_inv (..., ceil(I / 128)): a row of blocks.

    A block's largest value becomes 448. A block of zeros (or of values too small for a scale) gets scale 1, one with
    inf or nan a scale that is no number either.
    """
    columns = torch.nn.functional.pad(w.abs().amax(-2), (0, -w.shape[-1] % BLOCK))
    scale = columns.view(*columns.shape[:-1], -1, BLOCK).amax(-1) / _LARGEST_FP8  # (..., ceil(I / 128))
    scale = scale.masked_fill(scale < torch.finfo(torch.float32).tiny, 1.0)
    w = w / scale.repeat_interleave(BLOCK, -1)[..., None, : w.shape[-1]]
    return w.clamp_(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn), scale


def check_group(name: str, group: int, inputs: int) -> None:
    """Of int8 and int4. A group's sum of bytes times bytes is an int32."""
    if not 8 <= group <= _GROUP_LIMIT or group % 8 or inputs % group:
        raise ValueError(
            f"{name} is {group}, expected a multiple of 8 that divides the {inputs} inputs, {_GROUP_LIMIT} at most"
        )


def as_matrix(stack: Packed) -> Packed:
    """A stack (E, O, I) whose O is a multiple of 16 as one matrix (E O, I), over the same memory."""
    assert stack.experts is not None and stack.outputs % PANEL == 0
    scales = stack.scales.flatten(0, 1) if stack.scales.numel() else stack.scales
    return replace(stack, outputs=stack.experts * stack.outputs, data=stack.data.flatten(0, 1), scales=scales)


def unpack(packed: Packed) -> Tensor:
    """(..., O, I) float32: exactly the numbers that the kernels multiply with."""
    O, I = packed.outputs, packed.inputs
    w = _rows(packed)  # (..., O, I) bf16, e4m3fn or uint8
    if packed.format == "bf16":
        return w.float()
    if packed.format == "fp8":
        scales = packed.scales.repeat_interleave(PANEL, -2)[..., :O, :].repeat_interleave(BLOCK, -1)[..., :I]
        return w.float() * scales
    offset = 128 if packed.format == "int8" else 8
    scales = packed.scales.mT.flatten(-3, -2)[..., :O, :].float()  # (..., O, G)
    grouped = (w.float() - offset).view(*w.shape[:-1], -1, packed.group)
    return (grouped * scales.unsqueeze(-1)).flatten(-2)


def not_finite(shape: tuple[int, ...], format: Format) -> BaltoroError:
    return BaltoroError(
        f"a weight of shape {shape} holds inf or nan and cannot be quantized to {format}",
        hint="the training run that wrote it has diverged; take an earlier checkpoint",
    )


def _check_finite(w: Tensor, format: Format) -> None:
    if not bool(w.isfinite().all()):
        raise not_finite(tuple(w.shape), format)


def _sizes(name: str, w: Tensor) -> tuple[int, int]:
    """O and I of a matrix or a stack of them."""
    if w.dim() not in (2, 3) or 0 in w.shape[-2:]:
        raise ValueError(f"{name} is {tuple(w.shape)}, expected (O, I) or (E, O, I)")
    return w.shape[-2], w.shape[-1]


def _to_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """(..., G, group) -> q of the same shape, scales (..., G) bf16."""
    largest = w.abs().amax(-1)
    scales = (largest / 127).bfloat16().masked_fill_(largest < _NOTHING, 1.0)
    return (w * _inverse(scales.float()).unsqueeze(-1)).round().clamp_(-127, 127), scales


def _to_int4(w: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded in several ways, each group is projected onto the result, and takes the best projection's scale."""
    low, high = w.amin(-1), w.amax(-1)
    largest = torch.where(high >= -low, high, low)  # with its sign, and the first inputs of the groups together:
    nothing = largest.abs() < _NOTHING
    numbers = (w * _inverse(largest).masked_fill_(nothing, 0.0).unsqueeze(-1)).movedim(-1, 0).contiguous()
    best_dot, best_norm = torch.zeros_like(largest), torch.ones_like(largest)
    for reach in _REACHES:
        q = (numbers * reach).clamp_(-8, 7).round_()
        dot = torch.zeros_like(largest)
        for number, integer in zip(numbers, q, strict=True):  # as the kernels add them up: to the same bits
            dot += number * integer
        norm = q.square().sum(0)  # of integers below 2^24, exact
        better = dot * dot * best_norm > best_dot * best_dot * norm
        best_dot, best_norm = torch.where(better, dot, best_dot), torch.where(better, norm, best_norm)
    scales = (largest * (best_dot / best_norm)).bfloat16().masked_fill_(nothing, 1.0)
    return (w * _inverse(scales.float()).unsqueeze(-1)).round().clamp_(-8, 7), scales


def _inverse(x: Tensor) -> Tensor:
    """Divided, not `reciprocal`, which need not be exact."""
    return torch.ones_like(x) / x


def _by_panel(x: Tensor, step: int = 1) -> Tensor:
    """(..., O, n) -> (..., panels, 16, n rounded up to `step`), zeros below and at the right."""
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % step, 0, -x.shape[-2] % PANEL))
    return x.view(*x.shape[:-2], -1, PANEL, x.shape[-1])


def _panels(w: Tensor, format: Format) -> Tensor:
    """(..., O, I) numbers of the format -> (..., panels, bytes of a panel)."""
    step = _INPUTS[format]
    w = _by_panel(w, step)
    panels = w.shape[:-2]
    w = w.view(*panels, PANEL, -1, step).transpose(-3, -2)  # (..., panels, steps, 16, inputs)
    if format == "bf16":  # two chunks a step: inputs 0 and 1, then 2 and 3
        w = w.reshape(*panels, -1, PANEL, 2, 2).transpose(-3, -2)
    elif format == "fp8":  # lanes of 4 outputs: their inputs 0 and 1, then 2 and 3
        w = w.reshape(*panels, -1, 4, 4, 2, 2).transpose(-3, -2)
    elif format == "int4":
        w = w[..., :4] | w[..., 4:] << 4
    return w.contiguous().view(torch.uint8).reshape(*panels, -1)


def _rows(packed: Packed) -> Tensor:
    """The inverse of `_panels`, without the padding."""
    data, step = packed.data, _INPUTS[packed.format]
    lead = data.shape[:-1]  # (..., panels)
    if packed.format == "bf16":
        w = data.view(torch.bfloat16).view(*lead, -1, 2, PANEL, 2).transpose(-3, -2).flatten(-2)
    elif packed.format == "fp8":
        w = data.view(torch.float8_e4m3fn).view(*lead, -1, 4, 2, 4, 2).transpose(-3, -2).flatten(-2).flatten(-3, -2)
    elif packed.format == "int4":
        both = data.view(*lead, -1, PANEL, 4)
        w = torch.cat((both & 15, both >> 4), dim=-1)
    else:
        w = data.view(*lead, -1, PANEL, step)
    w = w.transpose(-3, -2).flatten(-2)  # (..., panels, 16, inputs)
    return w.flatten(-3, -2)[..., : packed.outputs, : packed.inputs]
