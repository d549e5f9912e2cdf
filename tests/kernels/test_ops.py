"""Every target of every kernel against float64 and against its twin, on ragged sizes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu

from baltoro.errors import BaltoroError
from baltoro.kernels import ops
from baltoro.kernels.formats import FORMATS, Format, Packed, pack, pack_fp8, unpack
from baltoro.kernels.targets import chosen_target, targets
from baltoro.weights import fp8

NATIVE = targets()[1:]
INTEGERS: tuple[Format, ...] = ("int8", "int4")
SIZES = [
    (0, 128, 128),
    (1, 1, 8),
    (1, 128, 128),
    (2, 5, 136),
    (3, 200, 320),
    (5, 131, 128),
    (9, 64, 1000),
    (17, 257, 2048),
]
ODD_SIZES = [(1, 1, 1), (2, 5, 127), (4, 131, 129), (9, 64, 1003)]  # for formats without groups


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(format: Format, *shape: int, seed: int = 0) -> Packed:
    if format != "fp8":
        return pack(randn(*shape, seed=seed), format)
    # Every finite e4m3 byte is equally likely: subnormals, zeros of both signs, and the largest value.
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, shape, generator=generator)
    codes[codes & 0x7F == 0x7F] = 0x7E  # 0x7F and 0xFF are NaN
    scale = torch.rand(fp8.scale_shape(shape), generator=generator) * 1e-2 + 1e-4
    return pack_fp8(codes.to(torch.uint8).view(torch.float8_e4m3fn), scale)


def e4m3_as_float64(byte: Tensor) -> Tensor:
    """By the definition of the format (OCP 8-bit floating point, section 5), not by torch's conversion."""
    byte = byte.long()
    sign = 1.0 - 2.0 * (byte >> 7).double()
    exponent, mantissa = (byte >> 3 & 15), (byte & 7).double()
    normal = (1 + mantissa / 8) * torch.exp2(exponent.double() - 7)
    value = torch.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    return sign * torch.where(byte & 0x7F == 0x7F, torch.nan, value)


@pytest.fixture(params=targets())
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return request.param


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SIZES + ODD_SIZES)
@pytest.mark.parametrize("format", ["bf16", "fp8"])
def test_float_products_equal_float64_within_the_bound_of_float32_sums(
    format: Format, tokens: int, outputs: int, inputs: int, target: str
) -> None:
    x, w = randn(tokens, inputs, seed=1), packed(format, outputs, inputs, seed=2)
    y = ops.matmul(x, w, target=target)
    rounded, dense = x.bfloat16().double(), unpack(w).double()
    # Higham, Accuracy and Stability, section 3.1: a sum of n rounded products in any order is off by at most
    # n u / (1 - n u) times the sum of their absolute values; one more rounding for each block's scale and sum.
    # vdpbf16ps takes subnormal sums for zeros: 2^-126 a product.
    n = 2 * inputs + 2
    bound = n * 2.0**-24 / (1 - n * 2.0**-24) * (rounded.abs() @ dense.abs().T) + n * 2.0**-126
    assert y.shape == (tokens, outputs)
    assert y.dtype is torch.float32
    truth = rounded @ dense.T
    assert ((y.double() - truth).abs() <= bound).all(), f"off by up to {(y - truth).abs().max():.1e}"


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SIZES)
@pytest.mark.parametrize("format", INTEGERS)
def test_integer_products_are_within_the_rounding_of_the_inputs(
    format: Format, tokens: int, outputs: int, inputs: int, target: str
) -> None:
    x, w = randn(tokens, inputs, seed=1), packed(format, outputs, inputs, seed=2)
    y = ops.matmul(x, w, target=target)
    dense = unpack(w).double()
    # An input is off by half a step of largest / 127, a sum of float32 by the bound above.
    grouped = x.double().unflatten(-1, (-1, w.group))
    half_step = (grouped.abs().amax(-1, keepdim=True) / 254 * 1.0001).expand_as(grouped).flatten(-2)
    n = inputs // w.group + 4
    bound = half_step @ dense.abs().T + n * 2.0**-23 * (x.double().abs() @ dense.abs().T + half_step @ dense.abs().T)
    assert ((y.double() - x.double() @ dense.T).abs() <= bound).all()


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SIZES)
@pytest.mark.parametrize("format", INTEGERS)
@pytest.mark.parametrize("native", NATIVE)
def test_integer_products_have_the_same_bits_on_every_target(
    native: str, format: Format, tokens: int, outputs: int, inputs: int, threads: int
) -> None:
    x, w = randn(tokens, inputs, seed=3) * 10, packed(format, outputs, inputs, seed=4)
    x[:, : inputs // 2] *= 1e-3
    assert torch.equal(ops.matmul(x, w, target=native), ops.matmul(x, w, target="torch"))


@pytest.mark.parametrize("format", INTEGERS)
def test_the_largest_integers_do_not_saturate(format: Format, target: str) -> None:
    for sign in (-1.0, 1.0):
        w = pack(torch.full((16, 256), sign), format)
        x = torch.ones(1, 256)
        assert torch.equal(ops.matmul(x, w, target=target), x @ unpack(w).T)


def test_every_e4m3_byte_means_what_the_format_says(target: str) -> None:
    """But for the two NaNs, which no weight is: packing refuses them."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    w = pack_fp8(codes.view(256, 1).view(torch.float8_e4m3fn), torch.ones(2, 1))
    y = ops.matmul(torch.ones(1, 1), w, target=target)[0]
    assert torch.equal(y.double(), e4m3_as_float64(codes))


def test_subnormal_weights_count_where_torch_flushes_them(target: str) -> None:
    w = pack_fp8(torch.full((16, 128), 1, dtype=torch.uint8).view(torch.float8_e4m3fn), torch.ones(1, 1))
    before = ops.matmul(torch.ones(2, 128), w, target=target)
    torch.set_flush_denormal(True)
    try:
        flushed = ops.matmul(torch.ones(2, 128), w, target=target)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(before, torch.full((2, 16), 128 * 2.0**-9))
    assert torch.equal(flushed, before)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("native", NATIVE)
@given(tokens=st.integers(2, 15), outputs=st.integers(1, 140), groups=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_token_gets_the_same_bits_alone_and_in_company(
    native: str, format: Format, tokens: int, outputs: int, groups: int, seed: int
) -> None:
    x, w = randn(tokens, 32 * groups, seed=seed), packed(format, outputs, 32 * groups, seed=seed)
    together = ops.matmul(x, w, target=native)
    alone = torch.cat([ops.matmul(x[t : t + 1], w, target=native) for t in range(tokens)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_the_result(format: Format, bad: float, target: str) -> None:
    x = torch.ones(2, 64)
    x[1, 40] = bad
    y = ops.matmul(x, packed(format, 20, 64), target=target)
    assert y[0].isfinite().all()
    assert not y[1].isfinite().any()


@pytest.mark.parametrize("format", INTEGERS)
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-37, 1e-30, 1e30])
def test_very_small_and_very_large_inputs_lose_nothing_that_matters(format: Format, size: float, target: str) -> None:
    w = packed(format, 20, 64)
    x = torch.ones(1, 64) * size
    torch.testing.assert_close(ops.matmul(x, w, target=target), x @ unpack(w).T, rtol=1e-4, atol=1e-28)


def test_denormals_are_zero_mode_does_not_change_small_weights(target: str) -> None:
    smallest = torch.full((8, 128), 1, dtype=torch.uint8).view(torch.float8_e4m3fn)  # the subnormal 2^-9
    w = pack_fp8(smallest, torch.ones(1, 1))
    torch.set_flush_denormal(True)
    try:
        y = ops.matmul(torch.ones(1, 128), w, target=target)
    finally:
        torch.set_flush_denormal(False)
    assert (y == 128 * 2.0**-9).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("tokens", "heads", "outputs", "inputs"), [(0, 2, 16, 32), (1, 64, 32, 16), (7, 3, 37, 64)])
def test_each_head_is_multiplied_with_its_own_matrix(
    format: Format, tokens: int, heads: int, outputs: int, inputs: int, target: str, threads: int
) -> None:
    w, x = packed(format, heads, outputs, inputs), randn(tokens, heads, inputs, seed=1)
    y = ops.matmul_each(x, w, target=target)
    assert y.shape == (tokens, heads, outputs)
    for head in range(heads):
        alone = replace(w, data=w.data[head], scales=_of(w, head))
        assert torch.equal(y[:, head], ops.matmul(x[:, head], alone, target=target))


# --- experts --------------------------------------------------------------------------------------------------------


def mixture(format: Format, num_experts: int, hidden: int, width: int) -> tuple[Packed, Packed, Packed]:
    gate, up = (packed(format, num_experts, width, hidden, seed=seed) for seed in (1, 2))
    return gate, up, packed(format, num_experts, hidden, width, seed=3)


def routed(tokens: int, chosen: int, num_experts: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(tokens, num_experts, generator=generator).argsort(-1)[:, :chosen]
    return order, torch.rand(tokens, chosen, generator=generator)


MIXTURES = [(0, 2, 4, 32, 32), (1, 8, 384, 64, 32), (1, 1, 1, 128, 160), (7, 2, 16, 128, 64), (40, 3, 5, 96, 32)]


@pytest.mark.parametrize(("tokens", "chosen", "num_experts", "hidden", "width"), MIXTURES)
@pytest.mark.parametrize("format", FORMATS)
def test_experts_equal_a_plain_loop(
    format: Format, tokens: int, chosen: int, num_experts: int, hidden: int, width: int, target: str, threads: int
) -> None:
    gate, up, down = mixture(format, num_experts, hidden, width)
    who, weight = routed(tokens, chosen, num_experts)
    x = randn(tokens, hidden, seed=5) * 0.1
    y = ops.experts(x, who, weight, gate, up, down, target=target)
    truth = torch.zeros(tokens, hidden)
    for t in range(tokens):
        for expert, share in zip(who[t].tolist(), weight[t].tolist(), strict=True):
            g, u, d = (replace(w, data=w.data[expert], scales=_of(w, expert)) for w in (gate, up, down))
            h = silu(ops.matmul(x[t : t + 1], g, target="torch")) * ops.matmul(x[t : t + 1], u, target="torch")
            truth[t] += share * ops.matmul(h, d, target="torch")[0]
    # Beside float32 sums, a hidden value on the edge between two integers (or bf16 numbers) may be rounded the other
    # way: one step of one input, 1 / 127 (2^-8) of the largest, hence the norm.
    assert (y - truth).norm() <= 2e-3 * truth.norm()


def _of(w: Packed, expert: int) -> Tensor:
    return w.scales[expert] if w.scales.numel() else w.scales


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("native", NATIVE)
def test_a_tokens_experts_have_the_same_bits_in_any_company_and_on_any_number_of_threads(
    native: str, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, up, down = mixture(format, 16, 128, 64)
    who, weight = routed(23, 4, 16)
    x = randn(23, 128, seed=6)
    results: list[Tensor] = []
    for count in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        results.append(ops.experts(x, who, weight, gate, up, down, target=native))
    one = [
        ops.experts(x[t : t + 1], who[t : t + 1], weight[t : t + 1], gate, up, down, target=native) for t in range(23)
    ]
    for other in (*results[1:], torch.cat(one)):
        assert torch.equal(results[0], other)


def test_silu_is_right_where_exp_overflows_and_where_it_vanishes(target: str) -> None:
    values = torch.tensor(
        [-1e5, -200.0, -88.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 88.0, 200.0, 1e5, 3.0, 5.0, 7.0]
    )
    identity = pack(torch.eye(16), "bf16")
    stack = replace(identity, data=identity.data.unsqueeze(0))
    x = values.bfloat16().float()[:, None] * torch.eye(16)  # row i holds value i at place i
    who, weight = torch.zeros(16, 1, dtype=torch.int64), torch.ones(16, 1)
    ones = pack(torch.ones(16, 16), "bf16")
    up = replace(ones, data=ones.data.unsqueeze(0))
    y = ops.experts(x, who, weight, stack, up, stack, target=target).diagonal()
    expected = (silu(x.double()) * x.double()).float().diagonal()
    torch.testing.assert_close(y, expected, rtol=2.0**-7, atol=1e-12)


# --- the door -------------------------------------------------------------------------------------------------------


def test_an_input_is_read_where_it_lies(target: str) -> None:
    wide, w = randn(64, 3, seed=0), packed("int8", 48, 32)
    view = wide.T[:, 10:42]  # (3, 32), not contiguous
    assert torch.equal(ops.matmul(view, w, target=target), ops.matmul(view.clone(), w, target=target))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.randn(2, 129)}, "x is"),
        ({"x": torch.randn(2, 128, dtype=torch.bfloat16)}, "x is torch.bfloat16"),
        ({"outputs": 300}, "w.data is"),
        ({"inputs": 256}, "w.data is"),
        ({"group": 12}, "w.group is 12"),
        ({"group": 256}, "w.group is 256"),
        ({"format": "int8"}, "w.data is"),
        ({"scales": torch.ones(13, 4, 16)}, "w.scales is torch.float32"),
        ({"scales": torch.ones(12, 4, 16, dtype=torch.bfloat16)}, "w.scales is"),
        ({"data": torch.zeros(13, 2048, dtype=torch.uint8)[:, ::2]}, "w is not contiguous"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    x, w = torch.randn(2, 128), packed("int4", 200, 128)
    ops.matmul(x, w)
    x = change.pop("x", x)
    with pytest.raises(ValueError, match=named):
        ops.matmul(x, replace(w, **change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chosen": torch.full((2, 2), 4)}, "chosen holds 4 .. 4, expected 0 .. 3"),
        ({"chosen": torch.full((2, 2), -1)}, "chosen holds -1"),
        ({"chosen": torch.zeros(2, 2)}, "chosen is torch.float32"),
        ({"weights": torch.zeros(2, 3)}, "weights is"),
        ({"up": packed("int4", 4, 64, 64)}, "not stacks of one mixture"),
        ({"down": packed("int4", 4, 64, 32)}, "not stacks of one mixture"),
        ({"down": packed("int4", 3, 32, 64)}, "down.data is"),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    gate, up, down = mixture("int4", 4, 32, 64)
    who, weight = routed(2, 2, 4)
    good = {"x": torch.randn(2, 32), "chosen": who, "weights": weight, "gate": gate, "up": up, "down": down}
    ops.experts(**good)
    with pytest.raises(ValueError, match=named):
        ops.experts(**(good | change))


def test_a_gradient_is_refused_rather_than_lost() -> None:
    with pytest.raises(ValueError, match="gradient"):
        ops.matmul(torch.randn(1, 128, requires_grad=True), packed("int8", 128, 128))


@pytest.mark.parametrize("native", NATIVE)
def test_other_python_threads_run_while_a_kernel_computes(native: str) -> None:
    x, w = torch.randn(24, 4096), packed("fp8", 2048, 4096)
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
            ops.matmul(x, w, target=native)
            end = time.perf_counter()
            # Not at the edges: a thread that waits for the interpreter lock runs just before and just after.
            if any(start + 0.1 * (end - start) < stamp < end - 0.1 * (end - start) for stamp in list(stamps)):
                return
    finally:
        done.set()
        watcher.join()
    pytest.fail("no other thread ran during the kernel: the interpreter lock was held")


@pytest.mark.skipif(not NATIVE, reason="no native kernels were built")
def test_calls_from_many_threads_at_once_are_all_right(threads: int) -> None:
    w = packed("int4", 512, 256)
    inputs = [randn(3, 256, seed=seed) for seed in range(8)]
    expected = [ops.matmul(x, w) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        wrong.extend(index for _ in range(50) if not torch.equal(ops.matmul(inputs[index], w), expected[index]))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


Choice = Callable[[str | None], str]


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> Choice:
    def choose(name: str | None) -> str:
        if name is None:
            monkeypatch.delenv("BALTORO_CPU", raising=False)
        else:
            monkeypatch.setenv("BALTORO_CPU", name)
        return chosen_target.__wrapped__()  # as in a fresh process; the cached choice of this one stays

    return choose


def test_baltoro_cpu_forces_a_target_and_without_it_the_fastest_runs(choice: Choice) -> None:
    assert choice(None) == targets()[-1]
    for name in targets():
        assert choice(name) == name


@pytest.mark.parametrize("name", ["avx1024", "", "AVX2"])
def test_an_unknown_baltoro_cpu_is_an_error_that_lists_the_known_ones(name: str, choice: Choice) -> None:
    with pytest.raises(BaltoroError, match=f"BALTORO_CPU is {name!r}, expected one of torch"):
        choice(name)
