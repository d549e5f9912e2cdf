"""Products with every kind of weight, and the norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from baltoro.kernels import ops
from baltoro.kernels.formats import FORMATS, Format, pack, pack_fp8
from baltoro.model.linear import Linear, RMSNorm, swiglu
from baltoro.weights import fp8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_is_multiplied_by_the_kernel_in_the_type_of_x(format: Format, dtype: torch.dtype) -> None:
    layer, w = Linear(128, 200), randn(200, 128, seed=1)
    packed = pack_fp8(*fp8.quantize(w)) if format == "fp8" else pack(w, format)
    layer.pack(packed)
    x = randn(5, 128).to(dtype)
    y = layer(x)
    assert y.dtype is dtype
    assert torch.equal(y, ops.matmul(x.float(), packed).to(dtype))
    assert not list(layer.parameters())


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_kept_in_another_type_is_computed_with_in_the_type_of_x(kept: torch.dtype) -> None:
    layer = Linear(20, 30)
    layer.weight = nn.Parameter(randn(30, 20, seed=1).to(kept))
    x = randn(7, 20)
    y = layer(x)
    assert y.dtype is torch.float32
    torch.testing.assert_close(y, x @ layer.weight.float().T)
    assert layer(x.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_the_norm_is_bit_for_bit_that_of_transformers(dtype: torch.dtype, eps: float) -> None:
    modeling = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    ours, theirs = RMSNorm(40, eps), modeling.DeepseekV3RMSNorm(40, eps=eps)
    ours.weight = theirs.weight = nn.Parameter((1 + 0.3 * randn(40, seed=1)).to(dtype))
    x = torch.cat((randn(5, 40), 1e-4 * randn(5, 40, seed=2), torch.zeros(1, 40))).to(dtype)  # small: eps matters
    assert torch.equal(ours(x), theirs(x))


def test_swiglu_is_silu_of_the_gate_times_up() -> None:
    gate, up = randn(3, 9), randn(3, 9, seed=1)
    torch.testing.assert_close(swiglu(gate, up), gate / (1 + torch.exp(-gate)) * up)
