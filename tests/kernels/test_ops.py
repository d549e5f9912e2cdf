"""Every target of every kernel against float64, on ragged sizes."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baltoro.errors import BaltoroError
from baltoro.kernels import ops

SIZES = [
    (0, 128, 128),
    (1, 1, 1),
    (1, 128, 128),
    (2, 5, 127),
    (3, 200, 300),
    (5, 131, 129),
    (9, 64, 1000),
    (17, 257, 2049),
]


def random_weights(outputs: int, inputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Every finite e4m3 byte is equally likely: subnormals, zeros of both signs, and the largest value."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (outputs, inputs), generator=generator, dtype=torch.int64)
    codes[codes & 0x7F == 0x7F] = 0x7E  # 0x7F and 0xFF are NaN
    scale = torch.rand(-(-outputs // 128), -(-inputs // 128), generator=generator) * 1e-2 + 1e-4
    return codes.to(torch.uint8).view(torch.float8_e4m3fn), scale


def e4m3_as_float64(w: Tensor) -> Tensor:
    """By the definition of the format (OCP 8-bit floating point, section 5), not by torch's conversion."""
    byte = w.view(torch.uint8).long()
    sign = 1.0 - 2.0 * (byte >> 7).double()
    exponent, mantissa = (byte >> 3 & 15), (byte & 7).double()
    normal = (1 + mantissa / 8) * torch.exp2(exponent.double() - 7)
    value = torch.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    return sign * torch.where(byte & 0x7F == 0x7F, torch.nan, value)


def dequantized(w: Tensor, scale: Tensor) -> Tensor:
    rows, columns = torch.arange(w.shape[0]) // 128, torch.arange(w.shape[1]) // 128
    return e4m3_as_float64(w) * scale.double()[rows][:, columns]


@pytest.fixture(params=ops.targets())
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SIZES)
def test_matmul_fp8_equals_float64_within_the_bound_of_float32_sums(
    tokens: int, outputs: int, inputs: int, target: str
) -> None:
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(1))
    w, scale = random_weights(outputs, inputs, seed=2)
    y = ops.matmul_fp8(x, w, scale, target=target)

    dense = dequantized(w, scale)
    truth = x.double() @ dense.T
    # Higham, Accuracy and Stability, section 3.1: a sum of n rounded products in any order is off by at most
    # n u / (1 - n u) times the sum of their absolute values; one more rounding for weight x scale.
    n = inputs + 1
    bound = n * 2.0**-24 / (1 - n * 2.0**-24) * (x.double().abs() @ dense.abs().T)
    assert y.shape == (tokens, outputs)
    assert y.dtype is torch.float32
    assert ((y.double() - truth).abs() <= bound).all(), f"{target}: off by up to {(y - truth).abs().max():.1e}"


@pytest.mark.parametrize("inputs", [1, 16])  # the filled-up end of a row, and a whole register
def test_every_byte_means_the_number_that_the_format_defines(inputs: int, target: str) -> None:
    bytes_in_last_column = torch.zeros(256, inputs, dtype=torch.uint8)
    bytes_in_last_column[:, -1] = torch.arange(256)
    w = bytes_in_last_column.view(torch.float8_e4m3fn)
    last = torch.zeros(1, inputs)
    last[0, -1] = 1.0
    y = ops.matmul_fp8(last, w, torch.ones(2, 1), target=target)[0]
    assert torch.equal(y.double().nan_to_num(nan=1e9), e4m3_as_float64(w)[:, -1].nan_to_num(nan=1e9))


@pytest.mark.parametrize("target", ops.targets()[1:])
@given(
    tokens=st.integers(2, 11), outputs=st.integers(1, 140), inputs=st.integers(1, 300), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=25, deadline=None)
def test_a_token_gets_the_same_bits_alone_and_in_company(
    target: str, tokens: int, outputs: int, inputs: int, seed: int
) -> None:
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(seed))
    w, scale = random_weights(outputs, inputs, seed)
    together = ops.matmul_fp8(x, w, scale, target=target)
    alone = torch.cat([ops.matmul_fp8(x[t : t + 1], w, scale, target=target) for t in range(tokens)])
    assert torch.equal(together, alone)


def test_rows_of_a_wider_matrix_and_a_transposed_input_are_read_where_they_lie(target: str) -> None:
    wide, (w, scale) = torch.randn(40, 3), random_weights(256, 60, seed=5)
    view = wide.T[:, 10:30]  # (3, 20), not contiguous
    strided = w[:, 20:40]
    y = ops.matmul_fp8(view, strided, scale, target=target)
    assert torch.equal(y, ops.matmul_fp8(view.clone(), strided.clone(), scale, target=target))


def test_denormals_are_zero_mode_does_not_change_small_weights(target: str) -> None:
    w = torch.full((8, 128), 1, dtype=torch.uint8).view(torch.float8_e4m3fn)  # the smallest subnormal, 2^-9
    torch.set_flush_denormal(True)
    try:
        y = ops.matmul_fp8(torch.ones(1, 128), w, torch.ones(1, 1), target=target)
    finally:
        torch.set_flush_denormal(False)
    assert (y == 128 * 2.0**-9).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.randn(2, 129)}, "w is"),
        ({"x": torch.randn(2, 128, dtype=torch.bfloat16)}, "x is torch.bfloat16"),
        ({"w": torch.randn(200, 128)}, "w is torch.float32"),
        ({"scale": torch.ones(1, 1)}, "scale is"),
        ({"scale": torch.ones(2, 1, dtype=torch.float64)}, "scale is torch.float64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change: dict[str, Tensor], named: str) -> None:
    w, scale = random_weights(200, 128, seed=0)
    good = {"x": torch.randn(2, 128), "w": w, "scale": scale}
    ops.matmul_fp8(**good)
    with pytest.raises(ValueError, match=named):
        ops.matmul_fp8(**(good | change))


def test_a_gradient_is_refused_rather_than_lost() -> None:
    w, scale = random_weights(128, 128, seed=0)
    with pytest.raises(ValueError, match="gradient"):
        ops.matmul_fp8(torch.randn(1, 128, requires_grad=True), w, scale)


@pytest.mark.parametrize("target", ops.targets()[1:])
def test_other_python_threads_run_while_a_kernel_computes(target: str) -> None:
    x, (w, scale) = torch.randn(24, 4096), random_weights(2048, 4096, seed=0)
    stamps: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            stamps.append(time.perf_counter())

    watcher = threading.Thread(target=tick)
    watcher.start()
    try:
        for _ in range(50):  # a busy machine may not schedule the watcher within one call
            start = time.perf_counter()
            ops.matmul_fp8(x, w, scale, target=target)
            end = time.perf_counter()
            # Not at the edges: a thread that waits for the interpreter lock runs just before and just after.
            if any(start + 0.1 * (end - start) < stamp < end - 0.1 * (end - start) for stamp in list(stamps)):
                return
    finally:
        done.set()
        watcher.join()
    pytest.fail("no other thread ran during the kernel: the interpreter lock was held")


def choice(monkeypatch: pytest.MonkeyPatch, name: str | None) -> str:
    if name is None:
        monkeypatch.delenv("BALTORO_CPU", raising=False)
    else:
        monkeypatch.setenv("BALTORO_CPU", name)
    return ops.chosen_target.__wrapped__()  # as in a fresh process; the cached choice of this one stays


def test_baltoro_cpu_forces_a_target_and_without_it_the_fastest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice(monkeypatch, None) == ops.targets()[-1]
    for name in ops.targets():
        assert choice(monkeypatch, name) == name


@pytest.mark.parametrize("name", ["avx1024", "", "AVX2"])
def test_an_unknown_baltoro_cpu_is_an_error_that_lists_the_known_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BaltoroError, match=f"BALTORO_CPU is {name!r}, expected one of torch"):
        choice(monkeypatch, name)
