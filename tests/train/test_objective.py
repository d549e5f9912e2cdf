"""The objective and its gradient, against the formula in float64, one episode after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.model.load import initialise
from baltoro.train import objective
from baltoro.train.objective import Episode
from tests.train import tiny_runs


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def episode(r: Random, length: int, advantage: float) -> Episode:
    positions = sorted(r.sample(range(1, length), min(length - 1, r.randint(1, 6))))
    return Episode(
        ids=[r.randrange(64) for _ in range(length)],
        positions=positions,
        logprobs=[-r.random() * 5 for _ in positions],
        temperatures=[r.choice((0.5, 1.0, 1.7)) for _ in positions],
        advantage=advantage,
    )


def by_the_formula(logits: list[torch.Tensor], episodes: list[Episode], tau: float) -> torch.Tensor:
    """sum over episodes of (r - mean r - tau log(pi / pi_old))^2. logits: (n, V) of each"""
    total = torch.zeros((), dtype=torch.float64)
    for rows, each in zip(logits, episodes, strict=True):
        ratio = torch.zeros((), dtype=torch.float64)
        for position, old, temperature in zip(each.positions, each.logprobs, each.temperatures, strict=True):
            tempered = rows[position - 1].double() / temperature
            ratio = ratio + tempered[each.ids[position]] - tempered.logsumexp(0) - old
        total = total + (each.advantage - tau * ratio) ** 2
    return total


def test_loss_and_gradient_are_the_formulas() -> None:
    r, tau = Random(1), 0.3
    model = initialise(tiny_runs.config(), seed=2)
    episodes = [episode(r, length, advantage) for length, advantage in ((9, 0.5), (30, -0.25), (17, 0.75), (2, -1.0))]
    alone = [model(objective.pack([each]).batch.of([each.ids])) for each in episodes]
    truth = by_the_formula(alone, episodes, tau)
    expected = torch.autograd.grad(truth, [p for p in model.parameters() if p.requires_grad])
    packs = objective.microbatches(episodes, 40)
    assert [len(packed.advantages) for packed in packs] == [1, 2, 1]
    losses = [objective.objective(model(packed.batch), packed, tau).loss for packed in packs]
    total = torch.stack(losses).sum()
    assert float(total.detach()) == pytest.approx(float(truth.detach()), rel=1e-5)
    found = torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad])
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max()) + 1e-7  # float32 sums


def test_the_gradient_at_the_policy_itself_is_the_policy_gradient_with_a_baseline() -> None:
    """There log(pi / pi_old) is 0, and -2 tau sum_i (r_i - mean r) grad log pi(y_i) is left."""
    r, tau = Random(3), 0.25
    model = initialise(tiny_runs.config(), seed=4)
    episodes = [episode(r, 20, advantage) for advantage in (0.5, -0.5)]
    packed = objective.pack(episodes)
    logits = model(packed.batch)
    chosen = objective.token_logprobs(logits, packed).gather(1, packed.drawn[:, None]).squeeze(1)
    at_itself = objective.Packed(
        packed.batch, packed.drawn, chosen.detach(), packed.temperatures, packed.owners, packed.advantages
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(objective.objective(logits, at_itself, tau).loss, parameters, retain_graph=True)
    surrogate = -2 * tau * (packed.advantages[packed.owners] * chosen).sum()
    for ours, theirs in zip(found, torch.autograd.grad(surrogate, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_minimum_is_where_the_ratio_is_the_advantage_over_tau() -> None:
    """A policy over two tokens, one drawn: gradient descent ends at log(pi / pi_old) = (r - mean r) / tau."""
    packed = objective.pack([Episode([0, 1], [1], [math.log(0.5)], [1.0], 0.2)])
    logits = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        objective.objective(logits, packed, 0.8).loss.backward()
        optimizer.step()
    assert float(torch.log_softmax(logits.detach(), -1)[0, 1] - math.log(0.5)) == pytest.approx(0.2 / 0.8, abs=1e-4)


def test_entropy_mismatch_and_ratio_are_sums_over_rows() -> None:
    episodes = [Episode([0, 1, 0], [1, 2], [-1.0, -3.0], [1.0, 2.0], 0.0)]
    logits = torch.tensor([[0.0, 0.0], [math.log(9.0), 0.0]])
    sums = objective.objective(logits, objective.pack(episodes), 1.0)
    # row 2: odds 9 to 1 at temperature 2 are 3 to 1
    first, second = math.log(0.5), math.log(0.75)
    assert float(sums.entropy) == pytest.approx(-first - 0.75 * second - 0.25 * math.log(0.25))
    assert float(sums.ratio) == pytest.approx(first + 1.0 + second + 3.0)
    assert float(sums.mismatch) == pytest.approx(abs(first + 1.0) + abs(second + 3.0))


def test_divergence_is_the_mean_kl() -> None:
    ours, start = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[math.log(3.0), 0.0], [1.0, 2.0]])
    truth = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(objective.divergence(ours, start)) == pytest.approx(truth / 2)


@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=12), tokens=st.integers(1, 200))
@settings(max_examples=60)
def test_every_episode_is_in_one_microbatch_and_none_is_larger_than_it_may(lengths: list[int], tokens: int) -> None:
    r = Random(0)
    episodes = [episode(r, length, float(index)) for index, length in enumerate(lengths)]
    packs = objective.microbatches(episodes, tokens)
    assert sorted(float(a) for packed in packs for a in packed.advantages) == [float(i) for i in range(len(lengths))]
    for packed in packs:
        edges = packed.batch.edges
        sizes = [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
        assert len(sizes) == 1 or len(sizes) * max(sizes) <= tokens
