"""What a trainer needs of the engine: log-probabilities of what it draws by, the same steps again, new weights."""

from __future__ import annotations

import math

import pytest

from baltoro.engine.engine import Engine
from baltoro.engine.request import SamplingParams
from baltoro.errors import EngineError, RequestError
from tests.engine.fake import HashModel, engine_config, logits_after, request
from tests.engine.test_engine import Multiples, run_all


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tempered_logprobs_are_the_log_softmax_of_what_is_drawn_from(temperature: float) -> None:
    asked, heard = request([3, 1, 4], temperature=temperature, seed=7, logprobs=0, tempered_logprobs=True)
    plain, also_heard = request([3, 1, 4], temperature=temperature, seed=7, logprobs=0)
    run_all([(asked, heard), (plain, also_heard)], engine_config())
    assert heard.tokens == also_heard.tokens  # they are reported otherwise, not drawn otherwise
    history = [3, 1, 4]
    for step, other in zip(heard.steps, also_heard.steps, strict=True):
        for scored, divisor in ((step.scored, temperature), (other.scored, 1.0)):
            logits = [float(logit) / divisor for logit in logits_after(history)]
            norm = max(logits) + math.log(math.fsum(math.exp(logit - max(logits)) for logit in logits))
            assert scored is not None and step.token is not None
            assert scored.logprob == pytest.approx(logits[step.token] - norm, abs=2e-6)  # float32 exponentials
        assert step.token is not None
        history.append(step.token)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"presence_penalty": 0.5},
        {"repetition_penalty": 1.1}, {"frequency_penalty": 0.5}, {"logit_bias": {3: 1.0}}, {"min_tokens": 2},
    ],
)  # fmt: skip
def test_they_are_refused_where_something_else_changes_what_is_drawn(changes: dict[str, object]) -> None:
    SamplingParams(max_tokens=4, temperature=1.0, logprobs=0, tempered_logprobs=True)
    with pytest.raises(RequestError, match="tempered_logprobs"):
        SamplingParams(**({"max_tokens": 4, "temperature": 1.0, "tempered_logprobs": True} | changes))  # type: ignore[arg-type]


def test_beside_a_constraint_they_are_refused() -> None:
    asked, _ = request([1, 2], constraint=Multiples(), temperature=1.0, logprobs=0, tempered_logprobs=True)
    with Engine(HashModel(), engine_config()) as engine, pytest.raises(RequestError, match="constraint"):  # type: ignore[arg-type]
        engine.submit(asked)


def test_requests_that_are_submitted_together_take_the_same_steps_each_time() -> None:
    def steps() -> list[list[int]]:
        model = HashModel()
        pairs = [request([5, 6, seed], seed=seed, temperature=1.0, max_tokens=3 + seed) for seed in range(12)]
        with Engine(model, engine_config(400)) as engine:  # type: ignore[arg-type]
            engine.submit_all(asked for asked, _ in pairs)
            for _, heard in pairs:
                heard.wait()
        return [batch.ids.tolist() for batch in model.batches]

    assert steps() == steps()


def test_of_requests_that_are_submitted_together_none_runs_when_one_is_refused() -> None:
    good, bad = request([1, 2])[0], request([1, 10**6])[0]
    with Engine(HashModel(), engine_config()) as engine:  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="token id 1000000"):
            engine.submit_all([good, bad])
        assert engine.statistics().waiting == engine.statistics().running == 0


def test_prefixes_that_are_forgotten_are_computed_anew() -> None:
    prompt = list(range(40))
    with Engine(HashModel(), engine_config(64)) as engine:  # type: ignore[arg-type]
        for forgets, reuses in ((False, False), (False, True), (True, False), (False, True)):
            if forgets:
                engine.forget_prefixes()
                assert engine.statistics().prefix_pages == 0
                assert engine.statistics().free_pages == engine.statistics().num_pages
            asked, heard = request(prompt)
            engine.submit(asked)
            assert bool(heard.wait().steps[-1].cached_tokens) == reuses


def test_weights_are_not_changed_under_a_request() -> None:
    asked, heard = request([1, 2], max_tokens=200)
    with Engine(HashModel(), engine_config()) as engine:  # type: ignore[arg-type]
        with engine._orders:  # the loop cannot take it before we have looked
            engine.submit(asked)
            with pytest.raises(EngineError, match="1 requests are under way"):
                engine.forget_prefixes()
        heard.wait()
