"""Products with a weight matrix, and the norm: the one place that chooses how a product is computed.

A matrix is a parameter in any float type, for training and as the reference, or it is packed for the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from baltoro.kernels import dense, norm, ops
from baltoro.kernels.formats import Packed


class Linear(nn.Module):
    """y = x W^T, computed in x's type, or as kernels/ops.py says where the weight is packed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:  # (T, I) -> (T, O)
        if self.packed is not None:
            return ops.matmul(x.float(), self.packed).to(x.dtype)
        return dense.linear(x, self.weight)

    def pack(self, packed: Packed) -> None:
        """Take this instead of the parameter `weight`, which is gone afterwards: for inference."""
        del self.weight
        self.packed = packed


class RMSNorm(nn.Module):
    """x / rms(x) * weight; statistics in float32, the rest in x's type, as transformers does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return norm.rms_norm(x, self.weight, self.eps)

    def after(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """x + added, and its norm."""
        return norm.add_rms_norm(x, added, self.weight, self.eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up
