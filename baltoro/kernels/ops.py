"""One Python door for each kernel: check the tensors, then call native code or its torch twin.

Which code runs is chosen once, at the first call: the widest instruction set that was built and that
this CPU has, or the torch twin where nothing was built. `BALTORO_CPU=torch|scalar|avx2|avx512|amx` forces
one. Native kernels release the GIL and run on `torch.get_num_threads()` threads, the caller's among them.
They have no gradient.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import silu

from baltoro.counts import BLOCK
from baltoro.errors import BaltoroError
from baltoro.kernels.formats import FORMATS, PANEL, Packed, check_group, unpack

try:
    import baltoro.kernels._native as _native  # pyright: ignore[reportMissingModuleSource]  (built at install, or not)
except ImportError as error:
    _native = None
    logging.getLogger(__name__).warning(
        "baltoro: native CPU kernels are not available (%s); torch does their work, slower. "
        "Install a C++ compiler and Python's headers, then install baltoro again.",
        error,
    )


def targets() -> tuple[str, ...]:
    """What can run here, slowest first: `torch`, then the native targets of this CPU."""
    return ("torch", *(_native.targets() if _native else ()))


@functools.cache
def chosen_target() -> str:
    """The target that runs unless a call names another."""
    wanted = os.environ.get("BALTORO_CPU")
    if wanted is None:
        return targets()[-1]
    if wanted not in targets():
        raise BaltoroError(
            f"BALTORO_CPU is {wanted!r}, expected one of {', '.join(targets())}",
            hint="the others were not built, or this CPU lacks their instructions; unset BALTORO_CPU for the fastest",
        )
    return wanted


def native() -> Any:
    """The compiled module, for measuring; a BaltoroError where nothing was built."""
    if _native is None:
        raise BaltoroError("the native kernels were not built", hint="install a C++ compiler, then baltoro again")
    return _native


def matmul(x: Tensor, w: Packed, *, target: str | None = None) -> Tensor:
    """x times the transposed matrix.

    x:       (T, I) float32. With bf16 and fp8 weights it is rounded to bf16, with int8 and int4 to 8 bits and a scale
             for each group of the weights; sums are float32.
    target:  one of `targets()`; None: the chosen one. Tensors that are not on the CPU go to the twin.
    Returns: (T, O) float32. A row has the same bits whatever other rows are computed with it.
    """
    check_packed("w", w, None)
    T, _ = _sizes("x", x, 2)
    _check("x", x, torch.float32, (T, w.inputs))
    target = _target(target, ("x", x), ("w", w.data))
    if target == "torch":
        return _matmul_torch(x, w)
    assert _native is not None  # chosen_target() names what is there
    x, y = _plain(x), x.new_empty(T, w.outputs)  # not torch.empty, whose default type and device others set
    _native.matmul(target, described("w", w), x.data_ptr(), y.data_ptr(), T, torch.get_num_threads())
    return y


def matmul_each(x: Tensor, w: Packed, *, target: str | None = None) -> Tensor:
    """Each head's input times its own transposed matrix.

    x:       (T, H, I) float32, rounded as in `matmul`
    w:       a stack (H, O, I)
    Returns: (T, H, O) float32
    """
    T, H, _ = _sizes("x", x, 3)
    check_packed("w", w, H)
    _check("x", x, torch.float32, (T, H, w.inputs))
    target = _target(target, ("x", x), ("w", w.data))
    if target == "torch":
        y = x.new_empty(T, H, w.outputs)
        for head in range(H):
            y[:, head] = _matmul_torch(x[:, head], _of_expert(w, head))
        return y
    assert _native is not None
    x, y = _plain(x), x.new_empty(T, H, w.outputs)
    _native.matmul_each(target, described("w", w), x.data_ptr(), y.data_ptr(), T, H, torch.get_num_threads())
    return y


def experts(
    x: Tensor, chosen: Tensor, weights: Tensor, gate: Packed, up: Packed, down: Packed, *, target: str | None = None
) -> Tensor:
    """The routed experts: each token's sum over its experts of weight * down(silu(gate x) * up x).

    x:       (T, D) float32
    chosen:  (T, K) int64 below E; weights: (T, K) float32
    gate, up, down: stacks (E, F, D), (E, F, D) and (E, D, F) of one format
    Returns: (T, D) float32. A token's experts are added in the order of their numbers, in any company.
    """
    E, (T, K) = gate.experts, _sizes("chosen", chosen, 2)
    check_mixture(gate, up, down, experts=E, hidden=gate.inputs)
    assert E is not None
    _check("x", x, torch.float32, (T, gate.inputs))
    _check("chosen", chosen, torch.int64, (T, K))
    _check("weights", weights, torch.float32, (T, K))
    target = _target(
        target, ("x", x), ("chosen", chosen), ("weights", weights),
        ("gate", gate.data), ("up", up.data), ("down", down.data),
    )  # fmt: skip
    if target == "torch":
        _check_range("chosen", chosen, E)
        return _experts_torch(x, chosen, weights, gate, up, down)
    assert _native is not None
    x, chosen, weights, y = _plain(x), _plain(chosen), _plain(weights), x.new_empty(T, gate.inputs)
    if not _native.within(chosen.data_ptr(), chosen.numel(), E):
        _check_range("chosen", chosen, E)
    _native.experts(
        target, described("gate", gate), described("up", up), described("down", down), x.data_ptr(),
        chosen.data_ptr(), weights.data_ptr(), y.data_ptr(), T, K, E, torch.get_num_threads(),
    )  # fmt: skip
    return y


COLUMNS = 32  # what the width of a value must be a multiple of


def can_attend(cache: Tensor, *, latent: int, key: int, value: int) -> bool:
    """Whether the native attention kernels take this cache and heads of these widths."""
    native = cache.device.type == "cpu" and cache.dtype is torch.bfloat16 and chosen_target() != "torch"
    return native and (latent % COLUMNS, cache.shape[-1] % 4, key % 4, value % COLUMNS) == (0, 0, 0, 0)


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
    (B, H, width), (rows, _) = _sizes("q", q, 3), _sizes("cache", cache, 2)
    _check("q", q, torch.float32, (B, H, width))
    _check("cache", cache, torch.bfloat16, (rows, width))
    _check("slots", slots, torch.int64, (slots.numel(),))
    _check("edges", edges, torch.int64, (B + 1,))
    if not 0 < latent < width or latent % COLUMNS or width % 4:
        raise ValueError(f"latent is {latent} of {width}, expected a multiple of {COLUMNS}, and the width one of 4")
    _check_scale(scale)
    target = _target(target, ("q", q), ("cache", cache), ("slots", slots), ("edges", edges))
    cuts = cast("list[int]", edges.tolist())
    if cuts[0] != 0 or cuts[-1] != len(slots) or any(a >= b for a, b in itertools.pairwise(cuts)):
        raise ValueError(f"edges are {cuts}, expected to rise from 0 to {len(slots)}")
    _check_range("slots", slots, rows)
    if target == "torch":
        return _mla_decode_torch(q, cache, slots, cuts, scale, latent)
    assert _native is not None
    q, cache, slots, edges = _plain(q), _plain(cache), _plain(slots), _plain(edges)
    context = q.new_empty(B, H, latent)
    _native.mla_decode(
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
    (T, H, width), (S, _, V) = _sizes("q", q, 3), _sizes("v", v, 3)
    _check("q", q, torch.float32, (T, H, width))
    _check("k", k, torch.bfloat16, (S, H, width))
    _check("v", v, torch.bfloat16, (S, H, V))
    if S < T or width < 1 or width % 4 or V < 1 or V % COLUMNS:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected S >= T, K a multiple of 4, V of 32"
        )
    _check_scale(scale)
    target = _target(target, ("q", q), ("k", k), ("v", v))
    if target == "torch":
        return _causal_attention_torch(q, k, v, scale)
    assert _native is not None
    q, k, v, out = _plain(q), _plain(k), _plain(v), q.new_empty(T, H, V)
    _native.causal_attention(
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
    (T, H, width), (rows, row), S = _sizes("q", q, 3), _sizes("cache", cache, 2), slots.numel()
    check_packed("keys", keys, H)
    check_packed("values", values, H)
    N, C, V, R = keys.outputs, keys.inputs, values.outputs, width - keys.outputs
    if (values.inputs, values.format, values.group) != (C, keys.format, keys.group):
        raise ValueError(f"keys {_shape(keys)} and values {_shape(values)} are not of one latent")
    if S < T or T < 1 or H < 1 or R < 1 or row != C + R or width % 4 or V % COLUMNS:
        raise ValueError(
            f"q {tuple(q.shape)}, keys ({N}, {C}), values ({V}, {C}), cache {tuple(cache.shape)}, {S} slots: expected "
            f"S >= T >= 1, heads of N + R, a multiple of 4, cached rows of C + R, and V a multiple of {COLUMNS}"
        )
    _check("q", q, torch.float32, (T, H, width))
    _check("cache", cache, torch.bfloat16, (rows, row))
    _check("slots", slots, torch.int64, (S,))
    _check_scale(scale)
    target = _target(target, ("q", q), ("keys", keys.data), ("values", values.data), ("cache", cache), ("slots", slots))
    _check_range("slots", slots, rows)
    if target == "torch":
        seen = cache[slots].float()  # (S, C + R)
        latent = seen[:, :C]
        k, v = (torch.stack([_matmul_torch(latent, _of_expert(w, h)) for h in range(H)], 1) for w in (keys, values))
        k = torch.cat((k, seen[:, None, C:].expand(-1, H, -1)), dim=-1)
        return _causal_attention_torch(q, k.bfloat16(), v.bfloat16(), scale)
    assert _native is not None
    q, cache, slots, out = _plain(q), _plain(cache), _plain(slots), q.new_empty(T, H, V)
    _native.mla_prefill(
        target, described("keys", keys), described("values", values), q.data_ptr(), cache.data_ptr(),
        slots.data_ptr(), scale, out.data_ptr(), T, S, H, R, torch.get_num_threads(),
    )  # fmt: skip
    return out


# --- checks: native code reads addresses, so what it is told about them must be true, with `python -O` too ------------


def _target(target: str | None, *named: tuple[str, Tensor]) -> str:
    """Where to compute. All tensors must be on one device, and none may wait for a gradient."""
    device = "cpu"
    for name, tensor in named:
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} asks for a gradient, which kernels do not have: call them under torch.no_grad()")
        if not tensor.is_cpu:
            device = tensor.device.type
    if device == "cpu":
        return target or chosen_target()
    places = {name: str(tensor.device) for name, tensor in named}
    if device == "meta" or len(set(places.values())) > 1:
        raise ValueError(f"tensors are on {places}, expected all on one device, and numbers in them")
    return "torch"


def _sizes(name: str, tensor: Tensor, count: int) -> torch.Size:
    if tensor.dim() != count:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {count} sizes")
    return tensor.shape


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype is not dtype or tensor.shape != shape:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")


def check_mixture(gate: Packed, up: Packed, down: Packed, *, experts: int | None, hidden: int) -> None:
    """That these are the stacks (E, F, D), (E, F, D) and (E, D, F) of one mixture."""
    for name, w in (("gate", gate), ("up", up), ("down", down)):
        check_packed(name, w, experts)
    same = (up.format, up.outputs, up.inputs, up.group) == (gate.format, gate.outputs, gate.inputs, gate.group)
    fits = same and (down.outputs, down.inputs) == (gate.inputs, gate.outputs) and gate.inputs == hidden
    if experts is None or not fits:
        raise ValueError(f"gate {_shape(gate)}, up {_shape(up)} and down {_shape(down)} are not stacks of one mixture")


def _check_range(name: str, numbers: Tensor, end: int) -> None:
    if numbers.numel() and not (int(numbers.min()) >= 0 and int(numbers.max()) < end):
        raise ValueError(f"{name} holds {int(numbers.min())} .. {int(numbers.max())}, expected 0 .. {end - 1}")


def _check_scale(scale: float) -> None:
    """Kernels hide keys behind a score of -3e38 before they scale it, and it must stay the least."""
    if not 1e-20 <= scale <= 1e20:
        raise ValueError(f"scale is {scale}, expected a positive number, 1e-20 .. 1e20")


def check_packed(name: str, w: Packed, experts: int | None) -> None:
    """That a Packed's tensors are as large as its numbers say. formats.pack made it so; nobody else need have."""
    if w.format not in FORMATS or w.outputs < 1 or w.inputs < 1:
        raise ValueError(f"{name} is {_shape(w)}, expected one of {', '.join(FORMATS)} with outputs and inputs")
    lead = () if experts is None else (experts,)
    panels, step = -(-w.outputs // PANEL), 8 if w.format == "int4" else 4
    steps = -(-w.inputs // step)
    _check(f"{name}.data", w.data, torch.uint8, (*lead, panels, steps * (128 if w.format == "bf16" else 64)))
    if w.format == "bf16":
        _check(f"{name}.scales", w.scales, w.scales.dtype, (0,))
    elif w.format == "fp8":
        if w.group != BLOCK:
            raise ValueError(f"{name}.group is {w.group}, expected {BLOCK} in fp8")
        _check(f"{name}.scales", w.scales, torch.float32, (*lead, panels, -(-w.inputs // BLOCK)))
    else:
        check_group(f"{name}.group", w.group, w.inputs)
        _check(f"{name}.scales", w.scales, torch.bfloat16, (*lead, panels, w.inputs // w.group, PANEL))
    if not (w.data.is_contiguous() and w.scales.is_contiguous()):
        raise ValueError(f"{name} is not contiguous")
    if w.scales.is_cpu is not w.data.is_cpu and w.format != "bf16":
        raise ValueError(f"{name}.scales are on {w.scales.device}, its data on {w.data.device}")
    if w.scales.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}.scales ask for a gradient, which kernels do not have")


def described(name: str, w: Packed) -> tuple[int, int, int, int, int, int]:
    scales = w.scales.data_ptr()
    if scales % 4:
        raise ValueError(f"{name}.scales lie at the address {scales}, expected a multiple of 4")
    return FORMATS.index(w.format), w.outputs, w.inputs, w.group, w.data.data_ptr(), scales


def _plain(tensor: Tensor) -> Tensor:
    """The same numbers one behind the other, at an address that is a multiple of their size."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % tensor.itemsize else tensor


def _shape(w: Packed) -> str:
    return f"{w.format} {(*w.data.shape[:-2], w.outputs, w.inputs)}"


# --- torch twins ----------------------------------------------------------------------------------------------------


def _matmul_torch(x: Tensor, w: Packed) -> Tensor:
    if w.format in ("bf16", "fp8"):
        return x.bfloat16().float() @ unpack(w).T
    q, scales = _to_bytes(x, w.group)  # (T, G, group), (T, G)
    whole = Packed(w.format, w.outputs, w.inputs, w.group, w.data, torch.ones_like(w.scales))
    integers = unpack(whole).view(w.outputs, -1, w.group)  # (O, G, group)
    weight_scales = w.scales.float().mT.flatten(0, 1)[: w.outputs]  # (O, G)
    y = x.new_zeros(x.shape[0], w.outputs)
    for g in range(w.inputs // w.group):  # as the kernels add them up: to the same bits
        dots = q[:, g] @ integers[:, g].T  # (T, O): integers below 2^24, exact
        y += dots * (weight_scales[:, g] * scales[:, g, None])
    return y


def _to_bytes(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(T, I) -> integers -127 .. 127 as floats (T, G, group), scales (T, G)."""
    x = x.reshape(len(x), x.shape[1] // group, group)
    peak = x.abs().amax(-1)
    inverse = torch.where(peak < 7.9e-31, 0.0, 127.0 / peak)
    return (x * inverse.unsqueeze(-1)).round().clamp(-127, 127), peak * peak.new_tensor(1 / 127)


def _experts_torch(x: Tensor, chosen: Tensor, weights: Tensor, gate: Packed, up: Packed, down: Packed) -> Tensor:
    y = torch.zeros_like(x)
    for expert in cast("list[int]", chosen.unique().tolist()):
        rows, choices = torch.where(chosen == expert)
        gate_w, up_w, down_w = (_of_expert(w, expert) for w in (gate, up, down))
        h = silu(_matmul_torch(x[rows], gate_w)) * _matmul_torch(x[rows], up_w)
        y.index_add_(0, rows, weights[rows, choices, None] * _matmul_torch(h, down_w))
    return y


def _of_expert(w: Packed, expert: int) -> Packed:
    scales = w.scales[expert] if w.scales.numel() else w.scales
    return Packed(w.format, w.outputs, w.inputs, w.group, w.data[expert], scales)


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
