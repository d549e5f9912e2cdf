"""Answers to held-out prompts are what the model itself would say next."""

from __future__ import annotations

import pytest
import torch

from baltoro.engine.config import EngineConfig
from baltoro.engine.engine import Engine
from baltoro.eval import run
from baltoro.model.batch import Batch
from baltoro.model.load import initialise
from tests.train import tiny_runs


def test_answers_are_the_greedy_continuations_of_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ANSWER_TOKENS", 10)
    model = initialise(tiny_runs.config(), seed=0)
    prompts = [[5, 6, 7], list(range(40)), [63], [9, 9]]
    expected = []
    for prompt in prompts:  # one whole forward a token, without a cache
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + 10:
                ids.append(int(model(Batch.of([ids]))[-1].argmax()))
        expected.append(ids[len(prompt) :])
    stop = expected[1][4]  # whatever the second one says fifth ends it there
    for answer in expected:
        if stop in answer:
            del answer[answer.index(stop) + 1 :]
    with Engine(model, EngineConfig(cache_bytes=2**20, cache_dtype=torch.float32)) as engine:
        found = run.generate(engine, prompts, frozenset({stop}))
    without_stop = [[token for token in answer if token != stop] for answer in found]
    assert without_stop == [[token for token in answer if token != stop] for answer in expected]
