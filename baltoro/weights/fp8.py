"""Block-fp8: e4m3 values, and one float32 scale for each block of 128 x 128.

    weight[o, i] = float(q[o, i]) * scale_inv[o // 128, i // 128]

In spite of its name `scale_inv` is what one multiplies with. Blocks at the lower and right edge may be partial.
Source: deepseek-ai/DeepSeek-V3 README_WEIGHTS.md; the values equal its kernels' bit for bit.

Both directions go through a stripe of 128 rows at a time, so beside input and output they hold 128 rows in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baltoro.counts import BLOCK, is_quantized
from baltoro.errors import CheckpointError
from baltoro.kernels.formats import quantize_stripe

__all__ = ["BLOCK", "dequantize", "is_quantized", "quantize", "scale_shape"]


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(..., O, I) -> (..., ceil(O / 128), ceil(I / 128))."""
    return (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))


def quantize(w: Tensor) -> tuple[Tensor, Tensor]:
    """(..., O, I) of any float type -> q (..., O, I) e4m3fn, scale_inv (..., ceil(O / 128), ceil(I / 128)) float32.

    A block's largest value becomes 448, e4m3fn's largest. A block of zeros (or too small for a scale) gets scale 1.
    Relative error at most 2^-4 of a value, or 2^-10 of the scale where the value is that small.
    """
    q = torch.empty(w.shape, dtype=torch.float8_e4m3fn, device=w.device)
    scale_inv = torch.empty(scale_shape(tuple(w.shape)), dtype=torch.float32, device=w.device)
    for matrix, q_out, scale_out in zip(_matrices(w), _matrices(q), _matrices(scale_inv), strict=True):
        for row, start in enumerate(range(0, matrix.shape[0], BLOCK)):
            q_out[start : start + BLOCK], scale_out[row] = quantize_stripe(matrix[start : start + BLOCK].float())
    if not bool(scale_inv.isfinite().all()):
        raise CheckpointError(
            f"a weight of shape {tuple(w.shape)} holds inf or nan and cannot be quantized to fp8",
            hint="the training run that wrote it has diverged; take an earlier checkpoint",
        )
    return q, scale_inv


def dequantize(q: Tensor, scale_inv: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(..., O, I) e4m3fn and its scales -> (..., O, I). Multiplied in float32, rounded to `dtype` once."""
    assert tuple(scale_inv.shape) == scale_shape(tuple(q.shape)), (q.shape, scale_inv.shape)
    w = torch.empty(q.shape, dtype=dtype, device=q.device)
    for matrix, scales, out in zip(_matrices(q), _matrices(scale_inv), _matrices(w), strict=True):
        for row, start in enumerate(range(0, matrix.shape[0], BLOCK)):
            stripe = matrix[start : start + BLOCK].float()
            out[start : start + BLOCK] = stripe.mul_(_widen(scales[row].float(), stripe.shape[1]))
    return w


def _matrices(x: Tensor) -> list[Tensor]:
    """Views of the (O, I) matrices in (..., O, I)."""
    return list(x.flatten(0, -3).unbind(0)) if x.dim() > 2 else [x]


def _widen(scale: Tensor, width: int) -> Tensor:
    """(ceil(I / 128),) -> (I,)."""
    return scale.repeat_interleave(BLOCK)[:width]
