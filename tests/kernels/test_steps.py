"""Whole steps give the bits of the single kernels that they consist of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from baltoro.kernels import latents, ops, steps
from baltoro.kernels.attention import mla_prefill
from baltoro.kernels.formats import FORMATS, Format, Packed, pack, pack_fp8
from baltoro.kernels.norm import rms_norm
from baltoro.kernels.routing import Choice, route
from baltoro.kernels.rows import Rows
from baltoro.kernels.targets import targets
from baltoro.weights import fp8

NATIVE = targets()[1:]
D, H, N, R, V, C, L = 48, 3, 16, 8, 32, 32, 40
pytestmark = pytest.mark.skipif(not NATIVE, reason="nothing was built")


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(format: Format, outputs: int, inputs: int, *, seed: int) -> Packed:
    w = randn(outputs, inputs, seed=seed) * inputs**-0.5
    return pack_fp8(*fp8.quantize(w)) if format == "fp8" else pack(w, format)


def stack(format: Format, experts: int, outputs: int, inputs: int, *, seed: int) -> Packed:
    parts = [packed(format, outputs, inputs, seed=seed + e) for e in range(experts)]
    scales = torch.stack([p.scales for p in parts]) if parts[0].scales.numel() else parts[0].scales
    return Packed(format, outputs, inputs, parts[0].group, torch.stack([p.data for p in parts]), scales)


def attention(format: Format, compressed: bool) -> dict[str, Any]:
    return {
        "q_a": packed(format, L, D, seed=0) if compressed else None,
        "q_norm": randn(L, seed=1) if compressed else None,
        "q_b": packed(format, H * (N + R), L if compressed else D, seed=2),
        "kv_a": packed(format, C + R, D, seed=3),
        "kv_norm": randn(C, seed=4),
        "keys": stack(format, H, N, C, seed=30),
        "absorbed_keys": stack(format, H, C, N, seed=10),
        "values": stack(format, H, V, C, seed=20),
        "output": packed(format, D, H * V, seed=5),
        "eps": 1e-6,
        "heads": H,
    }


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def decoding(write_slots: Tensor, slots: Tensor, edges: Tensor, cache_rows: int) -> Rows:
    """One token a sequence."""
    return Rows(
        write_slots.numpy(), decoding=np.arange(len(write_slots)), slots=slots.numpy(), edges=edges.numpy(),
        chunks=np.empty((0, 4), np.int64), chunk_slots=numbers(), cache_rows=cache_rows,
    )  # fmt: skip


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_an_attention_step_is_its_parts(
    native: str, format: Format, compressed: bool, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding tokens of sequences of 1, 40 and 7 alone; or with the last 5 of a prompt of 12 between them."""
    w, T = attention(format, compressed), 8 if mixed else 3
    x, cos, sin = randn(T, D, seed=6), randn(T, R // 2, seed=7).cos(), randn(T, R // 2, seed=7).sin()
    lengths = torch.tensor([0, 1, 40, 7]).cumsum(0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(8))
    slots, prompt, cache = order[:48], order[48:], randn(60, C + R, seed=9).bfloat16()
    new = slots[lengths[1:] - 1]
    rows, own = decoding(new, slots, lengths, 60), [0, 1, 2]
    if mixed:
        own, new = [0, 1, 7], torch.cat((new[:2], prompt[-5:], new[2:]))
        rows = Rows(
            new.numpy(), decoding=numbers(*own), slots=slots.numpy(), edges=lengths.numpy(),
            chunks=numbers(2, 5, 0, 12).reshape(1, 4), chunk_slots=prompt.numpy(), cache_rows=60,
        )  # fmt: skip

    expected_cache, q = cache.clone(), x
    if compressed:
        q = rms_norm(ops.matmul(x, w["q_a"], target=native), w["q_norm"], 1e-6, target=native)
    q = ops.matmul(q, w["q_b"], target=native).view(T, H, N + R)
    q = latents.turn(q, cos, sin, target=native)
    kv = ops.matmul(x, w["kv_a"], target=native)
    latents.keep(kv, w["kv_norm"], 1e-6, cos, sin, expected_cache, new, target=native)
    context = torch.empty(T, H, V)
    context[own] = latents.attend(
        q[own], w["absorbed_keys"], w["values"], expected_cache, slots, lengths, scale=0.3, target=native
    )  # fmt: skip
    if mixed:
        context[2:7] = mla_prefill(
            q[2:7], w["keys"], w["values"], expected_cache, prompt, scale=0.3, target=native
        )  # fmt: skip
    expected = ops.matmul(context.flatten(1), w["output"], target=native)

    step = steps.AttentionStep(**w)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found_cache = cache.clone()
        assert torch.equal(step(x, cos, sin, found_cache, rows, scale=0.3, target=native), expected)
        assert torch.equal(found_cache, expected_cache)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [0, 1, 19])
@pytest.mark.parametrize("with_shared", [True, False])
def test_a_mixture_step_is_its_parts(native: str, format: Format, tokens: int, with_shared: bool) -> None:
    choice = Choice(chosen=2, groups=1, kept_groups=1, normalized=True, factor=2.5)
    router, bias = randn(6, D, seed=0), randn(6, seed=1) * 0.1
    gate, up = stack(format, 6, 32, D, seed=10), stack(format, 6, 32, D, seed=20)
    down = stack(format, 6, D, 32, seed=30)
    shared = (stack(format, 1, 64, D, seed=40), stack(format, 1, 64, D, seed=50), stack(format, 1, D, 64, seed=60))
    x, h = randn(tokens, D, seed=2), randn(tokens, D, seed=3)

    weights, chosen = route(h, router, bias, choice, target=native)
    expected = ops.experts(h, chosen, weights, gate, up, down, target=native)
    if with_shared:
        zeros, ones = torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)
        expected = expected + ops.experts(h, zeros, ones, *shared, target=native)
    step = steps.MixtureStep(router, bias, choice, gate, up, down, shared if with_shared else None)
    found = step(h, x, target=native)
    for mine, other in zip(found, (x + expected, weights, chosen), strict=True):
        assert torch.equal(mine, other)


def test_a_mixture_may_lack_experts_that_are_never_chosen_and_refuses_a_choice_of_them() -> None:
    choice = Choice(chosen=2, groups=1, kept_groups=1, normalized=True, factor=2.5)
    router, x, h = randn(6, D, seed=0), randn(5, D, seed=2), randn(5, D, seed=3)
    gate, up, down = (stack("int8", 3, *shape, seed=n) for n, shape in enumerate(((32, D), (32, D), (D, 32))))
    never = torch.tensor([0.0, 0.0, 0.0, -2.0, -2.0, -2.0])

    weights, chosen = route(h, router, never, choice)
    y, *_ = steps.MixtureStep(router, never, choice, gate, up, down, None)(h, x)
    assert torch.equal(y, x + ops.experts(h, chosen, weights, gate, up, down))
    with pytest.raises(ValueError, match=r"experts \d .. [345] were chosen, 3 are here"):
        steps.MixtureStep(router, -never, choice, gate, up, down, None)(h, x)
    with pytest.raises(ValueError, match="gate is a stack of 3, expected at most the 2 experts of the router"):
        steps.MixtureStep(router[:2], never[:2], choice, gate, up, down, None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"q_b": packed("int8", 80, 40, seed=0)}, r"q_b is \(80, 40\), expected \(72, 40\)"),
        ({"output": packed("int8", 40, 72, seed=0)}, r"output is \(40, 72\), expected \(48, 96\)"),
        ({"kv_norm": torch.ones(31)}, r"kv_norm is torch.float32 \(31,\)"),
        ({"q_norm": torch.ones(32)}, r"q_norm is torch.float32 \(32,\)"),
        ({"heads": 4}, "^keys.data"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        steps.AttentionStep(**(attention("int8", True) | change))


def test_rows_and_states_that_do_not_fit_are_refused() -> None:
    step, cache = steps.AttentionStep(**attention("int8", True)), torch.zeros(5, C + R, dtype=torch.bfloat16)
    angle, one, zero = torch.zeros(1, R // 2), torch.tensor([0, 1]), torch.tensor([0])
    rows = decoding(zero, zero, one, 5)
    with pytest.raises(ValueError, match=r"x is torch.float32 \(1, 47\)"):
        step(torch.zeros(1, 47), angle, angle, cache, rows, scale=1.0)
    with pytest.raises(ValueError, match=r"cache is torch.bfloat16 \(4, 40\)"):
        step(torch.zeros(1, D), angle, angle, cache[:4], rows, scale=1.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"write_slots": numbers(5, 0, 1)}, r"write_slots hold 0 .. 5, expected 0 .. 4"),
        ({"slots": numbers(-1)}, r"slots hold -1 .. -1"),
        ({"edges": numbers(0, 2)}, r"edges are \[0, 2\], expected to rise from 0 to 1"),
        ({"decoding": numbers(3)}, r"decoding hold 3 .. 3, expected 0 .. 2"),
        ({"chunks": numbers(1, 2, 1, 3).reshape(1, 4)}, r"a chunk is \(1, 2, 1, 3\)"),
        ({"chunks": numbers(1, 2, 0, 1).reshape(1, 4)}, r"a chunk is \(1, 2, 0, 1\)"),
        ({"chunks": numbers(1, 1, 0, 3).reshape(1, 4)}, r"are 2, expected 3"),
        ({"chunks": numbers(1, 2, 0, 3)}, r"chunks is int64 \(4,\), expected int64 \(4, 4\)"),
        ({"chunk_slots": numbers(1, 2, 3).astype(np.int32)}, r"chunk_slots is int32"),
    ],
)
def test_rows_that_point_astray_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    fitting = {
        "write_slots": numbers(0, 2, 3), "decoding": numbers(0), "slots": numbers(0), "edges": numbers(0, 1),
        "chunks": numbers(1, 2, 0, 3).reshape(1, 4), "chunk_slots": numbers(1, 2, 3),
    }  # fmt: skip
    Rows(**fitting, cache_rows=5)
    with pytest.raises(ValueError, match=named):
        Rows(**(fitting | change), cache_rows=5)
