"""What an iteration of reinforcement learning tells: one line of the log, summed over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from baltoro.train.distributed import World
from baltoro.train.objective import Packed, Sums
from baltoro.train.rl_recipe import RLRecipe
from baltoro.train.rollouts import Group
from baltoro.train.state import Progress

_COUNTED = (
    "episodes", "tokens", "cut", "groups", "agreed", "unfinished", "loss", "taught", "entropy", "rows", "mismatch",
    "first_rows", "ratio", "ptx_nats", "ptx_tokens",
    "verdicts", "unread",
)  # fmt: skip


class Report:
    """Filled while the iteration lasts."""

    def __init__(self, recipe: RLRecipe, temperature: float) -> None:
        self._kinds = sorted({task.kind for task in recipe.tasks})
        self._temperature = temperature
        self._sums = dict.fromkeys(_COUNTED, 0.0)
        self._rewards = dict.fromkeys(self._kinds, 0.0)
        self._right = dict.fromkeys(self._kinds, 0.0)
        self._episodes = dict.fromkeys(self._kinds, 0.0)
        self.distance: float | None = None  # KL to the start, nats a token
        self.clipped = 0  # heads
        self.max_logit = 0.0
        self.lr_scale = 0.0

    def drawn(self, groups: Sequence[Group], rewards: Sequence[Sequence[float]], unfinished: int) -> None:
        sums = self._sums
        sums["groups"] += len(groups)
        sums["agreed"] += sum(max(each) == min(each) for each in rewards)
        sums["unfinished"] += unfinished
        for group, each in zip(groups, rewards, strict=True):
            kind = group.task.kind
            self._rewards[kind] += sum(each)
            self._right[kind] += sum(rollout.reward == 1.0 for rollout in group.rollouts)
            self._episodes[kind] += len(each)
            sums["episodes"] += len(each)
            sums["tokens"] += sum(rollout.num_drawn for rollout in group.rollouts)
            sums["cut"] += sum(rollout.cut for rollout in group.rollouts)

    def judged(self, asked: int, unread: int) -> None:
        """By the critic: comparisons, and those whose verdict could not be read."""
        self._sums["verdicts"] += asked
        self._sums["unread"] += unread

    def stepped(self, found: Sums, packed: Packed, *, first: bool) -> None:
        """first: of the iteration's first update, before which the engine's weights are the trainer's."""
        sums, rows = self._sums, len(packed.drawn)
        sums["loss"] += float(found.loss.detach())
        sums["taught"] += len(packed.advantages)
        sums["entropy"] += float(found.entropy)
        sums["rows"] += rows
        sums["ratio"] += float(found.ratio)
        if first:
            sums["mismatch"] += float(found.mismatch)
            sums["first_rows"] += rows

    def learned(self, nats: Tensor, tokens: int) -> None:
        self._sums["ptx_nats"] += float(nats)
        self._sums["ptx_tokens"] += tokens

    def line(self, world: World, progress: Progress) -> dict[str, Any]:
        """To be called by every process."""
        tables = [self._sums, self._rewards, self._right, self._episodes]
        flat = torch.tensor([value for table in tables for value in table.values()])
        world.sum_([flat])
        values = iter(cast("list[float]", flat.tolist()))
        sums, rewards, right, episodes = [{name: next(values) for name in table} for table in tables]
        told = [kind for kind in self._kinds if episodes[kind]]
        line: dict[str, Any] = {
            "step": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 2),
            "temperature": round(self._temperature, 4),
            "lr_scale": round(self.lr_scale, 5),
            "reward": _mean(sum(rewards.values()), sums["episodes"]),
            "by_kind": {kind: _mean(rewards[kind], episodes[kind]) for kind in told},
            "right": {kind: _mean(right[kind], episodes[kind]) for kind in told},
            "length": _mean(sums["tokens"], sums["episodes"], 1),
            "cut": _mean(sums["cut"], sums["episodes"]),
            "agreed": _mean(sums["agreed"], sums["groups"]),
            "unfinished": int(sums["unfinished"]),
            "loss": _mean(sums["loss"], sums["taught"]),
            "entropy": _mean(sums["entropy"], sums["rows"]),
            "mismatch": _mean(sums["mismatch"], sums["first_rows"], 6),
            "log_ratio": _mean(sums["ratio"], sums["taught"]),
            "kl": None if self.distance is None else round(self.distance, 5),
            "max_logit": round(self.max_logit, 2),
            "clipped_heads": self.clipped,
        }
        if sums["ptx_tokens"]:
            line["ptx"] = _mean(sums["ptx_nats"], sums["ptx_tokens"])
        if sums["verdicts"]:
            line["unread_verdicts"] = _mean(sums["unread"], sums["verdicts"])
        return line

    @staticmethod
    def note(line: dict[str, Any]) -> str:
        kinds = "  ".join(f"{kind} {share:.2f}" for kind, share in line["right"].items())
        return f"reward {line['reward']:.3f}  entropy {line['entropy']:.2f}  kl {line['kl'] or 0:.4f}  right: {kinds}"


def _mean(total: float, count: float, digits: int = 4) -> float:
    return round(total / count, digits) if count else 0.0
