"""RMSNorm, alone or together with the addition before it."""

from __future__ import annotations

import torch
from torch import Tensor

from baltoro.kernels.door import check, target_for
from baltoro.kernels.ops import native


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, target: str | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight.

    x:       (T, D), its rows perhaps part of longer ones. Native: float32, the same bits on every target.
    target:  one of `targets()`; None: the chosen one. Other types, devices and gradients go to the twin.
    """
    target = target_for(target, x, weight)
    if target == "torch" or x.dim() != 2:
        return _rms_norm_torch(x, weight, eps)
    T, D = x.shape
    check("weight", weight, torch.float32, (D,))
    if x.stride(1) != 1:
        x = x.contiguous()
    weight, y = weight.contiguous(), torch.empty(T, D)
    native().rms_norm(
        target, x.data_ptr(), x.stride(0), 0, weight.data_ptr(), eps, 0, y.data_ptr(), T, D, torch.get_num_threads()
    )
    return y


def add_rms_norm(
    x: Tensor, added: Tensor, weight: Tensor, eps: float, *, target: str | None = None
) -> tuple[Tensor, Tensor]:
    """x + added, and its norm as `rms_norm` has it; all (T, D)."""
    target = target_for(target, x, added, weight)
    if target == "torch" or x.dim() != 2:
        total = x + added
        return total, _rms_norm_torch(total, weight, eps)
    T, D = x.shape
    check("added", added, torch.float32, (T, D))
    check("weight", weight, torch.float32, (D,))
    x, added, weight = x.contiguous(), added.contiguous(), weight.contiguous()
    total, y = torch.empty(T, D), torch.empty(T, D)
    native().rms_norm(
        target, x.data_ptr(), D, added.data_ptr(), weight.data_ptr(), eps, total.data_ptr(), y.data_ptr(), T, D,
        torch.get_num_threads(),
    )  # fmt: skip
    return total, y


def _rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Statistics in float32, the rest in x's type, as transformers does."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * scaled.to(x.dtype)
