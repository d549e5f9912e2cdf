"""A token's way through latent attention, but for the products: queries are turned, the latent is kept and attended to.

cos, sin   (T, R / 2) float32, for each token and pair of rotary numbers (2 i, 2 i + 1)
cache      (any, C + R) bf16 or float32: normed latents, then the turned shared keys
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor

from baltoro.kernels import attention, ops
from baltoro.kernels.door import check, check_packed, check_scale, described, target_for
from baltoro.kernels.formats import Packed
from baltoro.kernels.norm import rms_norm
from baltoro.kernels.targets import native

DENSE_NUMBERS = 2**20  # of a kv_b that every token may read for itself


def turn(q: Tensor, cos: Tensor, sin: Tensor, *, target: str | None = None) -> Tensor:
    """The last R numbers of each head's query (T, H, N + R) turned by its position. Native: in place, if it can."""
    target = target_for(target, q, cos, sin)
    T, H, width = q.shape
    pairs = cos.shape[-1]
    if target == "torch":
        q_nope, q_pe = torch.split(q, [width - 2 * pairs, 2 * pairs], dim=-1)
        return torch.cat((q_nope, _turned(q_pe, cos.unsqueeze(1), sin.unsqueeze(1))), dim=-1)
    check("cos", cos, torch.float32, (T, pairs))
    check("sin", sin, torch.float32, (T, pairs))
    if width < 2 * pairs:
        raise ValueError(f"q is {tuple(q.shape)}, expected heads of at least the {2 * pairs} numbers that are turned")
    q, cos, sin = q.contiguous(), cos.contiguous(), sin.contiguous()
    native().rotate(
        q.data_ptr() + 4 * (width - 2 * pairs), cos.data_ptr(), sin.data_ptr(), T, H, 2 * pairs, H * width, width,
        torch.get_num_threads(),
    )  # fmt: skip
    return q


def keep(
    x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, cache: Tensor, slots: Tensor,
    *, target: str | None = None,
) -> None:  # fmt: skip
    """Write tokens into the cache: of their projection x (T, C + R) the first C numbers normed, the others turned.

    weight: (C,) of the norm; slots: (T,) int64, the row of each token, no two the same
    """
    target = target_for(target, x, weight, cos, sin)
    (T, width), pairs = x.shape, cos.shape[-1]
    latent = width - 2 * pairs
    if target == "torch" or cache.dtype not in (torch.float32, torch.bfloat16) or not cache.is_contiguous():
        normed = rms_norm(x[:, :latent], weight, eps, target=target)
        cache[slots] = torch.cat((normed, _turned(x[:, latent:], cos, sin)), dim=-1).to(cache.dtype)
        return
    check("weight", weight, torch.float32, (latent,))
    check("cos", cos, torch.float32, (T, pairs))
    check("sin", sin, torch.float32, (T, pairs))
    check("cache", cache, cache.dtype, (cache.shape[0], width))
    slots = checked_slots("slots", slots, T, cache)
    x, weight, cos, sin = (t.contiguous() for t in (x, weight, cos, sin))
    native().write_latents(
        target, x.data_ptr(), weight.data_ptr(), eps, cos.data_ptr(), sin.data_ptr(), cache.data_ptr(),
        cache.dtype is torch.bfloat16, slots.data_ptr(), T, latent, 2 * pairs, torch.get_num_threads(),
    )  # fmt: skip


def attend(
    q: Tensor, absorbed_keys: Packed, values: Packed, cache: Tensor, slots: Tensor, edges: Tensor,
    *, scale: float, target: str | None = None,
) -> Tensor:  # fmt: skip
    """Absorbed attention of one token a sequence with both products around it, as one call.

    q:       (B, H, N + R) float32, turned
    absorbed_keys, values: stacks (H, C, N) and (H, V, C)
    cache, slots, edges, scale: as in `attention.mla_decode`
    Returns: (B, H, V) float32
    """
    B, H, width = q.shape
    C, N = absorbed_keys.outputs, absorbed_keys.inputs
    check_scale(scale)
    chosen = target_for(target, q)
    if chosen == "torch":
        absorbed = torch.cat((ops.matmul_each(q[..., :N], absorbed_keys, target="torch"), q[..., N:]), dim=-1)
        context = attention.mla_decode(absorbed, cache, slots, edges, scale=scale, latent=C, target="torch")
        return ops.matmul_each(context, values, target="torch")
    check_packed("absorbed_keys", absorbed_keys, H)
    check_packed("values", values, H)
    check("cache", cache, torch.bfloat16, (cache.shape[0], C + width - N))
    if values.inputs != C or width <= N or C % attention.COLUMNS or (C + width - N) % 4 or not cache.is_contiguous():
        raise ValueError(f"q {tuple(q.shape)}, keys ({C}, {N}), values ({values.outputs}, {values.inputs}) do not fit")
    slots, edges = checked_sequences(slots, edges, B, cache)
    q, out = q.contiguous(), torch.empty(B, H, values.outputs)
    native().mla_step(
        chosen, described("absorbed_keys", absorbed_keys), described("values", values), q.data_ptr(),
        cache.data_ptr(), slots.data_ptr(), edges.data_ptr(), scale, out.data_ptr(), B, H, width - N,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def suits_dense(q: Tensor, kv_b: Tensor, cache: Tensor) -> bool:
    """Whether `attend_dense` runs natively here and is the faster way: while the cache of a step fits a core's own."""
    return target_for(None, q, kv_b) != "torch" and cache.dtype is torch.float32 and kv_b.numel() <= DENSE_NUMBERS


def attend_dense(
    q: Tensor, kv_b: Tensor, cache: Tensor, slots: Tensor, edges: Tensor, *, scale: float, target: str | None = None
) -> Tensor:
    """`attend` with a plain weight (H, N + V, C), float32 throughout but for a cache in bf16. For small models.

    q: (B, H, N + R) with R what a row of the cache is longer than C. Returns: (B, H, V) float32
    """
    (B, H, width), (_, both, C), row = q.shape, kv_b.shape, cache.shape[-1]
    N = width - (row - C)
    check_scale(scale)
    target = target_for(target, q, kv_b)
    if target == "torch":
        keys, values = torch.split(kv_b, [N, both - N], dim=1)
        absorbed = torch.cat((torch.einsum("bhn,hnc->bhc", q[..., :N], keys), q[..., N:]), dim=-1)
        cuts = cast("list[int]", edges.tolist())
        context = torch.empty(B, H, C)
        for b in range(B):
            seen = cache[slots[cuts[b] : cuts[b + 1]]].float()  # (S, C + R)
            context[b] = (absorbed[b] @ seen.T * scale).softmax(-1) @ seen[:, :C]
        return torch.einsum("bhc,hvc->bhv", context, values)
    is_bf16 = cache.dtype is torch.bfloat16
    check("kv_b", kv_b, torch.float32, (H, both, C))
    check("cache", cache, torch.bfloat16 if is_bf16 else torch.float32, (cache.shape[0], row))
    if not 0 < N < both or row < C or not cache.is_contiguous():
        raise ValueError(f"q {tuple(q.shape)}, kv_b {tuple(kv_b.shape)} and cache {tuple(cache.shape)} do not fit")
    slots, edges = checked_sequences(slots, edges, B, cache)
    q, kv_b, out = q.contiguous(), kv_b.contiguous(), torch.empty(B, H, both - N)
    native().dense_mla_step(
        target, kv_b.data_ptr(), q.data_ptr(), cache.data_ptr(), is_bf16, slots.data_ptr(), edges.data_ptr(), scale,
        out.data_ptr(), B, H, N, both - N, C, row - C, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def checked_sequences(slots: Tensor, edges: Tensor, sequences: int, cache: Tensor) -> tuple[Tensor, Tensor]:
    check("slots", slots, torch.int64, (slots.shape[0],))
    check("edges", edges, torch.int64, (sequences + 1,))
    cuts = cast("list[int]", edges.tolist())
    if cuts[0] != 0 or cuts[-1] != len(slots) or any(a >= b for a, b in itertools.pairwise(cuts)):
        raise ValueError(f"edges are {cuts}, expected to rise from 0 to {len(slots)}")
    return checked_slots("slots", slots, len(slots), cache), edges.contiguous()


def checked_slots(name: str, slots: Tensor, rows: int, cache: Tensor) -> Tensor:
    check(name, slots, torch.int64, (rows,))
    slots = slots.contiguous()
    if not native().within(slots.data_ptr(), rows, len(cache)):
        raise ValueError(f"{name} hold {int(slots.min())} .. {int(slots.max())}, the cache has {len(cache)} rows")
    return slots
