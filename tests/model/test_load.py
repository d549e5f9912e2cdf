"""Checkpoints in and out, what is refused, and a trillion parameters without memory."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError, CheckpointError
from baltoro.kernels.formats import FORMATS, Format, Packed, pack, unpack
from baltoro.model.batch import Batch
from baltoro.model.heads import Heads, PackedHeads
from baltoro.model.linear import Linear
from baltoro.model.load import Start, build, file_tensors, initialise, load, save
from baltoro.model.moe import StackedLinear
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


@pytest.mark.parametrize("fields", [{}, BLOCK_FP8])
def test_what_was_loaded_is_saved_as_the_same_files(fields: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    save(random_model(tiny.config(hidden_size=256, **fields)), tmp_path / "first")
    save(load(tmp_path / "first"), tmp_path / "second")
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


# Relative error of a token's logits against the same weights unpacked, the median token: twice what was measured here.
# Inputs have 8 bits in bf16, 7 and a scale in front of int8 and int4. A few tokens are routed to other experts.
ERRORS = {"bf16": 0.012, "fp8": 0.012, "int8": 0.04, "int4": 0.04}


def unpacked(packed: Packed | PackedHeads) -> Tensor:
    if isinstance(packed, Packed):
        return unpack(packed)
    return torch.cat((unpack(packed.keys), unpack(packed.values)), dim=1).flatten(0, 1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fields", [{}, BLOCK_FP8])
def test_a_packed_model_gives_the_logits_of_its_weights_unpacked(
    fields: dict[str, tuple[int, int]], format: Format, tmp_path: Path
) -> None:
    save(
        random_model(tiny.config(hidden_size=256, q_lora_rank=136, v_head_dim=16, kv_lora_rank=32, **fields)), tmp_path
    )
    packed, plain = load(tmp_path, format=format), load(tmp_path)
    count = 0
    for name, module in packed.named_modules():
        if isinstance(module, (Linear, StackedLinear, Heads)) and module.packed is not None:
            plain.get_submodule(name).weight = torch.nn.Parameter(unpacked(module.packed), requires_grad=False)
            count += 1
    assert count > 15
    with torch.no_grad():
        for tokens in (2, 50):
            batch = Batch.of([random_ids(plain.config, tokens)])
            found, expected = packed(batch), plain(batch)
            assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median() <= ERRORS[format]


@pytest.mark.parametrize(("format", "kept"), [("bf16", "bf16"), ("fp8", "bf16"), ("int8", "int8"), ("int4", "int8")])
def test_the_head_keeps_at_least_8_bits(format: Format, kept: Format, tmp_path: Path) -> None:
    save(random_model(tiny.config(v_head_dim=16)), tmp_path)
    head = load(tmp_path, format=format).lm_head.packed
    assert head is not None and (head.format, head.outputs, head.inputs) == (kept, 320, 144)


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_a_packed_head_gives_nano_nearly_the_same_logits(format: Format) -> None:
    """The head alone is packed: what it costs is not hidden behind five packed layers."""
    plain, packed = load("nano"), load("nano")
    packed.lm_head.pack(pack(plain.lm_head.weight, format))
    batch = Batch.of([random_ids(plain.config, 60)])
    with torch.no_grad():
        expected, found = plain(batch), packed(batch)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < {"bf16": 0.008, "int8": 0.034}[format]  # twice what was measured
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


def test_block_fp8_is_packed_as_it_lies_in_the_file(tmp_path: Path) -> None:
    save(random_model(tiny.config(hidden_size=256, v_head_dim=16, **BLOCK_FP8)), tmp_path)
    packed, plain = load(tmp_path, format="fp8"), load(tmp_path)
    for name, module in packed.named_modules():
        if isinstance(module, (Linear, StackedLinear)) and module.packed is not None:
            assert torch.equal(unpack(module.packed), plain.get_parameter(f"{name}.weight")), name


def test_a_matrix_that_a_format_cannot_hold_is_an_error(tmp_path: Path) -> None:
    save(random_model(tiny.config(q_lora_rank=20, v_head_dim=16)), tmp_path)
    with pytest.raises(BaltoroError, match="int4 takes groups of at least 8 inputs, a matrix here has 20"):
        load(tmp_path, format="int4")


def test_heads_that_do_not_fill_panels_are_an_error(tmp_path: Path) -> None:
    save(random_model(tiny.config(v_head_dim=12)), tmp_path)
    with pytest.raises(BaltoroError, match="qk_nope_head_dim is 16 and v_head_dim 12, expected multiples of 16"):
        load(tmp_path, format="bf16")


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
