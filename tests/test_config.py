from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro import config_rules
from baltoro.config import PRESETS, ModelConfig, Yarn
from baltoro.errors import ConfigError
from tests import tiny

FILES = {name: path for name, path in PRESETS.items() if path.suffix == ".json"}


def k2(**changes: Any) -> dict[str, Any]:
    """Kimi-K2-Instruct's config.json with some keys changed; `...` takes a key out."""
    content = json.loads(PRESETS["kimi-k2-instruct"].read_text()) | changes
    return {key: value for key, value in content.items() if value is not ...}


def rope(**changes: Any) -> dict[str, Any]:
    content = k2()["rope_scaling"] | changes
    return {key: value for key, value in content.items() if value is not ...}


@pytest.mark.parametrize("name", FILES)
def test_a_preset_says_the_same_to_us_and_to_transformers(name: str) -> None:
    content = json.loads(FILES[name].read_text())
    ours = ModelConfig.open(name)
    theirs = transformers.DeepseekV3Config(**content)
    for field in dataclasses.fields(ours):
        if field.name not in ("yarn", "weight_block_size", "packed_format", "rope_theta", "model_type"):
            assert getattr(theirs, field.name) == getattr(ours, field.name), field.name
    assert theirs.rope_parameters["rope_theta"] == ours.rope_theta
    if ours.yarn is None:
        assert theirs.rope_parameters["rope_type"] == "default"
    else:
        assert dataclasses.asdict(ours.yarn).items() <= theirs.rope_parameters.items()


def test_the_long_context_checkpoint_differs_in_nothing_but_its_stretch() -> None:
    short, long = ModelConfig.open("kimi-k2-instruct"), ModelConfig.open("kimi-k2-instruct-0905")
    assert short.yarn is not None and (long.max_position_embeddings, short.yarn.factor) == (262144, 32.0)
    stretched = dataclasses.replace(short.yarn, factor=64.0)
    assert dataclasses.replace(short, max_position_embeddings=262144, yarn=stretched) == long


def test_moonlight_has_one_query_projection_two_shared_experts_and_no_stretch() -> None:
    config = ModelConfig.open("moonlight-16b-a3b")
    assert (config.q_lora_rank, config.n_shared_experts, config.yarn, config.weight_block_size) == (None, 2, None, None)
    assert [config.is_moe(layer) for layer in range(3)] == [False, True, True]


@pytest.mark.parametrize("name", FILES)
def test_what_we_write_is_what_we_read(name: str) -> None:
    config = ModelConfig.open(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "config",
    [tiny.config(), tiny.config(yarn=None, q_lora_rank=None), tiny.config(n_group=2, weight_block_size=(128, 128))],
)
def test_transformers_reads_our_config_and_we_read_what_it_saves(config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.DeepseekV3Config)
    theirs.save_pretrained(tmp_path / "saved")
    assert "rope_parameters" in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert ModelConfig.open(tmp_path / "saved") == config


def test_kimi_k2_and_deepseek_v3_are_one_architecture() -> None:
    other = ModelConfig.from_dict(k2(model_type="deepseek_v3"))
    assert dataclasses.replace(other, model_type="kimi_k2") == ModelConfig.open("kimi-k2-instruct")


def test_rope_type_and_type_are_the_same_key() -> None:
    assert ModelConfig.from_dict(k2(rope_scaling=rope(type=..., rope_type="yarn"))) == ModelConfig.from_dict(k2())


def test_absent_stretch_parameters_are_those_of_the_published_code() -> None:
    yarn = ModelConfig.from_dict(
        k2(rope_scaling={"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768})
    ).yarn
    assert yarn == Yarn(
        factor=4.0,
        original_max_position_embeddings=32768,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=0.0,
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_sise": 7168}, r"hidden_sise is unknown \(did you mean hidden_size\?\)"),
    ({"sliding_window": 4096}, "sliding_window is unknown"),
    ({"hidden_size": ...}, "hidden_size is missing"),
    ({"n_group": ...}, "n_group is missing"),
    ({"q_lora_rank": ...}, "q_lora_rank is missing"),
    ({"hidden_size": "7168"}, "hidden_size is '7168', must be an integer"),
    ({"hidden_size": 7168.0}, "hidden_size is 7168.0, must be an integer"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True, must be an integer"),
    ({"q_lora_rank": "none"}, "q_lora_rank is 'none', must be an integer or null"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, must be a finite number"),
    ({"norm_topk_prob": 1}, "norm_topk_prob is 1, must be true or false"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0, must be at least 1"),
    ({"n_group": 0}, "n_group is 0, must be at least 1"),
    ({"n_shared_experts": -1}, "n_shared_experts is -1, must be at least 0"),
    ({"rope_theta": 0}, "rope_theta is 0.0, must be more than 0"),
    ({"n_group": 5}, "n_routed_experts 384 is not divisible by n_group 5"),
    ({"n_group": 384, "topk_group": 8}, "n_group 384 leaves fewer than two"),
    ({"topk_group": 2}, "topk_group 2 is more than n_group 1"),
    ({"num_experts_per_tok": 385}, "num_experts_per_tok 385 is more than the experts"),
    ({"n_group": 96, "num_experts_per_tok": 5}, "num_experts_per_tok 5 is more than the experts in topk_group 1"),
    ({"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63, must be even"),
    ({"first_k_dense_replace": 62}, "first_k_dense_replace 62 is more than num_hidden_layers 61"),
    ({"num_key_value_heads": 8}, "num_key_value_heads is 8, must be 64"),
    ({"head_dim": 128}, "head_dim is 128, must be 64"),
    ({"attention_bias": True}, "attention_bias is True, only False"),
    ({"attention_bias": 0}, "attention_bias is 0, only False"),
    ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
    ({"scoring_func": "softmax"}, "scoring_func is 'softmax', only 'sigmoid'"),
    ({"topk_method": "greedy"}, "topk_method is 'greedy', only 'noaux_tc'"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1, only 0"),
    ({"rope_interleave": False}, "rope_interleave is False"),
    ({"moe_layer_freq": 0}, "moe_layer_freq is 0"),
    ({"model_type": "llama"}, "model_type is 'llama', must be 'kimi_k2' or 'deepseek_v3'"),
    ({"model_type": ...}, "model_type is missing"),
    ({"architectures": ["LlamaForCausalLM"]}, "architectures is"),
    ({"bos_token_id": 163840}, "bos_token_id 163840 is not below vocab_size 163840"),
    ({"eos_token_id": 170000}, "eos_token_id 170000 is not below vocab_size 163840"),
    ({"eos_token_id": -1}, "eos_token_id is -1, must be at least 0"),
    ({"quantization_config": {}}, "quant_method is None, only 'fp8'"),
    ({"quantization_config": "fp8"}, "quantization_config is 'fp8', must be an object"),
    (
        {"quantization_config": {"quant_method": "compressed-tensors", "weight_block_size": [128, 128]}},
        "quantization_config.quant_method is 'compressed-tensors', only 'fp8'",
    ),
    (
        {"quantization_config": {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}},
        "quantization_config.fmt is 'e5m2', only 'e4m3'",
    ),
    (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}},
        r"weight_block_size is \[64, 128\], only \[128, 128\]",
    ),
    ({"rope_scaling": rope(type="linear")}, "rope_scaling.type is linear, must be yarn"),
    ({"rope_scaling": rope(type=...)}, "rope_scaling.type is missing, must be yarn"),
    ({"rope_scaling": rope(rope_type="linear")}, "rope_scaling.type is linear and yarn"),
    ({"rope_scaling": rope(factor=...)}, "rope_scaling.factor is missing"),
    ({"rope_scaling": rope(factor="32")}, "rope_scaling.factor is '32', must be a finite number"),
    ({"rope_scaling": rope(factor=0.5)}, "rope_scaling.factor is 0.5, must be at least 1"),
    ({"rope_scaling": rope(beta_fast=0.5)}, "beta_fast 0.5 must not be below beta_slow 1.0"),
    ({"rope_scaling": rope(beta_fats=1.0)}, r"rope_scaling.beta_fats is unknown \(did you mean beta_fast\?\)"),
    ({"rope_scaling": rope(rope_theta=10000.0)}, "rope_theta is 50000.0, but rope_scaling.rope_theta is 10000.0"),
    ({"rope_scaling": 32}, "rope_scaling is 32, must be an object or null"),
    ({"rope_parameters": rope(rope_theta=50000.0)}, "rope_scaling and rope_parameters are both given"),
]


@pytest.mark.parametrize("changes, message", WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig.from_dict(k2(**changes))
    assert caught.value.message.count(";") <= 1, "one mistake, at most one consequence"


def test_everything_wrong_is_named_in_one_error() -> None:
    wrong = k2(
        hidden_sise=1, vocab_size=..., hidden_act="gelu", n_group=5, qk_rope_head_dim=63, kv_lora_rank=None,
        num_key_value_heads=8, rope_scaling=rope(factor="x"), quantization_config={"quant_method": "awq"},
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(wrong, source="here/config.json")
    message = caught.value.message
    assert message.startswith("here/config.json: ")
    for name in ("hidden_sise", "vocab_size", "hidden_act", "n_group 5", "qk_rope_head_dim", "kv_lora_rank",
                 "num_key_value_heads", "factor", "awq", "weight_block_size"):  # fmt: skip
        assert name in message, name


def test_a_config_made_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="n_routed_experts 4 is not divisible by n_group 3"):
        tiny.config(n_group=3)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a JSON file"),
        (b"{'a': 1}", "not a JSON file"),
        (b"[1]", "holds list, expected an object"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b'{"n_group": 1, "n_group": 2}', "given twice: n_group"),
    ],
)
def test_a_file_that_is_no_config_is_an_explained_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        ModelConfig.open(tmp_path)


def test_a_directory_its_config_and_the_preset_are_three_ways_to_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(k2()))
    preset = ModelConfig.open("kimi-k2-instruct")
    assert ModelConfig.open(tmp_path) == ModelConfig.open(str(tmp_path / "config.json")) == preset


def test_a_downloaded_directory_goes_before_the_preset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kimi-k2-base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelConfig.open("kimi-k2-base").vocab_size == 163840, "an empty directory is no model"
    (tmp_path / "kimi-k2-base" / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    assert ModelConfig.open("kimi-k2-base") == tiny.config()


def test_an_unknown_model_is_answered_with_the_nearest_preset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kimi-k2-instuct: no such file.*\n.*did you mean kimi-k2-instruct"):
        ModelConfig.open("kimi-k2-instuct")
    with pytest.raises(ConfigError, match="this directory has no config"):
        ModelConfig.open(tmp_path)


json_values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(config_rules.KNOWN)), json_values, max_size=4), st.data())
def test_any_value_of_any_field_is_read_or_refused_but_never_crashes(
    changes: dict[str, Any], data: st.DataObject
) -> None:
    changes["rope_scaling"] = rope(
        **data.draw(st.dictionaries(st.sampled_from(sorted(rope())), json_values, max_size=2))
    )
    try:
        config = ModelConfig.from_dict(k2(**changes))
    except ConfigError:
        return
    assert ModelConfig.from_dict(config.to_dict()) == config
