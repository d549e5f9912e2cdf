"""A prefix that is used again changes no bit of an answer: the real architecture, packed, on the native kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from baltoro.engine.config import EngineConfig, page_bytes
from baltoro.engine.engine import Engine
from baltoro.engine.prefix_files import PageShape, PrefixFiles
from baltoro.kernels.targets import chosen_target
from baltoro.model.load import load, save
from tests import tiny
from tests.engine.fake import request
from tests.model.random_models import random_ids, random_model

# Widths that the native kernels take.
CONFIG = tiny.config(
    hidden_size=256, kv_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32, num_hidden_layers=3
)
ENGINE = EngineConfig(cache_bytes=2**20, page_tokens=16, prefill_tokens=48)
SYSTEM = random_ids(CONFIG, 100)  # six pages and a bit
PROMPTS = [SYSTEM + random_ids(CONFIG, tail, seed=tail) for tail in (20, 2, 60, 30)]

pytestmark = pytest.mark.skipif(chosen_target() == "torch", reason="torch's products differ with the number of rows")


class Recording:
    """The model, and all logits it gave."""

    def __init__(self, model):
        self.config, self.store, self.model = model.config, None, model
        self.logits = []

    def __call__(self, batch, cache, **more):
        logits = self.model(batch, cache)
        self.logits += list(logits.numpy().copy())
        return logits


@pytest.fixture(scope="module", params=["bf16", "fp8", "int8", "int4"])
def model(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    save(random_model(CONFIG), directory)
    return load(directory, format=request.param)


def answers(model, prompts, *, files=None, **changes):
    """Tokens and logits of each, one after the other, and how many prompt tokens each found."""
    recording, found = Recording(model), []
    with Engine(recording, replace(ENGINE, **changes), files=files) as engine:
        for prompt in prompts:
            recording.logits.clear()
            req, listener = request(prompt, max_tokens=6, temperature=0.8, seed=5)
            engine.submit(req)
            tokens = listener.wait(60).tokens
            found.append((tokens, np.stack(recording.logits), listener.steps[-1].cached_tokens))
    return found


def assert_same_bits(found, truth):
    for (tokens, logits, _), (true_tokens, true_logits, _) in zip(found, truth, strict=True):
        assert (logits == true_logits).all(), np.abs(logits - true_logits).max()
        assert tokens == true_tokens


def test_tokens_and_logits_with_a_hit_are_those_without(model):
    truth = answers(model, PROMPTS, prefix_cache=False)
    assert [reused for *_, reused in truth] == [0] * 4
    found = answers(model, PROMPTS)
    assert [reused for *_, reused in found] == [0, 96, 96, 96]
    assert_same_bits(found, truth)
    assert_same_bits(answers(model, PROMPTS, prefill_tokens=2048), truth)


def test_tokens_and_logits_after_a_restart_are_those_of_before(model, tmp_path):
    size = page_bytes(CONFIG, ENGINE)
    shape = PageShape(fingerprint=bytes(32), page_tokens=16, page_bytes=size)
    truth = answers(model, PROMPTS, files=PrefixFiles(tmp_path, shape, budget_bytes=2**22))
    found = answers(model, PROMPTS, files=PrefixFiles(tmp_path, shape, budget_bytes=2**22))
    assert [reused for *_, reused in found] == [(len(prompt) - 1) // 16 * 16 for prompt in PROMPTS]
    assert_same_bits(found, truth)


def test_a_hit_may_leave_a_single_token(model):
    prompt = SYSTEM + random_ids(CONFIG, 29, seed=29)  # 129 = 8 * 16 + 1
    found = answers(model, [prompt, prompt])
    assert [reused for *_, reused in found] == [0, 128]
    assert_same_bits(found[1:], answers(model, [prompt], prefix_cache=False))


def test_a_page_has_the_bytes_that_the_files_expect(model):
    assert page_bytes(CONFIG, ENGINE) == 16 * 3 * (64 + 16) * torch.bfloat16.itemsize
