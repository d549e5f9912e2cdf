from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baltoro.errors import CheckpointError
from baltoro.weights import fp8

RAGGED = [(128, 128), (1, 1), (1, 300), (300, 1), (129, 127), (576, 256), (200, 72)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blockwise(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantisation as DeepSeek's README tells it, block after block; values as float32."""
    rows, columns = w.shape
    q, scale_inv = np.zeros_like(w), np.ones((-(-rows // 128), -(-columns // 128)), np.float32)
    for i in range(scale_inv.shape[0]):
        for j in range(scale_inv.shape[1]):
            block = np.s_[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
            scale_inv[i, j] = np.abs(w[block]).max() / np.float32(448)
            q[block] = nearest_e4m3(w[block] / scale_inv[i, j])
    return q, scale_inv


SUBNORMAL = {m * 2.0**-9 for m in range(8)}
E4M3 = np.array(sorted(SUBNORMAL | {(8 + m) * 2.0**e for e in range(-9, 6) for m in range(8)} - {480.0}))  # 480 is nan


def nearest_e4m3(x: np.ndarray) -> np.ndarray:
    """Nearest of the 127 magnitudes, ties to the even one: index parity is the last mantissa bit."""
    index = np.searchsorted(E4M3, np.abs(x)).clip(1, len(E4M3) - 1)
    below, above = E4M3[index - 1], E4M3[index]
    up = np.abs(x) - below > above - np.abs(x)
    tie = np.abs(x) - below == above - np.abs(x)
    return np.copysign(np.where(up | (tie & (index % 2 == 0)), above, below), x).astype(np.float32)


def test_there_are_127_magnitudes_up_to_448() -> None:
    bits = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    assert bits.tolist() == E4M3.tolist()


@pytest.mark.parametrize("shape", RAGGED)
def test_quantize_agrees_bit_for_bit_with_a_loop_over_blocks(shape: tuple[int, int]) -> None:
    w = randn(*shape)
    q, scale_inv = fp8.quantize(w)
    truth, scales = blockwise(w.numpy())
    assert (q.dtype, scale_inv.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert scale_inv.shape == fp8.scale_shape(shape) and np.array_equal(scale_inv.numpy(), scales)
    assert np.array_equal(q.float().numpy(), truth)


@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantize_multiplies_each_value_with_the_scale_of_its_block(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    q, scale_inv = fp8.quantize(randn(*shape))
    truth = q.float() * torch.kron(scale_inv, torch.ones(128, 128))[: shape[0], : shape[1]]
    assert torch.equal(fp8.dequantize(q, scale_inv, dtype), truth.to(dtype))


def test_the_error_of_a_value_is_bounded_by_the_format() -> None:
    w = randn(300, 400)
    q, scale_inv = fp8.quantize(w)
    scale = torch.kron(scale_inv, torch.ones(128, 128))[:300, :400]
    bound = torch.maximum(w.abs() * 2**-4, scale * 2**-10)  # half a step: 3 mantissa bits, subnormals of 2^-9
    assert ((fp8.dequantize(q, scale_inv, torch.float32) - w).abs() <= bound * (1 + 1e-6)).all()


def test_the_largest_value_of_a_block_survives() -> None:
    w = randn(130, 130)
    q, scale_inv = fp8.quantize(w)
    assert q.float().abs()[:128, :128].max() == q.float().abs()[128:, 128:].max() == 448
    restored = fp8.dequantize(q, scale_inv, torch.float32)
    assert torch.allclose(restored.abs().max(), w.abs().max(), rtol=1e-6)


def test_quantizing_what_was_dequantized_changes_nothing() -> None:
    q, scale_inv = fp8.quantize(randn(200, 300))
    again, scales = fp8.quantize(fp8.dequantize(q, scale_inv, torch.float32))
    assert torch.equal(again.float(), q.float()) and torch.allclose(scales, scale_inv, rtol=1e-6)


def test_stacked_experts_are_quantized_each_for_itself() -> None:
    w = randn(3, 150, 140)
    w[1] *= 1000
    q, scale_inv = fp8.quantize(w)
    assert scale_inv.shape == (3, 2, 2)
    for expert in range(3):
        alone, scales = fp8.quantize(w[expert])
        assert torch.equal(q[expert].float(), alone.float()) and torch.equal(scale_inv[expert], scales)
        whole = fp8.dequantize(q, scale_inv, torch.float32)[expert]
        assert torch.equal(whole, fp8.dequantize(alone, scales, torch.float32))


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-45, 3e38, -3e38])
def test_blocks_of_zeros_and_extremes_come_back_finite(value: float) -> None:
    q, scale_inv = fp8.quantize(torch.full((130, 5), value))
    restored = fp8.dequantize(q, scale_inv, torch.float32)
    assert torch.allclose(restored, torch.full((130, 5), value), rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_diverged_weight_is_refused(value: float) -> None:
    w = randn(130, 130)
    w[129, 129] = value
    with pytest.raises(CheckpointError, match="holds inf or nan"):
        fp8.quantize(w)


def test_a_transposed_view_is_quantized_like_its_copy() -> None:
    w = randn(140, 260).T
    assert torch.equal(fp8.quantize(w)[0].float(), fp8.quantize(w.contiguous())[0].float())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(-100, 100), st.integers(0, 2**31))
def test_scaling_a_matrix_by_a_power_of_two_moves_only_the_scales(
    rows: int, columns: int, power: int, seed: int
) -> None:
    w = randn(rows, columns, seed=seed)
    q, scale_inv = fp8.quantize(w)
    scaled, scales = fp8.quantize(w * 2.0**power)
    assert torch.equal(q.float(), scaled.float()) and torch.equal(scales, scale_inv * 2.0**power)
