"""Products with a weight matrix, and the norm: the one place that chooses how a product is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from baltoro.kernels import ops
from baltoro.weights import fp8

FEW_ROWS = 16  # up to here reading the weights dominates, and the fp8 kernel reads a quarter of float32's bytes


def product(x: Tensor, weight: Tensor, scale_inv: Tensor | None = None) -> Tensor:
    """x times the transposed weight, computed in x's type. weight: (O, I) or a stack (E, O, I) with x (E, T, I).

    With `scale_inv` the weight is block-fp8: few rows go straight to the kernel, many pay for dequantizing once.
    """
    if scale_inv is None:
        return x @ weight.to(x.dtype).mT
    if x.dim() == 2 and x.shape[0] <= FEW_ROWS and x.dtype is torch.float32:
        return ops.matmul_fp8(x, weight, scale_inv)
    return x @ fp8.dequantize(weight, scale_inv, x.dtype).mT


class Linear(nn.Module):
    """y = x W^T. The weight is kept in any float type, or as block-fp8 with `weight_scale_inv`."""

    weight_scale_inv: Tensor | None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.register_parameter("weight_scale_inv", None)

    def forward(self, x: Tensor) -> Tensor:  # (T, I) -> (T, O)
        if self.weight_scale_inv is None:
            return linear(x, self.weight.to(x.dtype))
        return product(x, self.weight, self.weight_scale_inv)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) as plain numbers, for those who need its parts."""
        if self.weight_scale_inv is None:
            return self.weight.to(dtype)
        return fp8.dequantize(self.weight, self.weight_scale_inv, dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight; statistics in float32, the rest in x's type, as transformers does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * scaled.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up
