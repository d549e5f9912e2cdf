"""Expert parallelism: the experts of a layer held by several processes, tokens sent to them and back.

    its tokens ── router ── sorted by expert ── all-to-all ──► its experts ── all-to-all ──► weighed, added

Every process has its own tokens and E / size experts, a run of neighbours by number. No token is dropped, and a token's
experts are added in the order in which one process adds them. Source: GShard, arXiv:2006.16668, section 3.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from baltoro.config import ModelConfig
from baltoro.model.moe import Experts, Routing


class DistributedExperts(Experts):
    """In place of a layer's Experts on each of `size` processes; its stacks hold that process's experts alone."""

    spread = True

    def __init__(self, config: ModelConfig, size: int, group: dist.ProcessGroup | None) -> None:
        """group: the processes; None: all there are"""
        assert config.n_routed_experts % size == 0, "train/layout.py has checked it"
        super().__init__(config, config.n_routed_experts // size)
        self.held, self.size, self.group = config.n_routed_experts // size, size, group

    def forward(self, x: Tensor, routing: Routing) -> Tensor:  # (T, D)
        size, chosen = self.size, routing.experts.shape[1]
        flat = routing.experts.flatten()  # (T K,)
        order = flat.argsort(stable=True)  # (token, choice) pairs by expert, and so by process
        sent = torch.bincount(flat, minlength=size * self.held).view(size, self.held)  # to each process's experts
        received = torch.empty_like(sent)  # from each process, for each expert here
        dist.all_to_all_single(received, sent, group=self.group)
        there = cast("list[int]", sent.sum(1).tolist())
        here = cast("list[int]", received.sum(1).tolist())

        rows = x.repeat_interleave(chosen, 0).index_select(0, order)  # (T K, D)
        rows = _exchange(rows, there, here, self.group)  # (R, D)
        numbers = torch.arange(self.held, device=x.device).repeat(size)
        experts = numbers.repeat_interleave(received.flatten()).unsqueeze(
            1
        )  # (R, 1), which expert here each row is for
        weights = torch.ones(len(rows), 1, device=x.device)
        done = self._grouped(rows, Routing(weights, experts), self.held)
        done = _exchange(done, here, there, self.group)  # (T K, D), sorted by expert

        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        picked = done.index_select(0, place).view(-1, chosen, x.shape[1])  # (T, K, D)
        return (picked * routing.weights.unsqueeze(-1).to(x.dtype)).sum(1)


def _exchange(rows: Tensor, there: list[int], here: list[int], group: dist.ProcessGroup | None) -> Tensor:
    return cast(Tensor, _Exchange.apply(rows, there, here, group))  # pyright: ignore[reportUnknownMemberType]


class _Exchange(Function):
    """The first there[0] rows go to process 0, ...; here[0] rows come from it. Gradients go the same ways back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: list[int], here: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.there, ctx.here, ctx.group = there, here, group
        return _all_to_all(rows, there, here, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], ctx.here, ctx.there, ctx.group), None, None, None


def _all_to_all(rows: Tensor, there: list[int], here: list[int], group: dist.ProcessGroup | None) -> Tensor:
    received = rows.new_empty(sum(here), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), here, there, group=group)
    return received
