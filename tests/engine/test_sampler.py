from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from baltoro.engine import sampler
from baltoro.engine.penalties import Penalties
from baltoro.engine.request import SamplingParams
from baltoro.errors import EngineError, RequestError


def params(**changes):
    return SamplingParams(**({"max_tokens": 1} | changes))


def choose(logits, sampling, *, mask=None, draw=0.0, **more):
    allowed = None if mask is None else np.asarray(mask)
    row = np.asarray(logits, dtype=np.float32)
    return sampler.Sampler(len(row)).choose(row, sampling, mask=allowed, draw=draw, **more)


def changed(logits, sampling, prompt, output):
    """Bias and penalties by their definitions, one id after the other."""
    told = []
    for i, logit in enumerate(logits):
        logit += sampling.logit_bias.get(i, 0.0)
        if i in prompt or i in output:
            logit = logit / sampling.repetition_penalty if logit > 0 else logit * sampling.repetition_penalty
        if i in output:
            logit -= sampling.presence_penalty + sampling.frequency_penalty * output.count(i)
        told.append(logit)
    return told


def oracle(logits, sampling, mask, prompt=(), output=(), avoid=()):
    """Probabilities by the textbook, with python floats and full sorts: id -> probability."""
    logits = changed(logits, sampling, list(prompt), list(output))
    alive = [i for i in range(len(logits)) if mask is None or mask[i]]
    alive = [i for i in alive if i not in avoid] or alive
    alive.sort(key=lambda i: (-logits[i], i))
    if sampling.temperature == 0:
        return {alive[0]: 1.0}
    weights = {i: math.exp((logits[i] - logits[alive[0]]) / sampling.temperature) for i in alive}
    total = math.fsum(weights.values())
    alive = [i for i in alive if weights[i] / total >= sampling.min_p * weights[alive[0]] / total]
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


def close_calls(logits, sampling, mask, prompt, output, avoid):
    """Whether rounding to float32 may decide who is kept: probabilities nearly equal to a limit or to each other."""
    logits = changed(logits, sampling, prompt, output)
    alive = sorted(logits[i] for i in range(len(logits)) if (mask is None or mask[i]) and i not in avoid)
    if any(0 < high - low < 1e-4 for low, high in zip(alive, alive[1:], strict=False)):
        return True
    if sampling.min_p and sampling.temperature and alive:
        least = alive[-1] + sampling.temperature * math.log(sampling.min_p)
        return any(abs(logit - least) < 1e-4 for logit in alive)
    return False


SIZE = 24
IDS = st.integers(0, SIZE - 1)


@given(
    logits=st.lists(st.floats(-20, 20, width=16), min_size=SIZE, max_size=SIZE),
    prompt=st.lists(IDS, max_size=12),
    output=st.lists(IDS, max_size=100),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    presence=st.sampled_from([0.0, 1.1, -0.9]),
    frequency=st.sampled_from([0.0, 0.6, -0.4]),
    bias=st.dictionaries(IDS, st.floats(-100, 100), max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_penalties_and_bias_change_every_logit_as_defined(
    logits, prompt, output, repetition, presence, frequency, bias
):
    sampling = params(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias
    )
    penalties = Penalties(sampling, prompt)
    for token in output:
        penalties.advance(token)
    row = np.asarray(logits, np.float32)
    penalties.apply(row)
    assert row == pytest.approx(changed(logits, sampling, prompt, output), rel=1e-5, abs=1e-4)  # float32 twice


@given(
    logits=st.lists(st.floats(-20, 20, width=16), min_size=SIZE, max_size=SIZE),
    mask=st.none() | st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).filter(any),
    prompt=st.lists(IDS, min_size=1, max_size=12),
    output=st.lists(IDS, max_size=12),
    avoid=st.frozensets(IDS, max_size=3),
    sampling=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
            "top_k": st.sampled_from([0, 0, 1, 2, 5, 100]),
            "top_p": st.sampled_from([1.0, 0.95, 0.5, 0.013]),
            "min_p": st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
            "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
            "presence_penalty": st.sampled_from([0.0, 1.1, -0.9]),
            "frequency_penalty": st.sampled_from([0.0, 0.6, -0.4]),
            "logit_bias": st.dictionaries(IDS, st.sampled_from([-100.0, -3.3, 0.7, 5.2, 100.0]), max_size=4),
        }
    ),
)
@settings(max_examples=120, deadline=None)
def test_the_whole_chain_draws_as_the_definitions_say(logits, mask, prompt, output, avoid, sampling):
    sampling = params(**sampling)
    assume(not close_calls(logits, sampling, mask, prompt, output, avoid))
    penalties = Penalties.of(sampling, prompt)
    for token in output if penalties else ():
        penalties.advance(token)
    row = np.asarray(logits, np.float32)
    chooser = sampler.Sampler(SIZE)
    allowed = None if mask is None else np.asarray(mask)
    draws = 150
    seen = Counter(
        chooser.choose(row, sampling, mask=allowed, draw=(i + 0.5) / draws, penalties=penalties, avoid=avoid)
        for i in range(draws)
    )
    truth = oracle(logits, sampling, mask, prompt, output, avoid)
    for token in truth.keys() | seen.keys():
        # A grid of n draws meets an interval of length p between n p - 1 and n p + 1 times. A top-p that is met to the
        # last bit keeps a token more or less, but such a token is not drawn more often than that.
        assert abs(seen[token] - draws * truth.get(token, 0.0)) <= 1 + 1e-3
    assert row.tolist() == np.asarray(logits, np.float32).tolist(), "the model's logits are for others too"


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.5, "top_k": 40, "min_p": 0.05},
        {
            "repetition_penalty": 1.4,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.3,
            "logit_bias": {3: 4.0, 700: 3.0},
        },
    ],
    ids=["plain", "top-p", "top-k and min-p", "penalties and bias"],
)
def test_seeds_and_indices_draw_from_the_distribution(wishes):
    """Pearson's chi-square over 4,000 tokens, bins of at least 20; the seeds are fixed, so it holds always or never."""
    sampling = params(**({"temperature": 1.0} | wishes))
    logits = np.random.default_rng(1).normal(0, 2, 1500).astype(np.float32)
    prompt, output = list(range(0, 1500, 7)), [3, 3, 3, 14, 700]
    penalties = Penalties(sampling, prompt)
    for token in output:
        penalties.advance(token)
    chooser = sampler.Sampler(len(logits))
    seen = Counter(
        chooser.choose(logits, sampling, mask=None, draw=sampler.uniform(seed, index), penalties=penalties)
        for seed in range(200)
        for index in range(20)
    )
    truth = oracle(logits.tolist(), sampling, None, prompt, output)
    assert seen.keys() <= truth.keys()
    bins = [(seen[token], 4000 * p) for token, p in truth.items() if 4000 * p >= 20]
    bins.append((4000 - sum(n for n, _ in bins), 4000 - sum(e for _, e in bins)))
    freedom = len(bins) - 1
    distance = sum((n - e) ** 2 / e for n, e in bins if e > 1)
    # Wilson and Hilferty's approximation of the quantile 0.999.
    assert freedom > 5
    assert distance < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_stop_tokens_that_must_wait_come_only_where_nothing_else_may():
    logits = [9.0, 1.0, 2.0]
    assert choose(logits, params(), avoid={0}) == 2
    assert choose(logits, params(), avoid={0}, mask=[True, True, False]) == 1
    assert choose(logits, params(), avoid={0}, mask=[True, False, False]) == 0


def test_the_largest_are_found_among_many_blocks_with_ties_as_a_sort_finds_them():
    chance = np.random.default_rng(3)
    for size, count in ((1, 1), (511, 20), (5000, 3), (5000, 60), (5000, 5000), (163_840, 20)):
        values = chance.integers(0, 300, size).astype(np.float32)
        values[chance.integers(0, size, size // 4)] = -np.inf
        truth = sorted(np.lexsort((np.arange(size), -values))[:count].tolist())
        assert sampler.largest(values, count).tolist() == truth


def test_choices_have_seeds_of_their_own_and_the_first_has_the_request_s():
    seeds = {seed: [sampler.choice_seed(seed, choice) for choice in range(128)] for seed in (-(2**63), -1, 0, 1, 2**62)}
    for seed, derived in seeds.items():
        assert derived[0] == seed
        assert all(0 <= each < 2**64 for each in derived[1:])
    everyone = [each for derived in seeds.values() for each in derived]
    assert len(set(everyone)) == len(everyone)
    values = np.array([[sampler.uniform(each, index) for index in range(50)] for each in everyone])
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.03  # 1 / sqrt(n) is 0.006


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
        token = choose(logits, params(temperature=temperature, top_p=top_p), mask=mask, draw=draw)
        assert 8 <= token < 990


def test_the_largest_draw_stays_inside_whatever_the_total():
    weights = np.random.default_rng(0).exponential(size=(2000, 3))
    weights[:, 2] = 0.0
    assert set(sampler._draws(weights, np.full(2000, 1.0 - 2**-53))) == {1}


@pytest.mark.parametrize("vocabulary", [7, 300, 512, 2048, 5000])
def test_rows_chosen_together_are_those_chosen_alone(vocabulary):
    """Bit for bit the same draws, whatever stands beside a row: greedy ones, cold ones, broken ones."""
    rng = np.random.default_rng(vocabulary)
    rows = 70
    logits = (rng.normal(size=(rows, vocabulary)) * rng.choice([0.1, 3.0, 30.0], (rows, 1))).astype(np.float32)
    logits[5, 3], logits[6, 2], logits[7] = np.nan, np.inf, -np.inf
    logits[8, 1:] = -np.inf
    temperatures = rng.choice([0.0, 1e-38, 0.3, 0.6, 1.0, 50.0], rows).tolist()
    draws = [1.0 - 2.0**-53, 0.0, *rng.random(rows - 2).tolist()]
    masks = [None if row % 3 else rng.random(vocabulary) < 0.5 for row in range(rows)]
    masks[5] = masks[6] = masks[7] = None
    masks[9], masks[12] = np.zeros(vocabulary, bool), np.ones(3, bool)
    wanted = [sampler.PlainRow(*each) for each in zip(range(rows), masks, temperatures, draws, strict=True)]
    wanted = [wanted[row] for row in rng.permutation(rows)[:60]] + [wanted[row] for row in (5, 6, 7, 9, 12)]
    chooser, single = sampler.Sampler(vocabulary), sampler.Sampler(vocabulary)
    together = chooser.choose_plain(logits, wanted)
    assert together[-5:] == [None] * 5
    for each, token in zip(wanted, together, strict=True):
        if token is not None:
            sampling = params(temperature=each.temperature)
            assert token == single.choose(logits[each.row], sampling, mask=each.mask, draw=each.draw)
            assert type(token) is int
        else:
            with pytest.raises(EngineError):
                single.choose(logits[each.row], params(), mask=each.mask, draw=each.draw)
    for size in (1, 2, 33):
        assert chooser.choose_plain(logits, wanted[:size]) == together[:size]


def test_what_is_cut_is_never_chosen_with_others():
    assert sampler.is_plain(params()) and sampler.is_plain(params(temperature=0.7))
    assert sampler.is_plain(params(top_k=5, top_p=0.5, min_p=0.1)), "greedy: nothing of this counts"
    for cut in ({"top_k": 1}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert not sampler.is_plain(params(temperature=0.7, **cut))


def test_a_nucleus_found_without_sorting_the_vocabulary_equals_the_full_sort():
    logits = np.random.default_rng(0).normal(0, 3, 20_000).astype(np.float32)
    sampling = params(temperature=0.8, top_p=0.9)
    truth = oracle(logits.tolist(), sampling, None)
    seen = {choose(logits, sampling, draw=(i + 0.5) / 500) for i in range(500)}
    likely = {token for token, probability in truth.items() if probability > 1 / 500}
    assert likely <= seen <= set(truth)
    assert 10 < len(likely) < len(truth) < 2_000  # neither trivial nor flat


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_a_nucleus_of_any_size_has_the_tokens_of_the_full_sort(top_p, spread):
    """Powers of two divided finely: sums are exact in float64, so the border is sharp; many are equal."""
    chance = np.random.default_rng(7)
    weights = np.exp2(np.round(chance.normal(0, spread, 30_000) * 4) / 4 - 3).astype(np.float32)
    weights = np.round(weights * 2**20) / 2**20
    total = math.fsum(weights.tolist())
    order = np.lexsort((np.arange(len(weights)), -weights))
    kept, reached = 0, 0.0
    while reached < top_p * total:
        reached += float(weights[order[kept]])
        kept += 1
    assert sampler._nucleus(weights, top_p).tolist() == sorted(order[:kept].tolist())


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
        *[("min_p", -0.1), ("min_p", 1.1), ("min_p", math.nan), ("min_tokens", -1), ("min_tokens", 2)],
        *[("repetition_penalty", 0.0), ("repetition_penalty", math.nan), ("presence_penalty", math.inf)],
        *[("frequency_penalty", math.nan), ("logit_bias", {3: math.nan}), ("logprobs", -1)],
        *[("seed", 2**64), ("seed", -(2**63) - 1)],
    ],
)
def test_sampling_that_means_nothing_is_refused_with_its_name(field, value):
    with pytest.raises(RequestError, match=field) as caught:
        params(**{field: value})
    assert caught.value.param == field
