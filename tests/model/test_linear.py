"""Products with every kind of weight, and the norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from baltoro.model.linear import FEW_ROWS, Linear, RMSNorm, product, swiglu
from baltoro.weights import fp8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fp8_linear(inputs: int, outputs: int) -> Linear:
    layer = Linear(inputs, outputs)
    quantized, scale_inv = fp8.quantize(randn(outputs, inputs, seed=1))
    layer.weight = nn.Parameter(quantized, requires_grad=False)
    layer.weight_scale_inv = nn.Parameter(scale_inv, requires_grad=False)
    return layer


@pytest.mark.parametrize("rows", [0, 1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 128), (200, 300), (1, 5)])
def test_a_block_fp8_product_equals_the_dequantized_one_whatever_the_rows(rows: int, inputs: int, outputs: int) -> None:
    layer, x = fp8_linear(inputs, outputs), randn(rows, inputs)
    assert layer.weight_scale_inv is not None
    spread = layer.weight_scale_inv.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    truth = x.double() @ (layer.weight.double() * spread[:outputs, :inputs]).T
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), truth, rtol=0, atol=1e-5 * inputs**0.5)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_kept_in_another_type_is_computed_with_in_the_type_of_x(kept: torch.dtype) -> None:
    layer = Linear(20, 30)
    layer.weight = nn.Parameter(randn(30, 20, seed=1).to(kept))
    x = randn(7, 20)
    y = layer(x)
    assert y.dtype is torch.float32
    torch.testing.assert_close(y, x @ layer.weight.float().T)
    assert layer(x.bfloat16()).dtype is torch.bfloat16


def test_the_dense_weight_is_the_one_multiplied_with() -> None:
    layer, x = fp8_linear(200, 300), randn(3, 200)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.dense(torch.float32).T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "fp8"])
def test_a_stack_of_weights_gives_what_each_gives_alone(kind: str) -> None:
    weights, x = randn(4, 200, 136, seed=1), randn(4, 20, 136)
    quantized, scale_inv = fp8.quantize(weights) if kind == "fp8" else (weights, None)
    together = product(x, quantized, scale_inv)
    for expert in range(4):
        alone = product(x[expert], quantized[expert], None if scale_inv is None else scale_inv[expert])
        torch.testing.assert_close(together[expert], alone, rtol=0, atol=1e-4)


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
