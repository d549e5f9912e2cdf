"""Rotary positions against transformers, against complex numbers, and against what K2's papers print."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from baltoro.config import ModelConfig, Yarn
from baltoro.model.rope import rotary_scale, rotary_table, rotate, softmax_scale, yarn_inv_freq
from tests import oracle, tiny
from tests.model.random_models import SHAPES

PRESETS = ("kimi-k2-instruct", "kimi-k2-instruct-0905", "kimi-k2-base", "moonlight-16b-a3b")
YARNS = {
    "DeepSeek-V3": tiny.config(
        qk_rope_head_dim=64,
        rope_theta=10000.0,
        yarn=Yarn(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0),
    ),
    "mscales differ": tiny.config(
        qk_rope_head_dim=16,
        yarn=Yarn(factor=8.0, original_max_position_embeddings=128, mscale=0.7, mscale_all_dim=1.2),
    ),
    "no mscale_all_dim": tiny.config(qk_rope_head_dim=16, yarn=Yarn(factor=8.0, original_max_position_embeddings=128)),
    "not stretched": tiny.config(
        qk_rope_head_dim=16, yarn=Yarn(factor=1.0, original_max_position_embeddings=2048, mscale_all_dim=1.0)
    ),
}
CONFIGS = {**{name: ModelConfig.open(name) for name in PRESETS}, **YARNS, **SHAPES}


@pytest.fixture(scope="module")
def deepseek() -> Any:
    return pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_and_scales_are_those_of_transformers(name: str, deepseek: Any) -> None:
    from transformers import DeepseekV3Config

    config = CONFIGS[name]
    theirs = DeepseekV3Config.from_dict({**config.to_dict(), "num_hidden_layers": 1, "num_nextn_predict_layers": 0})
    rotary = deepseek.DeepseekV3RotaryEmbedding(theirs)
    torch.testing.assert_close(yarn_inv_freq(config), rotary.inv_freq, rtol=1e-6, atol=0.0)
    assert rotary_scale(config) == pytest.approx(rotary.attention_scaling, rel=1e-12)
    scale = deepseek.yarn_apply_mscale(theirs.rope_parameters, config.qk_head_dim**-0.5)
    assert softmax_scale(config) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "no mscale_all_dim"])  # there the sources differ
def test_frequencies_and_scales_are_those_of_the_papers(name: str) -> None:
    config = CONFIGS[name]
    frequencies, amplitude = oracle.rotary(config.to_dict())
    np.testing.assert_allclose(yarn_inv_freq(config).numpy(), frequencies, rtol=1e-6)
    assert rotary_scale(config) == pytest.approx(amplitude, rel=1e-12)
    assert softmax_scale(config) == pytest.approx(oracle.softmax_scale(config.to_dict()), rel=1e-12)


def test_k2_slows_the_pairs_from_20_on_and_leaves_the_others() -> None:
    config = ModelConfig.open("kimi-k2-instruct")
    plain = 50000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(
        yarn_inv_freq(config).numpy(), np.where(np.arange(32) < 20, plain, plain / 32), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("preset", "scale"),
    [("kimi-k2-instruct", 0.130861), ("kimi-k2-instruct-0905", 0.144680), ("moonlight-16b-a3b", 0.0721688)],
)
def test_softmax_scales_of_the_published_models(preset: str, scale: float) -> None:
    assert softmax_scale(ModelConfig.open(preset)) == pytest.approx(scale, abs=5e-7)


@pytest.mark.parametrize("name", ["k2", "deepseek", "moonlight"])
def test_neighbouring_dimensions_turn_as_complex_numbers(name: str) -> None:
    config = SHAPES[name]
    positions = torch.tensor([0, 1, 5, 63, 64, 100])
    x = torch.randn(6, 3, config.qk_rope_head_dim, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, *rotary_table(config, positions)).numpy()
    frequencies, amplitude = oracle.rotary(config.to_dict())
    for token, position in enumerate(positions.tolist()):
        for head in range(3):
            truth = oracle.turn(x[token, head].double().numpy(), position * frequencies) * amplitude
            np.testing.assert_allclose(turned[token, head], truth, atol=4e-5)  # float32 angles: 100 rad x 2^-24


def test_the_shared_key_turns_like_each_head() -> None:
    config = SHAPES["k2"]
    table = rotary_table(config, torch.arange(7))
    x = torch.randn(7, config.qk_rope_head_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x, *table), rotate(x.unsqueeze(1), *table).squeeze(1))


def test_scores_depend_on_the_distance_alone() -> None:
    config = SHAPES["k2"]
    q, k = torch.randn(2, 1, config.qk_rope_head_dim, generator=torch.Generator().manual_seed(0)).unbind(0)

    def score(query: int, key: int) -> float:
        turned_q = rotate(q, *rotary_table(config, torch.tensor([query])))
        return float((turned_q * rotate(k, *rotary_table(config, torch.tensor([key])))).sum())

    assert score(9, 4) == pytest.approx(score(205, 200), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)
