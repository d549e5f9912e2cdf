"""Latent attention over bf16 keys: one token to a cache, prompts to themselves and their past. As ops.py otherwise."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor

from baltoro.kernels import ops
from baltoro.kernels.door import (
    check_packed,
    check_range,
    check_scale,
    check_type,
    described,
    plain,
    shape_of,
    sizes,
    target_of,
)
from baltoro.kernels.formats import Packed
from baltoro.kernels.targets import chosen_target, native

COLUMNS = 32  # what the width of a value must be a multiple of


def can_attend(cache: Tensor, *, latent: int, key: int, value: int) -> bool:
    """Whether the native attention kernels take this cache and heads of these widths."""
    there = cache.device.type == "cpu" and cache.dtype is torch.bfloat16 and chosen_target() != "torch"
    return there and (latent % COLUMNS, cache.shape[-1] % 4, key % 4, value % COLUMNS) == (0, 0, 0, 0)


def mla_decode(
    q: Tensor, cache: Tensor, slots: Tensor, edges: Tensor, *, scale: float, latent: int, target: str | None = None
) -> Tensor:
    """Absorbed latent attention of one query a sequence to the rows of a cache.

    q:       (B, H, C + R) float32, rounded to bf16; both key halves of each head in the latent's space
    cache:   (any, C + R) bf16: the latent, then the shared key
    slots:   (rows,) int64, where the positions of all sequences lie in it, one sequence behind the other
    edges:   (B + 1,) int64, sequence b has slots[edges[b] : edges[b + 1]], at least one
    latent:  C, a multiple of 32
    Returns: (B, H, C) float32: the mixture of latents, weights summing to 1
    """
    (B, H, width), (rows, _) = sizes("q", q, 3), sizes("cache", cache, 2)
    check_type("q", q, torch.float32, (B, H, width))
    check_type("cache", cache, torch.bfloat16, (rows, width))
    check_type("slots", slots, torch.int64, (slots.numel(),))
    check_type("edges", edges, torch.int64, (B + 1,))
    if not 0 < latent < width or latent % COLUMNS or width % 4:
        raise ValueError(f"latent is {latent} of {width}, expected a multiple of {COLUMNS}, and the width one of 4")
    check_scale(scale)
    target = target_of(target, ("q", q), ("cache", cache), ("slots", slots), ("edges", edges))
    cuts = cast("list[int]", edges.tolist())
    if cuts[0] != 0 or cuts[-1] != len(slots) or any(a >= b for a, b in itertools.pairwise(cuts)):
        raise ValueError(f"edges are {cuts}, expected to rise from 0 to {len(slots)}")
    check_range("slots", slots, rows)
    if target == "torch":
        return _mla_decode_torch(q, cache, slots, cuts, scale, latent)
    q, cache, slots, edges = plain(q), plain(cache), plain(slots), plain(edges)
    context = q.new_empty(B, H, latent)
    native().mla_decode(
        target, q.data_ptr(), cache.data_ptr(), slots.data_ptr(), edges.data_ptr(), scale, context.data_ptr(),
        B, H, latent, width - latent, torch.get_num_threads(),
    )  # fmt: skip
    return context


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, target: str | None = None) -> Tensor:
    """softmax(scale q k^T) v for each head; the last T of the S positions ask, each sees those up to its own.

    q:       (T, H, K) float32, rounded to bf16
    k, v:    (S, H, K) and (S, H, V) bf16, S >= T; K a multiple of 4, V of 32
    Returns: (T, H, V) float32
    """
    (T, H, width), (S, _, V) = sizes("q", q, 3), sizes("v", v, 3)
    check_type("q", q, torch.float32, (T, H, width))
    check_type("k", k, torch.bfloat16, (S, H, width))
    check_type("v", v, torch.bfloat16, (S, H, V))
    if S < T or width < 1 or width % 4 or V < 1 or V % COLUMNS:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected S >= T, K a multiple of 4, V of 32"
        )
    check_scale(scale)
    target = target_of(target, ("q", q), ("k", k), ("v", v))
    if target == "torch":
        return _causal_attention_torch(q, k, v, scale)
    q, k, v, out = plain(q), plain(k), plain(v), q.new_empty(T, H, V)
    native().causal_attention(
        target, q.data_ptr(), k.data_ptr(), v.data_ptr(), scale, out.data_ptr(), T, S, H, width, V,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def mla_prefill(
    q: Tensor, keys: Packed, values: Packed, cache: Tensor, slots: Tensor, *, scale: float, target: str | None = None
) -> Tensor:
    """Expanded attention of a prompt's new tokens to all that their sequence has in the cache, themselves included.

    The bits of `causal_attention` of all keys and values, which are made here for a few heads at a time.

    q:       (T, H, N + R) float32, rounded to bf16; the last T of the S positions, T >= 1
    keys, values: stacks (H, N, C) and (H, V, C) in one format; N + R a multiple of 4, V of 32
    cache:   (any, C + R) bf16: the latent, then the shared key
    slots:   (S,) int64, the rows of the positions from 0 on
    Returns: (T, H, V) float32
    """
    (T, H, width), (rows, row), S = sizes("q", q, 3), sizes("cache", cache, 2), slots.numel()
    check_packed("keys", keys, H)
    check_packed("values", values, H)
    N, C, V, R = keys.outputs, keys.inputs, values.outputs, width - keys.outputs
    if (values.inputs, values.format, values.group) != (C, keys.format, keys.group):
        raise ValueError(f"keys {shape_of(keys)} and values {shape_of(values)} are not of one latent")
    if S < T or T < 1 or H < 1 or R < 1 or row != C + R or width % 4 or V % COLUMNS:
        raise ValueError(
            f"q {tuple(q.shape)}, keys ({N}, {C}), values ({V}, {C}), cache {tuple(cache.shape)}, {S} slots: expected "
            f"S >= T >= 1, heads of N + R, a multiple of 4, cached rows of C + R, and V a multiple of {COLUMNS}"
        )
    check_type("q", q, torch.float32, (T, H, width))
    check_type("cache", cache, torch.bfloat16, (rows, row))
    check_type("slots", slots, torch.int64, (S,))
    check_scale(scale)
    target = target_of(
        target, ("q", q), ("keys", keys.data), ("values", values.data), ("cache", cache), ("slots", slots)
    )
    check_range("slots", slots, rows)
    if target == "torch":
        seen = cache[slots].float()  # (S, C + R)
        latent = seen[:, :C]
        k, v = (
            torch.stack([ops.matmul(latent, w.one(h), target="torch") for h in range(H)], 1) for w in (keys, values)
        )
        k = torch.cat((k, seen[:, None, C:].expand(-1, H, -1)), dim=-1)
        return _causal_attention_torch(q, k.bfloat16(), v.bfloat16(), scale)
    q, cache, slots, out = plain(q), plain(cache), plain(slots), q.new_empty(T, H, V)
    native().mla_prefill(
        target, described("keys", keys), described("values", values), q.data_ptr(), cache.data_ptr(),
        slots.data_ptr(), scale, out.data_ptr(), T, S, H, R, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _mla_decode_torch(q: Tensor, cache: Tensor, slots: Tensor, edges: list[int], scale: float, latent: int) -> Tensor:
    out = q.new_empty(*q.shape[:2], latent)
    for b, (start, end) in enumerate(itertools.pairwise(edges)):
        seen = cache[slots[start:end]].float()  # (S, C + R)
        out[b] = (q[b].bfloat16().float() @ seen.T * scale).softmax(-1) @ seen[:, :latent]
    return out


def _causal_attention_torch(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    T, S = q.shape[0], k.shape[0]
    scores = torch.einsum("thk,shk->hts", q.bfloat16().float(), k.float()) * scale
    unseen = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1 + S - T)
    return torch.einsum("hts,shv->thv", scores.masked_fill(unseen, -torch.inf).softmax(-1), v.float())
