"""Products of packed weights: check the tensors, then call native code or its torch twin.

Native kernels release the GIL and run on `torch.get_num_threads()` threads, the caller's among them. They have no
gradient.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import silu

from baltoro.kernels.door import (
    check_mixture,
    check_packed,
    check_range,
    check_type,
    described,
    plain,
    sizes,
    target_of,
)
from baltoro.kernels.formats import Packed, unpack
from baltoro.kernels.targets import native


def matmul(x: Tensor, w: Packed, *, target: str | None = None) -> Tensor:
    """x times the transposed matrix.

    x:       (T, I) float32. With bf16 and fp8 weights it is rounded to bf16, with int8 and int4 to 8 bits and a scale
             for each group of the weights; sums are float32.
    target:  one of `targets()`; None: the chosen one. Tensors that are not on the CPU go to the twin.
    Returns: (T, O) float32. A row has the same bits whatever other rows are computed with it.
    """
    check_packed("w", w, None)
    T, _ = sizes("x", x, 2)
    check_type("x", x, torch.float32, (T, w.inputs))
    target = target_of(target, ("x", x), ("w", w.data))
    if target == "torch":
        return _matmul_torch(x, w)
    x, y = plain(x), x.new_empty(T, w.outputs)  # not torch.empty, whose default type and device others set
    native().matmul(target, described("w", w), x.data_ptr(), y.data_ptr(), T, torch.get_num_threads())
    return y


def matmul_each(x: Tensor, w: Packed, *, target: str | None = None) -> Tensor:
    """Each head's input times its own transposed matrix.

    x:       (T, H, I) float32, rounded as in `matmul`
    w:       a stack (H, O, I)
    Returns: (T, H, O) float32
    """
    T, H, _ = sizes("x", x, 3)
    check_packed("w", w, H)
    check_type("x", x, torch.float32, (T, H, w.inputs))
    target = target_of(target, ("x", x), ("w", w.data))
    if target == "torch":
        y = x.new_empty(T, H, w.outputs)
        for head in range(H):
            y[:, head] = _matmul_torch(x[:, head], w.one(head))
        return y
    x, y = plain(x), x.new_empty(T, H, w.outputs)
    native().matmul_each(target, described("w", w), x.data_ptr(), y.data_ptr(), T, H, torch.get_num_threads())
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
    E, (T, K) = gate.experts, sizes("chosen", chosen, 2)
    check_mixture(gate, up, down, experts=E, hidden=gate.inputs)
    assert E is not None
    check_type("x", x, torch.float32, (T, gate.inputs))
    check_type("chosen", chosen, torch.int64, (T, K))
    check_type("weights", weights, torch.float32, (T, K))
    target = target_of(
        target, ("x", x), ("chosen", chosen), ("weights", weights),
        ("gate", gate.data), ("up", up.data), ("down", down.data),
    )  # fmt: skip
    if target == "torch":
        check_range("chosen", chosen, E)
        return _experts_torch(x, chosen, weights, gate, up, down)
    x, chosen, weights, y = plain(x), plain(chosen), plain(weights), x.new_empty(T, gate.inputs)
    if not native().within(chosen.data_ptr(), chosen.numel(), E):
        check_range("chosen", chosen, E)
    native().experts(
        target, described("gate", gate), described("up", up), described("down", down), x.data_ptr(),
        chosen.data_ptr(), weights.data_ptr(), y.data_ptr(), T, K, E, torch.get_num_threads(),
    )  # fmt: skip
    return y


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
    # A true division: torch makes `127 / peak` of a reciprocal, and halves would go to the other integer
    inverse = torch.where(peak < 7.9e-31, 0.0, torch.full_like(peak, 127.0) / peak)
    return (x * inverse.unsqueeze(-1)).round().clamp(-127, 127), peak * peak.new_tensor(1 / 127)


def _experts_torch(x: Tensor, chosen: Tensor, weights: Tensor, gate: Packed, up: Packed, down: Packed) -> Tensor:
    y = torch.zeros_like(x)
    for expert in cast("list[int]", chosen.unique().tolist()):
        rows, choices = torch.where(chosen == expert)
        gate_w, up_w, down_w = (w.one(expert) for w in (gate, up, down))
        h = silu(_matmul_torch(x[rows], gate_w)) * _matmul_torch(x[rows], up_w)
        y.index_add_(0, rows, weights[rows, choices, None] * _matmul_torch(h, down_w))
    return y
