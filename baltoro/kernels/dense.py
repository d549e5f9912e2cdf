"""Plain float32 weights and a few tokens: what a small model's decode step is made of.

torch's products wake its threads for matrices that one core multiplies sooner; here a thread is woken where it pays,
and a gated layer is one call. More than `FEW` tokens, other types and gradients go to torch.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import silu

from baltoro.kernels.door import check, target_for
from baltoro.kernels.targets import native

FEW = 8  # tokens up to which a weight is read once a token or two; measured


def linear(x: Tensor, weight: Tensor, *, target: str | None = None) -> Tensor:
    """x (T, I) times the transposed weight (O, I), in x's type. Native: the same bits on every target, in any company
    of up to `FEW`."""
    target = target_for(target, x, weight)
    if target == "torch" or x.dim() != 2 or x.shape[0] > FEW:
        return torch.nn.functional.linear(x, weight.to(x.dtype))
    (T, I), O = x.shape, weight.shape[0]
    check("weight", weight, torch.float32, (O, I))
    x, weight, y = x.contiguous(), weight.contiguous(), torch.empty(T, O)
    native().dense_linear(
        target, weight.data_ptr(), x.data_ptr(), y.data_ptr(), T, I, O, torch.get_num_threads()
    )  # fmt: skip
    return y


def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, target: str | None = None) -> Tensor:
    """down(silu(gate x) * up x) of plain weights (F, D), (F, D) and (D, F); x (T, D)."""
    if target_for(target, x, gate, up, down) == "torch" or x.dim() != 2 or x.shape[0] > FEW:
        return linear(silu(linear(x, gate, target=target)) * linear(x, up, target=target), down, target=target)
    chosen, weights = torch.zeros(len(x), 1, dtype=torch.int64), torch.ones(len(x), 1)  # a mixture of one
    return experts(x, chosen, weights, *(w.unsqueeze(0) for w in (gate, up, down)), target=target)


def experts(
    x: Tensor, chosen: Tensor, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, target: str | None = None
) -> Tensor:
    """`ops.experts` of plain stacks (E, F, D), (E, F, D) and (E, D, F), touching only those that were chosen."""
    target = target_for(target, x, weights, gate, up, down)
    if target == "torch" or x.shape[0] > FEW:
        return _experts_torch(x, chosen, weights, gate, up, down)
    (T, D), K, (E, F, _) = x.shape, chosen.shape[-1], gate.shape
    check("chosen", chosen, torch.int64, (T, K))
    check("weights", weights, torch.float32, (T, K))
    check("gate", gate, torch.float32, (E, F, D))
    check("up", up, torch.float32, (E, F, D))
    check("down", down, torch.float32, (E, D, F))
    x, chosen, weights, gate, up, down = (t.contiguous() for t in (x, chosen, weights, gate, up, down))
    if not native().within(chosen.data_ptr(), chosen.numel(), E):
        raise ValueError(f"chosen holds {int(chosen.min())} .. {int(chosen.max())}, expected 0 .. {E - 1}")
    y = torch.empty(T, D)
    native().dense_experts(
        target, gate.data_ptr(), up.data_ptr(), down.data_ptr(), x.data_ptr(), chosen.data_ptr(), weights.data_ptr(),
        y.data_ptr(), T, K, D, F, torch.get_num_threads(),
    )  # fmt: skip
    return y


def _experts_torch(x: Tensor, chosen: Tensor, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for expert in cast("list[int]", chosen.unique().tolist()):
        rows, choices = torch.where(chosen == expert)
        h = x[rows]
        h = silu(h @ gate[expert].to(x.dtype).T) * (h @ up[expert].to(x.dtype).T)
        h = h @ down[expert].to(x.dtype).T
        out.index_add_(0, rows, h * weights[rows, choices, None].to(x.dtype))
    return out
