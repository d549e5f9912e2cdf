"""Kimi K2's objective of reinforcement learning, over packed episodes.

    L = E_x [ 1/K sum_i ( r_i - mean r - tau log( pi(y_i | x) / pi_old(y_i | x) ) )^2 ]

pi is the distribution that tokens were drawn from: the softmax of logits / temperature, each token at its own.
log pi(y | x) is the sum over the tokens that the assistant drew, whatever stands between its turns; pi_old's is the sum
of what the engine reported for them.
Source: Kimi K2 report, section 3.2.3; Kimi K1.5, arXiv:2501.12599, section 2.3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baltoro.model.batch import Batch
from baltoro.train.rollouts import Rollout


@dataclass(frozen=True, slots=True)
class Episode:
    """An ended rollout as the objective sees it."""

    ids: list[int]
    positions: list[int]  # of drawn tokens, rising, none of them 0
    logprobs: list[float]  # of these, by the engine
    temperatures: list[float]  # at which these were drawn
    advantage: float  # its reward less its group's mean

    @staticmethod
    def of(rollout: Rollout, advantage: float) -> Episode:
        return Episode(rollout.ids, rollout.positions, rollout.logprobs, rollout.temperatures, advantage)


@dataclass(frozen=True, slots=True)
class Packed:
    """Some episodes as one forward. batch.logit_rows are the rows behind which a token was drawn, rising: (rows,)."""

    batch: Batch
    drawn: Tensor  # (rows,) int64, the tokens
    logprobs: Tensor  # (rows,) by the engine
    temperatures: Tensor  # (rows,)
    owners: Tensor  # (rows,) int64, index into the episodes
    advantages: Tensor  # (episodes,)


@dataclass(frozen=True, slots=True)
class Sums:
    """Over rows and episodes; tensors of one number."""

    loss: Tensor  # of the squares, one an episode
    entropy: Tensor  # of the policy, nats, over rows
    mismatch: Tensor  # |log pi - log pi_old| over rows: at the first update what rounding makes of it
    ratio: Tensor  # log(pi / pi_old) over episodes


def pack(episodes: Sequence[Episode]) -> Packed:
    batch = Batch.of([episode.ids for episode in episodes])
    rows = [edge + position - 1 for edge, e in zip(batch.edges, episodes, strict=False) for position in e.positions]
    lengths = torch.tensor([len(episode.positions) for episode in episodes])
    wanted = torch.tensor(rows, dtype=torch.int64)
    return Packed(
        batch=replace(batch, logit_rows=wanted),
        drawn=batch.ids[wanted + 1],
        logprobs=torch.tensor([each for e in episodes for each in e.logprobs]),
        temperatures=torch.tensor([each for e in episodes for each in e.temperatures]),
        owners=torch.arange(len(episodes)).repeat_interleave(lengths),
        advantages=torch.tensor([episode.advantage for episode in episodes]),
    )


def microbatches(episodes: Iterable[Episode], tokens: int) -> list[Packed]:
    """All of them, in packs of at most `tokens` tokens as attention pads them; one that is longer has its own.

    Episodes of similar length go together. The order depends on nothing but the episodes.
    """
    packs: list[list[Episode]] = []
    for episode in sorted(episodes, key=lambda e: -len(e.ids)):
        if packs and len(packs[-1][0].ids) * (len(packs[-1]) + 1) <= tokens:
            packs[-1].append(episode)
        else:
            packs.append([episode])
    return [pack(each) for each in packs]


def token_logprobs(logits: Tensor, packed: Packed) -> Tensor:
    """(rows, V) -> (rows, V): log pi of every token, at each row's temperature."""
    return torch.log_softmax(logits / packed.temperatures[:, None], dim=-1)


def objective(logits: Tensor, packed: Packed, tau: float) -> Sums:
    """logits: (rows, V) float32 of packed.batch. `Sums.loss` has a gradient."""
    every = token_logprobs(logits, packed)
    chosen = every.gather(1, packed.drawn[:, None]).squeeze(1)  # (rows,)
    ratio = torch.zeros(len(packed.advantages)).index_add(0, packed.owners, chosen - packed.logprobs)
    loss = (packed.advantages - tau * ratio).square().sum()
    with torch.no_grad():
        entropy = -(every.exp() * every).sum()
        mismatch = (chosen - packed.logprobs).abs().sum()
    return Sums(loss, entropy, mismatch, ratio.detach().sum())


@torch.no_grad()
def divergence(logits: Tensor, start: Tensor) -> Tensor:
    """Mean over rows of KL(policy || start) in nats, at temperature 1. logits, start: (rows, V)"""
    ours, theirs = torch.log_softmax(logits, -1), torch.log_softmax(start, -1)
    return (ours.exp() * (ours - theirs)).sum(-1).mean()
