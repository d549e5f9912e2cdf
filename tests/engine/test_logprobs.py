from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.engine.engine import Engine
from baltoro.engine.logprobs import score
from baltoro.engine.request import FinishReason
from baltoro.engine.scheduler import SCORED_TOKENS
from baltoro.errors import EngineError, RequestError
from tests.engine import fake
from tests.engine.fake import HashModel, engine_config, expected, logits_after, request
from tests.engine.test_engine import Multiples, run_all


def log_softmax(logits):
    """By the definition, in python floats."""
    best = max(logits)
    norm = best + math.log(math.fsum(math.exp(logit - best) for logit in logits))
    return [logit - norm for logit in logits]


def check(scored, logits, num_top):
    truth = log_softmax([float(logit) for logit in logits])
    wanted = sorted(range(len(truth)), key=lambda i: (-truth[i], i))[:num_top]
    wanted += [scored.token] * (scored.token not in wanted)
    assert [token for token, _ in scored.top] == wanted
    for token, logprob in (*scored.top, (scored.token, scored.logprob)):
        assert logprob == pytest.approx(truth[token], abs=2e-6)  # float32 exponentials


@given(
    logits=st.lists(st.floats(-30, 30, width=16), min_size=1, max_size=40), num_top=st.integers(0, 50), data=st.data()
)
@settings(max_examples=80, deadline=None)
def test_scores_are_the_log_softmax_falling_ties_by_id_the_chosen_one_among_them(logits, num_top, data):
    token = data.draw(st.integers(0, len(logits) - 1))
    check(score(np.asarray(logits, np.float32), token, num_top), logits, num_top)


def test_a_row_of_k2_s_size_is_scored_as_precisely():
    logits = np.random.default_rng(0).normal(0, 4, 163_840).astype(np.float32)
    check(score(logits, 5, 20), logits, 20)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_logits_have_no_scores(bad):
    with pytest.raises(EngineError, match="finite"):
        score(np.full(3, bad, np.float32), 0, 1)


def test_tokens_are_scored_by_the_model_s_own_logits_whatever_was_done_to_them():
    """Penalties, bias, mask and temperature choose; the scores are those of the raw logits."""
    req, listener = request(
        [5, 6],
        constraint=Multiples(),
        temperature=1.7,
        repetition_penalty=1.5,
        logit_bias={3: 50.0},
        top_k=3,
        seed=1,
        logprobs=4,
    )
    run_all([(req, listener)], engine_config())
    history = [5, 6]
    assert len(listener.steps) == 8
    for step in listener.steps:
        assert step.scored is not None and step.scored.token == step.token
        check(step.scored, logits_after(history), 4)
        history.append(step.token)
    plain, heard = request([5, 6])
    run_all([(plain, heard)], engine_config())
    assert all(step.scored is None and step.prompt == () for step in heard.steps)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(engine_config(400), id="all at once"),
        pytest.param(engine_config(400, prefill_tokens=3), id="chunks of three"),
        pytest.param(engine_config(20, max_context=80, max_running=8, prefill_tokens=7), id="too few pages"),
    ],
)
def test_every_prompt_token_but_the_first_is_scored_once_and_before_the_answer(config):
    pairs = [request([(7 * i + j) % fake.VOCAB for j in range(i + 1)], max_tokens=25, seed=i) for i in range(12)]
    for req, _ in pairs[::2]:
        req.prompt_logprobs = 2
    statistics = run_all(pairs, config)
    assert (statistics.preemptions > 0) == (config.max_context == 80), "this case tests nothing"
    for req, listener in pairs:
        assert listener.tokens == expected(req.prompt, req.sampling)
        first = next(place for place, step in enumerate(listener.steps) if step.token is not None)
        assert all(step.prompt == () for step in listener.steps[first:])
        scores = [scored for step in listener.steps[:first] for scored in step.prompt]
        if req.prompt_logprobs is None:
            assert scores == []
            continue
        assert [scored.token for scored in scores] == req.prompt[1:]
        for place, scored in enumerate(scores, 1):
            check(scored, logits_after(req.prompt[:place]), 2)


def test_one_step_never_holds_the_logits_of_more_than_one_chunk_of_a_scored_prompt():
    model = HashModel()
    pairs = [request([i] * 600, max_tokens=2) for i in range(3)]
    for req, _ in pairs:
        req.prompt_logprobs = 0
    run_all(pairs, engine_config(800, prefill_tokens=2000), model)
    rows = [len(batch.ids) if batch.logit_rows is None else len(batch.logit_rows) for batch in model.batches]
    assert sum(rows) == 3 * (600 + 1)  # every prompt's rows, one more token each
    assert max(rows) <= SCORED_TOKENS + len(pairs)


def test_a_sink_that_fails_on_its_prompt_and_a_broken_prompt_lose_their_request_only():
    class Broken(HashModel):
        def __call__(self, batch, cache, **more):
            logits = super().__call__(batch, cache, **more)
            wanted = range(len(batch.ids)) if batch.logit_rows is None else batch.logit_rows.tolist()
            for start, end in pairwise(batch.edges):
                if 13 in batch.ids[start:end]:
                    logits[[place for place, row in enumerate(wanted) if start <= row < end]] = math.nan
            return logits

    def raising(step):
        raise ValueError("the client went away")

    deaf, _ = request([1, 2, 3])
    deaf.sink, deaf.prompt_logprobs = raising, 0
    broken, heard_broken = request([13, 2, 3])
    broken.prompt_logprobs = 0
    fine, heard = request([4, 5])
    run_all([(fine, heard)], engine_config(), Broken())
    again, heard_again = request([4, 5])
    with Engine(Broken(), engine_config()) as engine:
        engine.submit(deaf)
        engine.submit(broken)
        engine.submit(again)
        assert heard_broken.wait().finish is FinishReason.ERROR
        assert heard_again.wait().tokens == heard.tokens == expected(fine.prompt, fine.sampling)
        assert engine.healthy


def test_a_negative_number_of_alternatives_is_refused():
    req, _ = request([1, 2])
    req.prompt_logprobs = -1
    with Engine(HashModel(), engine_config()) as engine, pytest.raises(RequestError, match="prompt_logprobs"):
        engine.submit(req)
