"""What a token does in latent attention: every target against its twin, and against the single steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from baltoro.kernels import attention, latents, ops
from baltoro.kernels.formats import FORMATS, Format, Packed, as_matrix, pack, pack_fp8
from baltoro.kernels.targets import targets
from baltoro.weights import fp8

NATIVE = targets()[1:]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angles(tokens: int, rotary: int) -> tuple[Tensor, Tensor]:
    turned = randn(tokens, rotary // 2, seed=9)
    return turned.cos(), turned.sin()


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize(
    ("tokens", "heads", "wide", "rotary"), [(0, 2, 3, 4), (1, 64, 128, 64), (5, 3, 0, 2), (70, 16, 9, 8)]
)
def test_queries_are_turned_to_the_same_bits(native: str, tokens: int, heads: int, wide: int, rotary: int) -> None:
    q = randn(tokens, heads, wide + rotary, seed=0)
    expected = latents.turn(q, *angles(tokens, rotary), target="torch")
    assert torch.equal(latents.turn(q.clone(), *angles(tokens, rotary), target=native), expected)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "latent", "rotary"), [(0, 4, 2), (1, 512, 64), (7, 33, 6), (200, 128, 32)])
def test_the_cache_gets_what_the_twin_writes(
    native: str, dtype: torch.dtype, tokens: int, latent: int, rotary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = randn(tokens, latent + rotary, seed=0), randn(latent, seed=1)
    slots = torch.randperm(tokens + 9, generator=torch.Generator().manual_seed(2))[:tokens]
    written: list[Tensor] = []
    for target, threads in (("torch", 1), (native, 1), (native, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        cache = torch.full((tokens + 9, latent + rotary), 7.0).to(dtype)
        latents.keep(x, weight, 1e-6, *angles(tokens, rotary), cache, slots, target=target)
        written.append(cache)
    assert torch.equal(written[1], written[2])
    assert torch.equal(written[0][:, latent:], written[1][:, latent:])
    one_rounding = 2.0**-7 if dtype is torch.bfloat16 else 1e-6  # norms differ in the last bit, see test_norm.py
    torch.testing.assert_close(written[1], written[0], rtol=one_rounding, atol=0)


def stack(format: Format, heads: int, outputs: int, inputs: int, seed: int) -> Packed:
    def packed(w: Tensor) -> Packed:
        return pack_fp8(*fp8.quantize(w)) if format == "fp8" else pack(w, format)

    parts = [packed(randn(outputs, inputs, seed=seed + h) * inputs**-0.5) for h in range(heads)]
    scales = torch.stack([p.scales for p in parts]) if parts[0].scales.numel() else parts[0].scales
    return Packed(format, outputs, inputs, parts[0].group, torch.stack([p.data for p in parts]), scales)


def stacks(format: Format, heads: int, latent: int, wide: int, value: int) -> tuple[Packed, Packed]:
    return stack(format, heads, latent, wide, 10), stack(format, heads, value, latent, 100)


def sequences(lengths: list[int], width: int, dtype: torch.dtype) -> dict[str, Any]:
    total = sum(lengths)
    slots = torch.randperm(total + 5, generator=torch.Generator().manual_seed(1))[:total]
    cache = randn(total + 5, width, seed=2).to(dtype)
    return {"cache": cache, "slots": slots, "edges": torch.tensor([0, *lengths]).cumsum(0), "scale": 0.2}


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("format", FORMATS)
def test_one_call_gives_the_bits_of_its_four_steps(native: str, format: Format) -> None:
    keys, values = stacks(format, 5, 64, 24, 40)
    q, seen = randn(3, 5, 24 + 8, seed=3), sequences([1, 40, 700], 64 + 8, torch.bfloat16)
    absorbed = torch.cat((ops.matmul_each(q[..., :24], keys, target=native), q[..., 24:]), dim=-1)
    context = attention.mla_decode(absorbed, **seen, latent=64, target=native)
    expected = ops.matmul_each(context, values, target=native)
    assert torch.equal(latents.attend(q, keys, values, **seen, target=native), expected)
    twin = latents.attend(q, keys, values, **seen, target="torch")
    assert (expected - twin).norm() <= 0.01 * twin.norm()  # weights of attention are rounded to bf16


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("lengths", "heads", "latent", "wide", "rotary", "value"),
    [([1], 1, 1, 1, 2, 1), ([5, 1, 40], 3, 37, 12, 6, 20), ([513], 4, 128, 32, 32, 32), ([1000, 17], 2, 64, 5, 4, 33)],
)
def test_plain_weights_attend_as_the_twin_does(
    native: str, dtype: torch.dtype, lengths: list[int], heads: int, latent: int, wide: int, rotary: int, value: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kv_b = randn(heads, wide + value, latent, seed=0) * latent**-0.5
    q, seen = randn(len(lengths), heads, wide + rotary, seed=3), sequences(lengths, latent + rotary, dtype)
    found = latents.attend_dense(q, kv_b, **seen, target=native)
    twin = latents.attend_dense(q.double().float(), kv_b, **seen, target="torch")
    torch.testing.assert_close(found, twin, rtol=1e-4, atol=1e-5)
    assert torch.equal(found, latents.attend_dense(q, kv_b, **seen, target="scalar"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(found, latents.attend_dense(q, kv_b, **seen, target=native))
    cuts = seen["edges"].tolist()
    for b, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        own: dict[str, Any] = seen | {"slots": seen["slots"][start:end], "edges": torch.tensor([0, end - start])}
        assert torch.equal(latents.attend_dense(q[b : b + 1], kv_b, **own, target=native)[0], found[b])


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("tokens", "seen", "heads", "wide", "rotary", "latent", "value"),
    [(1, 1, 2, 16, 4, 32, 32), (5, 40, 3, 32, 16, 64, 32), (133, 133, 2, 32, 8, 32, 64), (150, 431, 5, 16, 12, 96, 32)],
)
def test_a_prompt_attends_as_to_all_its_keys_and_values(
    native: str, format: Format, tokens: int, seen: int, heads: int, wide: int, rotary: int, latent: int, value: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keys, values = (stack(format, heads, outputs, latent, seed=10 * n) for n, outputs in enumerate((wide, value)))
    q = randn(tokens, heads, wide + rotary, seed=3)
    cache = randn(seen + 9, latent + rotary, seed=4).bfloat16()
    slots = torch.randperm(seen + 9, generator=torch.Generator().manual_seed(5))[:seen]

    latent_rows = cache[slots][:, :latent].float()
    k, v = (ops.matmul(latent_rows, as_matrix(w), target=native).view(seen, heads, -1) for w in (keys, values))
    k = torch.cat((k, cache[slots][:, None, latent:].float().expand(-1, heads, -1)), dim=-1)
    expected = attention.causal_attention(q, k.bfloat16(), v.bfloat16(), scale=0.2, target=native)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(attention.mla_prefill(q, keys, values, cache, slots, scale=0.2, target=native), expected)
    twin = attention.mla_prefill(q, keys, values, cache, slots, scale=0.2, target="torch")
    torch.testing.assert_close(expected, twin, rtol=2e-2, atol=2e-2)  # queries and weights of 8 bits


@pytest.mark.skipif(not NATIVE, reason="nothing was built")
def test_what_does_not_fit_is_refused_by_name() -> None:
    cache, slots, edges = torch.zeros(9, 12), torch.tensor([0, 9]), torch.tensor([0, 2])
    cos, sin = angles(2, 4)
    with pytest.raises(ValueError, match=r"slots hold 0 .. 9, the cache has 9 rows"):
        latents.keep(torch.zeros(2, 12), torch.ones(8), 1e-6, cos, sin, cache, slots)
    with pytest.raises(ValueError, match=r"weight is torch.float32 \(7,\)"):
        latents.keep(torch.zeros(2, 12), torch.ones(7), 1e-6, cos, sin, cache, slots)
    with pytest.raises(ValueError, match=r"cos is torch.float32 \(2, 2\)"):
        latents.turn(torch.zeros(3, 2, 8), cos, sin)
    kv_b = torch.zeros(2, 9, 8)
    with pytest.raises(ValueError, match=r"slots hold 0 .. 9"):
        latents.attend_dense(torch.zeros(1, 2, 8), kv_b, cache, slots, edges, scale=1.0)
    with pytest.raises(ValueError, match=r"edges are \[0, 3\], expected to rise from 0 to 2"):
        latents.attend_dense(torch.zeros(1, 2, 8), kv_b, cache, slots, torch.tensor([0, 3]), scale=1.0)
    with pytest.raises(ValueError, match="do not fit"):
        latents.attend_dense(torch.zeros(1, 2, 4), kv_b, cache, slots, edges, scale=1.0)
