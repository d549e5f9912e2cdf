"""The engine over the real architecture: what it says equals the model asked alone, without cache, token by token."""

from __future__ import annotations

import random

import pytest
import torch

from baltoro.engine import sampler
from baltoro.engine.config import EngineConfig
from baltoro.engine.engine import Engine
from baltoro.model import load
from baltoro.model.batch import Batch
from tests import tiny
from tests.engine.fake import request

CONFIG = tiny.config()


@pytest.fixture(scope="module")
def model():
    return load.initialise(CONFIG, seed=3)


@pytest.fixture(scope="module")
def spoken(model):
    """Six wishes and their tokens, by whole forwards without a cache."""
    chance = random.Random(0)
    wishes = []
    for index in range(6):
        prompt = [chance.randrange(CONFIG.vocab_size) for _ in range(chance.choice([1, 3, 30, 60]))]
        sampling = {"max_tokens": 24, "temperature": [0.0, 0.9][index % 2], "top_p": 0.95, "seed": index}
        history = list(prompt)
        with torch.inference_mode():
            for step in range(24):
                logits = model(Batch.of([history]))[-1].numpy()
                params = request(prompt, **sampling)[0].sampling
                draw = sampler.uniform(index, step)
                history.append(sampler.Sampler(len(logits)).choose(logits, params, mask=None, draw=draw))
        wishes.append((prompt, sampling, history[len(prompt) :]))
    return wishes


@pytest.mark.parametrize(
    "max_running, prefill_tokens, cache_tokens",
    [
        pytest.param(1, 2048, 100, id="each alone, prompts whole"),
        pytest.param(6, 2048, 400, id="all at once"),
        pytest.param(6, 7, 400, id="all at once, prompts in chunks"),
        pytest.param(6, 7, 100, id="all at once, in chunks, preempted"),
    ],
)
def test_tokens_equal_those_of_the_model_alone_without_a_cache(
    model, spoken, max_running, prefill_tokens, cache_tokens
):
    # float32: a latent rounded to bf16 may tip over where two ways of adding differ in the last bit.
    token_bytes = CONFIG.num_hidden_layers * (CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim) * 4
    config = EngineConfig(
        cache_bytes=cache_tokens * token_bytes,
        cache_dtype=torch.float32,
        page_tokens=2,
        max_running=max_running,
        prefill_tokens=prefill_tokens,
    )
    with Engine(model, config) as engine:
        pairs = [request(prompt, **sampling) for prompt, sampling, _ in spoken]
        with engine._orders:  # so that one step sees them all
            for req, _ in pairs:
                engine.submit(req)
        for (_, listener), (_, _, tokens) in zip(pairs, spoken, strict=True):
            assert listener.wait(60).tokens == tokens
        assert (engine.statistics().preemptions > 0) == (max_running > 1 and cache_tokens == 100), (
            "this case tests nothing"
        )
