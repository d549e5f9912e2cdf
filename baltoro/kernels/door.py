"""What the doors of the small kernels ask before they call native code."""

from __future__ import annotations

import torch
from torch import Tensor

from baltoro.kernels.ops import chosen_target


def target_for(target: str | None, *tensors: Tensor) -> str:
    """The native target for float32 CPU tensors without a gradient, and `torch`, the twin, for all others."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
            return "torch"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "torch"
    return target or chosen_target()


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Native code reads addresses, so what it is told about them must be true, with `python -O` too."""
    if tensor.dtype is not dtype or tensor.shape != shape or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, expected {dtype} {shape} on the CPU"
        )
