from __future__ import annotations

import dataclasses
import time

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from baltoro import counts
from baltoro.config import ModelConfig
from tests import tiny

K2 = ModelConfig.open("kimi-k2-instruct")


def published(config: ModelConfig) -> transformers.DeepseekV3ForCausalLM:
    """transformers' model of this shape, without memory."""
    hf = transformers.DeepseekV3Config(**(config.to_dict() | {"quantization_config": None}))
    with torch.device("meta"):
        return transformers.DeepseekV3ForCausalLM._from_config(
            hf, attn_implementation="eager", experts_implementation="eager"
        )


def numel(model: torch.nn.Module) -> int:
    biases = (b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return sum(p.numel() for p in model.parameters()) + sum(biases)


def test_kimi_k2_in_numbers() -> None:
    assert counts.parameters(K2) == 1_026_408_232_448
    assert counts.active_parameters(K2) == 32_861_500_928
    assert counts.tensor_bytes(K2) == 1_029_173_256_720
    assert counts.cache_bytes_per_token(K2) == 70_272
    assert counts.cache_bytes_per_token(K2, value_bytes=1) == 35_136


def test_counting_kimi_k2_takes_no_time() -> None:
    start = time.perf_counter()
    counts.parameters(K2), counts.active_parameters(K2), counts.tensor_bytes(K2)
    assert time.perf_counter() - start < 0.05  # measured 0.0003 s


@pytest.mark.parametrize(
    "config",
    [
        K2,
        ModelConfig.open("moonlight-16b-a3b"),
        tiny.config(),
        tiny.config(num_hidden_layers=4, first_k_dense_replace=3),
    ],
)
def test_parameters_are_those_of_the_transformers_model(config: ModelConfig) -> None:
    assert counts.parameters(config) == numel(published(config))


def test_active_parameters_are_a_model_that_has_only_the_chosen_experts() -> None:
    config = tiny.config()
    chosen = dataclasses.replace(config, n_routed_experts=config.num_experts_per_tok)
    router = (config.n_routed_experts - config.num_experts_per_tok) * (config.hidden_size + 1)  # it scores all of them
    assert counts.active_parameters(config) == numel(published(chosen)) + router


def test_every_tensor_of_kimi_k2_is_listed_once() -> None:
    specs = list(counts.tensors(K2, as_shipped=True))
    assert len({spec.name for spec in specs}) == len(specs) == 139_644
    assert sum(spec.numel for spec in specs) == 1_026_470_731_056
    assert sum(spec.nbytes for spec in specs) == 1_029_173_256_720
    assert sum(spec.nbytes for spec in specs if spec.dtype == "F8_E4M3") == 1_023_893_241_856
    assert sum(spec.nbytes for spec in specs if spec.name.endswith("_scale_inv")) == 249_980_768
    assert sum(spec.numel for spec in specs if spec.is_parameter) == counts.parameters(K2)


@pytest.mark.parametrize(
    "name, shape, dtype, scale",
    [
        ("model.embed_tokens.weight", (163840, 7168), "BF16", None),
        ("lm_head.weight", (163840, 7168), "BF16", None),
        ("model.norm.weight", (7168,), "BF16", None),
        ("model.layers.60.input_layernorm.weight", (7168,), "BF16", None),
        ("model.layers.0.self_attn.q_a_proj.weight", (1536, 7168), "F8_E4M3", (12, 56)),
        ("model.layers.0.self_attn.q_a_layernorm.weight", (1536,), "BF16", None),
        ("model.layers.0.self_attn.q_b_proj.weight", (12288, 1536), "F8_E4M3", (96, 12)),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (576, 7168), "F8_E4M3", (5, 56)),
        ("model.layers.0.self_attn.kv_b_proj.weight", (16384, 512), "F8_E4M3", (128, 4)),
        ("model.layers.0.self_attn.o_proj.weight", (7168, 8192), "F8_E4M3", (56, 64)),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (56,), "BF16", None),
        ("model.layers.0.mlp.gate_proj.weight", (18432, 7168), "F8_E4M3", (144, 56)),
        ("model.layers.0.mlp.down_proj.weight", (7168, 18432), "F8_E4M3", (56, 144)),
        ("model.layers.1.mlp.gate.weight", (384, 7168), "BF16", None),
        ("model.layers.1.mlp.gate.e_score_correction_bias", (384,), "F32", None),
        ("model.layers.60.mlp.experts.383.up_proj.weight", (2048, 7168), "F8_E4M3", (16, 56)),
        ("model.layers.60.mlp.experts.383.down_proj.weight", (7168, 2048), "F8_E4M3", (56, 16)),
        ("model.layers.1.mlp.shared_experts.gate_proj.weight", (2048, 7168), "F8_E4M3", (16, 56)),
    ],
)
def test_tensors_of_kimi_k2_have_the_published_shapes(
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    scale: tuple[int, int] | None,
    k2_tensors: dict[str, counts.TensorSpec],
) -> None:
    assert (k2_tensors[name].shape, k2_tensors[name].dtype) == (shape, dtype)
    assert (k2_tensors[name + "_scale_inv"].shape if scale else None) == scale
    assert counts.is_quantized(name) == (scale is not None)
    assert (name + "_scale_inv" in k2_tensors) == (scale is not None)


@pytest.fixture(scope="module")
def k2_tensors() -> dict[str, counts.TensorSpec]:
    return {spec.name: spec for spec in counts.tensors(K2, as_shipped=True)}


def test_what_k2_and_moonlight_ship_of_their_own_stays_theirs() -> None:
    config = tiny.config(weight_block_size=(128, 128))
    assert list(counts.tensors(config)) == list(counts.tensors(config, as_shipped=True))
    assert counts.tensor_bytes(config) == sum(spec.nbytes for spec in counts.tensors(config))
    moonlight = ModelConfig.open("moonlight-16b-a3b")
    assert {spec.dtype for spec in counts.tensors(moonlight, as_shipped=True)} == {"BF16"}
    assert counts.tensor_bytes(moonlight) == 2 * counts.parameters(moonlight)


@pytest.mark.parametrize("tokens", [1, 5])
def test_prefill_operations_are_those_that_torch_counts_less_what_causality_saves(tokens: int) -> None:
    config = tiny.config()
    hf = transformers.DeepseekV3Config(**config.to_dict())
    model = transformers.DeepseekV3ForCausalLM._from_config(
        hf, attn_implementation="eager", experts_implementation="eager"
    )
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    future = tokens * tokens - tokens * (tokens + 1) // 2
    pair = config.num_hidden_layers * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    heads = (tokens - 1) * config.vocab_size * config.hidden_size  # transformers computes every row's logits
    assert counts.prefill_flops(config, tokens=tokens) + 2 * (future * pair + heads) == counter.get_total_flops()


def test_prefill_in_two_chunks_adds_only_the_second_expansion_and_the_second_head() -> None:
    config = tiny.config()
    chunks = counts.prefill_flops(config, tokens=30) + counts.prefill_flops(config, tokens=12, past=30)
    kv_b = config.kv_lora_rank * config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
    extra = 2 * (30 * config.num_hidden_layers * kv_b + config.vocab_size * config.hidden_size)
    assert chunks == counts.prefill_flops(config, tokens=42) + extra


@pytest.mark.parametrize("context", [1, 1000])
def test_decoding_meets_every_active_weight_and_every_cached_latent_once(context: int) -> None:
    # 2 x (active - embedding - norms - bias), then 64 heads x (2 x 512 + 64) a layer and cached token
    norms = 7168 + 61 * (2 * 7168 + 1536 + 512)
    products = 32_861_500_928 - 163840 * 7168 - norms - 60 * 384
    assert counts.decode_flops(K2, context=context) == 2 * (products + context * 61 * 64 * (2 * 512 + 64))
