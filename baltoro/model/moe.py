"""Mixture of experts: the router, the routed experts, the shared one, and who was chosen."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from baltoro.config import ModelConfig
from baltoro.kernels import ops
from baltoro.kernels.formats import Packed
from baltoro.model.linear import Linear, swiglu


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)): a dense layer, or the shared experts as one."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:  # (T, D)
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Routing(NamedTuple):
    weights: Tensor  # (T, K) float32; rows sum to routed_scaling_factor where norm_topk_prob
    experts: Tensor  # (T, K) int64


class Router(nn.Module):
    """Choose K experts for every token.

    The bias steers the choice and never the mixture: weights come from the unbiased scores. With
    n_group > 1 only the experts of the topk_group best groups compete (best by their two highest scores).
    Source: DeepSeek-V3 report, section 2.1.2. Kimi K2 has one group, so no group filter.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(config.n_routed_experts), requires_grad=False)

    def forward(self, x: Tensor) -> Routing:  # (T, D)
        config = self.config
        scores = (x.float() @ self.weight.float().T).sigmoid()  # (T, E)
        choice = scores.detach() + self.e_score_correction_bias  # (T, E)
        if config.n_group > 1:
            choice = self._keep_best_groups(choice)
        experts = choice.topk(config.num_experts_per_tok, dim=-1).indices  # (T, K)
        weights = scores.gather(-1, experts)  # (T, K)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)  # scores may all underflow to 0
        return Routing(weights * config.routed_scaling_factor, experts)

    def _keep_best_groups(self, choice: Tensor) -> Tensor:
        """-inf outside the best groups, as DeepSeek, transformers and vLLM have it (K2's modeling_deepseek.py: 0)."""
        groups = choice.view(len(choice), self.config.n_group, -1)  # (T, G, E / G)
        strength = groups.topk(2, dim=-1).values.sum(-1)  # (T, G)
        best = strength.topk(self.config.topk_group, dim=-1).indices
        kept = torch.zeros_like(strength, dtype=torch.bool).scatter_(-1, best, True)  # (T, G)
        return groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)


class Experts(nn.Module):
    """All routed experts of a layer, stacked. The checkpoint keeps them apart; model/load.py translates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, hidden, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_proj = StackedLinear(experts, hidden, width)
        self.up_proj = StackedLinear(experts, hidden, width)
        self.down_proj = StackedLinear(experts, width, hidden)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:  # (T, D)
        gate, up, down = self.gate_proj.packed, self.up_proj.packed, self.down_proj.packed
        if gate is not None and up is not None and down is not None:
            return ops.experts(x.float(), routing.experts, routing.weights, gate, up, down).to(x.dtype)
        experts = self.gate_proj.weight.shape[0]
        if routing.experts.numel() < 4 * experts:
            return self._one_by_one(x, routing)
        return self._grouped(x, routing, experts)

    def _one_by_one(self, x: Tensor, routing: Routing) -> Tensor:
        """Few tokens: touch only the experts that were chosen."""
        out = torch.zeros_like(x)
        for expert in cast("list[int]", routing.experts.unique().tolist()):
            rows, choices = torch.where(routing.experts == expert)
            h = x[rows]
            h = swiglu(self.gate_proj.one(h, expert), self.up_proj.one(h, expert))
            h = self.down_proj.one(h, expert)
            out.index_add_(0, rows, h * routing.weights[rows, choices, None].to(x.dtype))
        return out

    def _grouped(self, x: Tensor, routing: Routing, experts: int) -> Tensor:
        """Many tokens: each expert's rows side by side in one (E, capacity, D) product; no token is dropped."""
        chosen = routing.experts.shape[1]
        flat = routing.experts.flatten()  # (T K,)
        order = flat.argsort(stable=True)  # (token, choice) pairs grouped by expert
        tokens = torch.bincount(flat, minlength=experts)  # (E,)
        starts = tokens.cumsum(0) - tokens
        capacity = _round_up(int(tokens.max()), 128)  # few distinct shapes: oneDNN builds a kernel for each new one
        grouped = flat[order]
        slots = grouped * capacity + torch.arange(len(flat), device=x.device) - starts[grouped]
        place = torch.empty_like(flat).scatter_(0, order, slots)  # (T K,) row of each pair
        h = x.new_zeros(experts * capacity, x.shape[1]).index_copy(0, place, x.repeat_interleave(chosen, 0))
        h = h.view(experts, capacity, -1)  # (E, capacity, D)
        h = self.down_proj(swiglu(self.gate_proj(h), self.up_proj(h))).flatten(0, 1)
        picked = h[place].view(-1, chosen, x.shape[1])  # (T, K, D)
        return (picked * routing.weights.unsqueeze(-1).to(x.dtype)).sum(1)


class StackedLinear(nn.Module):
    """One product per expert, the weights stacked (E, O, I), or packed as `Linear` has it."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:  # (E, T, I) -> (E, T, O)
        return x @ self.weight.to(x.dtype).mT

    def one(self, x: Tensor, expert: int) -> Tensor:  # (T, I) -> (T, O)
        return x @ self.weight[expert].to(x.dtype).T

    def pack(self, packed: Packed) -> None:
        del self.weight
        self.packed = packed


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class MoE(nn.Module):
    """Routed experts by weight, plus the shared expert, which is neither gated nor scaled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = (
            MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)
            if config.n_shared_experts
            else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:  # (T, D)
        routing = self.gate(x)
        out = self.experts(x, routing)
        if self.shared_experts is not None:
            out = out + self.shared_experts(x)
        return out, routing
