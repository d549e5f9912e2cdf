"""The same prompt and seed give the same tokens and log-probabilities, to the bit, however the engine works them out.

It cuts prompts, mixes requests, evicts, guesses, takes what it has computed before, and runs on several threads.
"""

from __future__ import annotations

import random

import pytest
import torch

from baltoro.engine.config import EngineConfig
from baltoro.engine.engine import Engine
from baltoro.kernels.targets import targets
from baltoro.model import load
from baltoro.model.load import save
from tests import tiny
from tests.engine.fake import request
from tests.model.random_models import random_model

CONFIG = tiny.config(
    num_attention_heads=3, kv_lora_rank=64, v_head_dim=32, qk_nope_head_dim=16, qk_rope_head_dim=16,
    hidden_size=128, moe_intermediate_size=64, intermediate_size=128, q_lora_rank=64,
)  # fmt: skip
TOKEN_BYTES = CONFIG.num_hidden_layers * (CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim) * 2

pytestmark = pytest.mark.skipif(len(targets()) == 1, reason="no native kernels were built")


@pytest.fixture(scope="module", params=["bf16", "fp8", "int8", "int4"])
def format(request):
    return request.param


@pytest.fixture(scope="module")
def model(format, tmp_path_factory):
    folder = tmp_path_factory.mktemp(format)
    save(random_model(CONFIG), folder)
    return load.load(folder, format=format)


@pytest.fixture(scope="module")
def forgetful(format, tmp_path_factory):
    """Without attention, what comes next depends on the last token alone: it soon goes round in a circle."""
    folder = tmp_path_factory.mktemp(format)
    blind = random_model(CONFIG)
    with torch.no_grad():
        for name, parameter in blind.named_parameters():
            if "o_proj" in name:
                parameter.zero_()
    save(blind, folder)
    return load.load(folder, format=format)


def wishes():
    """Prompts of many lengths, some with pieces that come again; greedy and sampled."""
    chance = random.Random(0)
    piece = [chance.randrange(CONFIG.vocab_size) for _ in range(9)]
    found = []
    for index, length in enumerate([1, 2, 17, 33, 64, 65, 90, 130]):
        prompt = [chance.randrange(CONFIG.vocab_size) for _ in range(length)]
        if index % 2:
            prompt = (piece + prompt + piece)[-length:]
        sampling = {"max_tokens": 30, "temperature": [0.0, 0.7][index // 2 % 2], "seed": index, "logprobs": 2}
        found.append((prompt, sampling))
    return found


def answers(model, *, cache_tokens=4096, wanted=None, **settings):
    cache = {"cache_bytes": cache_tokens * TOKEN_BYTES, "cache_dtype": torch.bfloat16, "page_tokens": 16}
    with Engine(model, EngineConfig(**cache, **settings)) as engine:
        pairs = [request(prompt, **sampling) for prompt, sampling in wanted or wishes()]
        with engine._orders:  # so that one step sees them all
            for req, _ in pairs:
                engine.submit(req)
        found = [[(step.token, step.scored) for step in listener.wait(120).steps] for _, listener in pairs]
        return found, engine.statistics()


def test_answers_do_not_depend_on_who_else_is_there_nor_on_how_prompts_are_cut(model):
    alone = [answers(model, wanted=[wish], speculate=False, max_running=1)[0][0] for wish in wishes()]
    assert answers(model, speculate=False)[0] == alone
    for prefill_tokens in (1, 7, 50):
        assert answers(model, prefill_tokens=prefill_tokens)[0] == alone
    tight, seen = answers(model, cache_tokens=256, prefill_tokens=40)
    assert seen.preemptions > 0, "this case tests nothing"
    assert tight == alone


def test_answers_do_not_depend_on_threads(model):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(answers(model)[0])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_guesses_spare_steps_and_change_nothing(forgetful):
    """A model that repeats itself is foreseen by its own text."""
    wanted = [(prompt, sampling | {"max_tokens": 150}) for prompt, sampling in wishes()]
    plain, before = answers(forgetful, wanted=wanted, speculate=False, max_running=1)
    assert answers(forgetful, wanted=wanted)[0] == plain
    found, seen = answers(forgetful, wanted=wanted, max_running=1)
    assert found == plain
    assert before.drafted_tokens == 0
    assert 0 < seen.foreseen_tokens <= seen.drafted_tokens
    assert before.steps - seen.steps == seen.foreseen_tokens
