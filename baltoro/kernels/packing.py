"""Numbers as a checkpoint has them -> packed weights, straight into their place.

Loading a model is this: every weight is read once and written once. The native code packs a few rows at a time, from
any of a checkpoint's types, and nothing in between is ever in memory; formats.py is its twin, with the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baltoro.counts import BLOCK
from baltoro.kernels import formats
from baltoro.kernels.formats import FORMATS, Packed
from baltoro.kernels.targets import chosen_target, native

_SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2}


def pack_into(
    to: Packed, w: Tensor, scale_inv: Tensor | None = None, *, expert: int | None = None, target: str | None = None
) -> None:
    """Fill `to`, or one matrix of the stack that it is.

    w:         (O, I) float32 or bf16, or e4m3fn with the scales of its blocks; float16 and float64 through a copy
    scale_inv: (ceil(O / 128), ceil(I / 128)) of block-fp8, see weights/fp8.py
    target:    as in ops.py
    Raises BaltoroError where a weight or a scale is inf or nan, or would be one in the format; what `to` holds then is
    of no use.
    """
    _check_place(to, expert)
    _check_source(to, w, scale_inv)
    target = "torch" if {w.device.type, to.data.device.type} != {"cpu"} else target or chosen_target()
    if target == "torch":
        to.put(_packed_torch(to, w, scale_inv), expert)
    elif not _pack_native(target, to, w, scale_inv, expert):
        shape = tuple(w.shape)
        raise formats.not_finite(shape, to.format) if scale_inv is None else formats.damaged_fp8(shape)


def _pack_native(target: str, to: Packed, w: Tensor, scale_inv: Tensor | None, expert: int | None) -> bool:
    w = (w if w.dtype in _SOURCES else w.float()).contiguous()
    factors = torch.empty(0) if scale_inv is None else scale_inv.float().contiguous()
    data, scales = (part if expert is None or not part.numel() else part[expert] for part in (to.data, to.scales))
    place = (FORMATS.index(to.format), to.outputs, to.inputs, to.group, data.data_ptr(), scales.data_ptr())
    threads = torch.get_num_threads()
    return native().pack(target, _SOURCES[w.dtype], w.data_ptr(), factors.data_ptr(), place, threads)


def _packed_torch(to: Packed, w: Tensor, scale_inv: Tensor | None) -> Packed:
    if scale_inv is None:
        return formats.pack(w, to.format, group=to.group if to.format in ("int8", "int4") else None)
    packed = formats.pack_fp8(w, scale_inv)
    return packed if to.format == "fp8" else formats.pack(formats.unpack(packed), to.format, group=to.group or None)


def _check_source(to: Packed, w: Tensor, scale_inv: Tensor | None) -> None:
    if w.shape != (to.outputs, to.inputs):
        raise ValueError(f"w is {tuple(w.shape)}, expected {(to.outputs, to.inputs)} as the place for it")
    if not w.is_floating_point() or (w.itemsize == 1 and w.dtype is not torch.float8_e4m3fn):
        raise ValueError(f"w is {w.dtype}, expected float32, bfloat16 or float8_e4m3fn")
    if (w.dtype is torch.float8_e4m3fn) != (scale_inv is not None):
        raise ValueError(f"w is {w.dtype}, expected scale_inv with float8_e4m3fn, and only with that")
    blocks = (-(-to.outputs // BLOCK), -(-to.inputs // BLOCK))
    if scale_inv is not None and scale_inv.device != w.device:
        raise ValueError(f"scale_inv is on {scale_inv.device}, w on {w.device}")
    if scale_inv is not None and (scale_inv.shape != blocks or not scale_inv.is_floating_point()):
        raise ValueError(f"scale_inv is {scale_inv.dtype} {tuple(scale_inv.shape)}, expected float32 {blocks}")


def _check_place(to: Packed, expert: int | None) -> None:
    """Native code writes to addresses, so what it is told about them must be true."""
    if (expert is None) != (to.experts is None):
        raise ValueError(f"expert is {expert}, the place is {'one matrix' if to.experts is None else 'a stack'}")
    if to.experts is not None and expert is not None and not 0 <= expert < to.experts:
        raise ValueError(f"expert is {expert}, expected 0 .. {to.experts - 1}")
    if to.format in ("int8", "int4"):
        formats.check_group("group", to.group, to.inputs)
    elif to.group != formats.group_for(to.format, to.inputs):
        raise ValueError(f"group is {to.group}, expected {formats.group_for(to.format, to.inputs)} in {to.format}")
    lead = () if to.experts is None else (to.experts,)
    for name, part, shape in zip(
        ("data", "scales"),
        (to.data, to.scales),
        formats.shapes(to.format, to.outputs, to.inputs, to.group),
        strict=True,
    ):
        expected = shape if shape == (0,) else (*lead, *shape)
        if part.shape != expected or not part.is_contiguous():
            raise ValueError(f"to.{name} is {tuple(part.shape)}, expected {expected}, contiguous")
    if to.format != "bf16" and to.scales.device != to.data.device:
        raise ValueError(f"to.scales are on {to.scales.device}, to.data on {to.data.device}")
    types = (torch.uint8, formats.SCALES[to.format])
    if (to.data.dtype, to.scales.dtype) != types:
        raise ValueError(f"to is {to.data.dtype} and {to.scales.dtype}, expected {types[0]} and {types[1]}")
