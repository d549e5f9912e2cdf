"""Checkpoints in and out, what is refused, and a trillion parameters without memory."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import CheckpointError
from baltoro.model.batch import Batch
from baltoro.model.load import Start, build, file_tensors, initialise, load, save
from tests import tiny
from tests.model.random_models import ODD_SHAPES, SHAPES, random_ids, random_model

BLOCK_FP8 = {"weight_block_size": (128, 128)}


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("name", [*SHAPES, *ODD_SHAPES])
def test_a_bf16_checkpoint_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = random_model({**SHAPES, **ODD_SHAPES}[name])
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert loaded.config == model.config
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("keep_fp8", [False, True])
@pytest.mark.parametrize("fields", [{}, BLOCK_FP8])
def test_what_was_loaded_is_saved_as_the_same_files(
    fields: dict[str, tuple[int, int]], keep_fp8: bool, tmp_path: Path
) -> None:
    save(random_model(tiny.config(hidden_size=256, **fields)), tmp_path / "first")
    save(load(tmp_path / "first", keep_fp8=keep_fp8), tmp_path / "second")
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


@pytest.mark.parametrize("fields", [{}, BLOCK_FP8])
@pytest.mark.parametrize("shape", [{}, {"q_lora_rank": None, "n_shared_experts": 2}, {"n_shared_experts": 0}])
def test_files_hold_the_tensors_that_counting_says(
    shape: dict[str, int | None], fields: dict[str, tuple[int, int]]
) -> None:
    config = tiny.config(**shape, **fields)
    spelled = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
    found = {name: (tuple(t.shape), spelled[t.dtype]) for name, t in file_tensors(random_model(config))}
    assert found == {spec.name: (spec.shape, spec.dtype) for spec in counts.tensors(config)}


@pytest.mark.parametrize("tokens", [2, 50])  # few rows go through the fp8 kernel, many through dequantized weights
def test_fp8_kept_gives_the_logits_of_fp8_dequantized(tokens: int, tmp_path: Path) -> None:
    save(random_model(tiny.config(hidden_size=256, q_lora_rank=136, **BLOCK_FP8)), tmp_path)
    kept, plain = load(tmp_path, keep_fp8=True), load(tmp_path)
    assert sum(p.dtype is torch.float8_e4m3fn for p in kept.parameters()) > 10
    assert not any(p.dtype is torch.float8_e4m3fn for p in plain.parameters())
    batch = Batch.of([random_ids(plain.config, tokens)])
    with torch.no_grad():
        torch.testing.assert_close(kept(batch), plain(batch), rtol=0, atol=5e-5)


def test_weights_are_kept_in_the_type_asked_for_but_the_routers_bias_stays_float32(tmp_path: Path) -> None:
    save(random_model(tiny.config()), tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    types = {name: p.dtype for name, p in model.named_parameters()}
    for name, dtype in types.items():
        assert dtype is (torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16), name
    with torch.no_grad():
        assert model(Batch.of([[1, 2, 3]])).dtype is torch.float32


def test_missing_misshapen_and_unexpected_tensors_are_named_in_one_error(tmp_path: Path) -> None:
    save(random_model(tiny.config()), tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    tensors = load_file(shard)
    tensors.pop("model.layers.1.mlp.experts.2.up_proj.weight")
    tensors.pop("model.norm.weight")
    tensors["model.layers.0.self_attn.kv_b_proj.weight"] = torch.zeros(3, 5)
    tensors["model.layers.9.input_layernorm.weight"] = torch.zeros(144)
    save_file(tensors, shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard.name)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "model.layers.1.mlp.experts.2.up_proj.weight is missing" in message
    assert "model.norm.weight is missing" in message
    assert "model.layers.0.self_attn.kv_b_proj.weight is [3, 5], config.json implies [84, 24]" in message
    assert "model.layers.9.input_layernorm.weight" in message


def test_fp8_weights_without_their_scales_are_refused(tmp_path: Path) -> None:
    save(random_model(tiny.config(**BLOCK_FP8)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"q_a_proj\.weight is F8_E4M3, config\.json implies BF16"):
        load(tmp_path)


def test_kimi_k2_is_built_without_memory_in_seconds() -> None:
    began = time.process_time()
    model = build(ModelConfig.open("kimi-k2-instruct"))
    assert time.process_time() - began < 20  # 0.3 s on a free core
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_026_408_232_448


@pytest.mark.parametrize("preset", ["moonlight-16b-a3b", "kimi-k2-instruct-0905"])
def test_a_built_model_has_as_many_parameters_as_counting_says(preset: str) -> None:
    config = ModelConfig.open(preset)
    assert sum(parameter.numel() for parameter in build(config).parameters()) == counts.parameters(config)


def test_a_seed_decides_all_parameters() -> None:
    first, again, other = (initialise(tiny.config(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].dim() > 1)


def test_the_head_starts_as_a_multiple_of_the_embeddings_if_asked() -> None:
    model = initialise(tiny.config(), seed=0, start=Start(embedding_std=0.5, head_scale=0.04))
    embeddings = model.model.embed_tokens.weight
    assert embeddings.std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(model.lm_head.weight, 0.04 * embeddings)


def test_a_new_model_predicts_nearly_uniformly_and_its_matrices_keep_the_size_of_their_input() -> None:
    config = SHAPES["k2"]
    model = initialise(config, seed=0)
    sizes = {name: p.std().item() * p.shape[-1] ** 0.5 for name, p in model.named_parameters() if p.dim() > 1}
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(config.initializer_range, rel=0.02)
    for name, size in sizes.items():
        if "embed" not in name and "lm_head" not in name:
            depth = (
                (2 * config.num_hidden_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            )
            assert size == pytest.approx(depth, rel=0.1), name
    ids = random_ids(config, 200)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(Batch.of([ids]))[:-1], torch.tensor(ids[1:]))
    assert float(loss) == pytest.approx(math.log(config.vocab_size), abs=0.1)
