"""Mixture of experts: the router, the routed experts, the shared one, and who was chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from baltoro.config import ModelConfig
from baltoro.kernels import dense, ops, steps
from baltoro.kernels.formats import Packed
from baltoro.kernels.routing import Choice, route
from baltoro.model.linear import Linear, swiglu


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)): a dense layer, or the shared experts as one."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def described(self) -> steps.DenseStep | None:
        """Its matrices for native code, where they are packed."""
        three = _three(self)
        return None if three is None else steps.DenseStep(*(as_stack(w) for w in three))

    def forward(self, x: Tensor) -> Tensor:  # (T, D)
        if (three := _three(self)) is None:
            return dense.mlp(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        chosen = torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)  # a mixture of one
        weights = torch.ones(len(x), 1, device=x.device)
        return ops.experts(x.float(), chosen, weights, *(as_stack(w) for w in three)).to(x.dtype)


def as_stack(w: Packed) -> Packed:
    """A matrix as a stack of one, over the same memory."""
    scales = w.scales.unsqueeze(0) if w.scales.numel() else w.scales
    return Packed(w.format, w.outputs, w.inputs, w.group, w.data.unsqueeze(0), scales)


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
        self.choice = Choice(
            chosen=config.num_experts_per_tok,
            groups=config.n_group,
            kept_groups=config.topk_group,
            normalized=config.norm_topk_prob,
            factor=config.routed_scaling_factor,
        )

    def forward(self, x: Tensor) -> Routing:  # (T, D)
        return Routing(*route(x, self.weight, self.e_score_correction_bias, self.choice))


class Experts(nn.Module):
    """All routed experts of a layer, stacked. The checkpoint keeps them apart; model/load.py translates."""

    spread = False  # over several processes

    def __init__(self, config: ModelConfig, held: int | None = None) -> None:
        """held: how many of them, where others have the rest (distributed_experts.py); None: all"""
        super().__init__()
        experts = config.n_routed_experts if held is None else held
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.gate_proj = StackedLinear(experts, hidden, width)
        self.up_proj = StackedLinear(experts, hidden, width)
        self.down_proj = StackedLinear(experts, width, hidden)

    def begin(self, routing: Routing) -> None:
        """All are here; what stands in for this may have something to read (model/streamed.py)."""

    def expect(self, tokens: int, guess: Callable[[], Routing]) -> None:
        """As `begin`, before attention has run: what the router says of the state until then."""

    def forward(self, x: Tensor, routing: Routing) -> Tensor:  # (T, D)
        if (three := _three(self)) is not None:
            gate, up, down = three
            return ops.experts(x.float(), routing.experts, routing.weights, gate, up, down).to(x.dtype)
        experts = self.gate_proj.weight.shape[0]
        if routing.experts.numel() < 4 * experts:
            return self._one_by_one(x, routing)
        return self._grouped(x, routing, experts)

    def _one_by_one(self, x: Tensor, routing: Routing) -> Tensor:
        """Few tokens: touch only the experts that were chosen."""
        gate, up, down = self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight
        return dense.experts(x, routing.experts, routing.weights, gate, up, down)

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
        h = h.view(experts, capacity, x.shape[1])  # no row at all: capacity 0
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

        self.step: steps.MixtureStep | None = None  # described at the first use, where all is packed

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:  # (T, D)
        routing = self.gate(x)
        self.experts.begin(routing)
        shared = None if self.shared_experts is None else self.shared_experts(x)
        out = self.experts(x, routing)
        return (out if shared is None else out + shared), routing

    def expect(self, x: Tensor, norm: Callable[[Tensor], Tensor]) -> None:
        """x: the state that this layer's attention has yet to add to; norm: what comes before the router."""
        self.experts.expect(len(x), lambda: self.gate(norm(x)))

    def onto(self, x: Tensor, h: Tensor) -> tuple[Tensor, Routing]:
        """x plus the mixture of h; where all is packed, as one native call."""
        step = self.described() if steps.runs(h) else None
        if step is None:
            out, routing = self(h)
            return x + out, routing
        out, weights, experts = step(h, x)
        return out, Routing(weights, experts)

    def described(self) -> steps.MixtureStep | None:
        """All of it as one native call, where all is packed; None elsewhere."""
        if self.step is None and self._packed():
            routed, shared = _three(self.experts), self.shared_experts and _three(self.shared_experts)
            assert routed is not None
            stacks = (as_stack(shared[0]), as_stack(shared[1]), as_stack(shared[2])) if shared else None
            gate = self.gate
            self.step = steps.MixtureStep(gate.weight, gate.e_score_correction_bias, gate.choice, *routed, stacks)
        return self.step if self._packed() else None

    def _packed(self) -> bool:
        parts = (self.experts, self.shared_experts or self.experts)
        return all(_three(part) is not None for part in parts)


def _three(module: nn.Module) -> tuple[Packed, Packed, Packed] | None:
    """Its packed matrices or stacks; None where it is not packed, or something that stands in for it."""
    if not isinstance(module, (Experts, MLP)):
        return None
    gate, up, down = module.gate_proj.packed, module.up_proj.packed, module.down_proj.packed
    return None if gate is None or up is None or down is None else (gate, up, down)
