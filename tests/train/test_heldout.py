"""Held-out scores come from the model as it is, and leave it as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baltoro.eval import run
from baltoro.eval.tasks import nano
from baltoro.model.load import initialise
from baltoro.train import heldout
from tests.train import tiny_runs

NANO = Path(__file__).parents[2] / "baltoro" / "nano"


def test_an_evaluation_scores_every_kind_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ANSWER_TOKENS", 2)
    model = initialise(tiny_runs.config(vocab_size=2048, max_position_embeddings=8192), seed=0).train()
    model.dtype = torch.bfloat16
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = heldout.Evaluation(str(NANO), 1)(model)
    assert set(table) == set(nano.KINDS)
    for scores in table.values():
        assert 0 <= scores["low"] <= scores["mean"] <= scores["high"] <= 1
    assert table["single"]["mean"] == 0  # two tokens of a random model call nothing
    assert model.dtype == torch.bfloat16 and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
