"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baltoro.kernels.door import check, target_for
from baltoro.kernels.targets import native


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a router chooses. With groups > 1 only experts of the `kept_groups` best groups compete."""

    chosen: int  # K
    groups: int
    kept_groups: int
    normalized: bool  # the weights of a token sum to `factor`
    factor: float


def route(
    x: Tensor, weight: Tensor, bias: Tensor, choice: Choice, *, target: str | None = None
) -> tuple[Tensor, Tensor]:
    """The K best of sigmoid(x weight^T) + bias, weighed by the sigmoids alone.

    x:       (T, D); logits are float32 whatever comes in. Native: float32, the same bits on every target.
    weight:  (E, D) float32 or bf16; bias: (E,) float32
    Returns: weights (T, K) float32, experts (T, K) int64, best first. Native: of equals the lower number.
    """
    E = weight.shape[0]
    target = target_for(target, x, bias)
    if target == "torch" or (torch.is_grad_enabled() and weight.requires_grad):
        return _route_torch(x, weight, bias, choice)
    (T, D), is_bf16 = x.shape, weight.dtype is torch.bfloat16
    check("weight", weight, torch.bfloat16 if is_bf16 else torch.float32, (E, D))
    check("bias", bias, torch.float32, (E,))
    check_choice(choice, E)
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    weights, experts = torch.empty(T, choice.chosen), torch.empty(T, choice.chosen, dtype=torch.int64)
    native().route(
        target, weight.data_ptr(), is_bf16, bias.data_ptr(), choice.chosen, choice.groups, choice.kept_groups,
        choice.normalized, choice.factor, x.data_ptr(), weights.data_ptr(), experts.data_ptr(), T, D, E,
        torch.get_num_threads(),
    )  # fmt: skip
    return weights, experts


def check_choice(choice: Choice, experts: int) -> None:
    groups, kept = choice.groups, choice.kept_groups
    if groups == 1:
        fits = 1 <= choice.chosen <= experts
    else:  # a group is judged by its two best
        size = experts // groups if groups > 0 else 0
        fits = size >= 2 and size * groups == experts and 1 <= kept <= groups and 1 <= choice.chosen <= kept * size
    if not fits:
        raise ValueError(
            f"{choice} of {experts} experts, expected even groups of 2 or more with at least K in those kept"
        )


def _route_torch(x: Tensor, weight: Tensor, bias: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    scores = (x.float() @ weight.float().T).sigmoid()  # (T, E)
    biased = scores.detach() + bias  # (T, E)
    if choice.groups > 1:
        biased = _keep_best_groups(biased, choice)
    experts = biased.topk(choice.chosen, dim=-1).indices  # (T, K)
    weights = scores.gather(-1, experts)  # (T, K)
    if choice.normalized:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)  # scores may all underflow to 0
    return weights * choice.factor, experts


def _keep_best_groups(biased: Tensor, choice: Choice) -> Tensor:
    """-inf outside the best groups, as DeepSeek, transformers and vLLM have it (K2's modeling_deepseek.py: 0)."""
    groups = biased.view(len(biased), choice.groups, -1)  # (T, G, E / G)
    strength = groups.topk(2, dim=-1).values.sum(-1)  # (T, G)
    best = strength.topk(choice.kept_groups, dim=-1).indices
    kept = torch.zeros_like(strength, dtype=torch.bool).scatter_(-1, best, True)  # (T, G)
    return groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)
