from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.engine import sampler
from baltoro.engine.request import SamplingParams
from baltoro.errors import EngineError, RequestError


def params(**changes):
    return SamplingParams(**({"max_tokens": 1} | changes))


def choose(logits, sampling, *, mask=None, draw=0.0):
    allowed = None if mask is None else np.asarray(mask)
    return sampler.choose(np.asarray(logits, dtype=np.float32), sampling, mask=allowed, draw=draw)


def oracle(logits, sampling, mask):
    """Probabilities by the textbook, with python floats and one full sort: id -> probability."""
    alive = [i for i in range(len(logits)) if mask is None or mask[i]]
    alive.sort(key=lambda i: (-logits[i], i))
    if sampling.temperature == 0:
        return {alive[0]: 1.0}
    weights = {i: math.exp((logits[i] - logits[alive[0]]) / sampling.temperature) for i in alive}
    if sampling.top_k:
        alive = alive[: sampling.top_k]
    total = math.fsum(weights[i] for i in alive)
    kept, reached = [], 0.0
    for i in alive:
        kept.append(i)
        reached += weights[i] / total
        if reached >= sampling.top_p:
            break
    total = math.fsum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept if weights[i] > 0}


@given(
    logits=st.lists(st.floats(-20, 20, width=16), min_size=2, max_size=30),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 100]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.013]),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_draws_spread_over_tokens_as_the_textbook_says(logits, temperature, top_k, top_p, data):
    sampling = params(temperature=temperature, top_k=top_k, top_p=top_p)
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    if mask is not None and not any(mask):
        mask[0] = True
    draws = 150
    seen = Counter(choose(logits, sampling, mask=mask, draw=(i + 0.5) / draws) for i in range(draws))
    truth = oracle(logits, sampling, mask)
    for token in truth.keys() | seen.keys():
        # A grid of n draws meets an interval of length p between n p - 1 and n p + 1 times.
        assert abs(seen[token] - draws * truth.get(token, 0.0)) <= 1 + 1e-6


def test_greedy_takes_the_lowest_id_among_equals():
    assert choose([1, 5, 5, 5, 2], params()) == 1
    assert choose([1, 5, 5, 5, 2], params(), mask=[True, False, True, True, True]) == 2
    assert choose([1, 5, 5, 5, 2], params(temperature=1.0, top_k=1), draw=0.99) == 1


def test_top_k_among_equals_keeps_the_lowest_ids():
    tokens = {choose([3, 3, 3, 3], params(temperature=1.0, top_k=2), draw=i / 100) for i in range(100)}
    assert tokens == {0, 1}


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0 - 2**-53])
@pytest.mark.parametrize("temperature", [1e-40, 1e-5, 0.7, 1e6])
def test_no_draw_and_no_temperature_leaves_the_mask_or_picks_the_impossible(draw, temperature):
    logits = np.full(1000, 3.0, dtype=np.float32)
    logits[990:] = logits[5:8] = -np.inf
    mask = np.ones(1000, dtype=bool)
    mask[:5] = False
    for top_p in (1.0, 0.9):
        token = sampler.choose(logits, params(temperature=temperature, top_p=top_p), mask=mask, draw=draw)
        assert 8 <= token < 990


def test_the_largest_draw_stays_inside_whatever_the_total():
    weights = np.random.default_rng(0).exponential(size=(2000, 3))
    weights[:, 2] = 0.0
    assert all(sampler._draw(row, 1.0 - 2**-53) == 1 for row in weights)


def test_a_nucleus_found_without_sorting_the_vocabulary_equals_the_full_sort():
    logits = np.random.default_rng(0).normal(0, 3, 20_000).astype(np.float32)
    sampling = params(temperature=0.8, top_p=0.9)
    truth = oracle(logits.tolist(), sampling, None)
    seen = {sampler.choose(logits, sampling, mask=None, draw=(i + 0.5) / 500) for i in range(500)}
    likely = {token for token, probability in truth.items() if probability > 1 / 500}
    assert likely <= seen <= set(truth)
    assert 10 < len(likely) < len(truth) < 2_000  # neither trivial nor flat


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error_not_a_token(bad):
    with pytest.raises(EngineError, match="finite"):
        choose([1.0, bad, 2.0], params(temperature=1.0))
    with pytest.raises(EngineError, match="finite"):
        choose([-np.inf, -np.inf], params())


def test_a_mask_without_any_token_and_a_mask_of_another_vocabulary_are_errors():
    with pytest.raises(EngineError, match="no token"):
        choose([1.0, 2.0], params(), mask=[False, False])
    with pytest.raises(EngineError, match="shape"):
        choose([1.0, 2.0], params(), mask=[True, True, True])


def test_uniform_depends_on_seed_and_index_alone_and_is_uniform():
    values = np.array([[sampler.uniform(seed, index) for index in range(200)] for seed in range(-50, 50)])
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert len(np.unique(values)) == values.size
    # 20,000 numbers in 20 bins: chi-square with 19 degrees of freedom is below 43.8 with probability 0.999.
    histogram, _ = np.histogram(values, bins=20, range=(0, 1))
    assert ((histogram - 1000) ** 2 / 1000).sum() < 43.8
    # Neighbouring seeds and neighbouring indices are uncorrelated: 1 / sqrt(n) is 0.007.
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(
    "field, value",
    [
        *[("max_tokens", 0), ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf)],
        *[("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan), ("top_k", -1)],
    ],
)
def test_sampling_that_means_nothing_is_refused_with_its_name(field, value):
    with pytest.raises(RequestError, match=field) as caught:
        params(**{field: value})
    assert caught.value.param == field
