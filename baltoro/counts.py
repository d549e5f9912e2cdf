"""What follows from a config by counting: tensors, parameters, bytes, floating point operations.

Exact integers, no torch. Kimi K2: 1,026,408,232,448 parameters, 32,861,500,928 active for a token,
1,029,173,256,720 bytes of tensors, 70,272 bytes of cache a token. docs/model.md derives them by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from baltoro.config import ModelConfig

BLOCK = 128  # rows and columns that share one scale in block-fp8
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}  # by safetensors' names


class TensorSpec(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: BF16, F32, F8_E4M3; U8: packed

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * BYTES[self.dtype]

    @property
    def is_parameter(self) -> bool:
        return not self.name.endswith(("_scale_inv", "rotary_emb.inv_freq"))


class Part(NamedTuple):
    """Tensors found `times` times in the model, of which `active` times in the computation of one token."""

    purpose: str  # ends (embedding and head), norm, attention, dense, shared (with the router), experts (routed)
    times: int
    active: int
    tensors: tuple[TensorSpec, ...]


def tensors(config: ModelConfig, *, as_shipped: bool = False) -> Iterator[TensorSpec]:
    """Every tensor of a checkpoint, in the order of the forward pass; a scale follows its weight.

    Of one whose matrices are not packed; weights/layout.py has those, too.
    `as_shipped` adds what two published checkpoints have of their own: see `_stray` and `_bias_dtype`.
    """
    yield TensorSpec("model.embed_tokens.weight", (config.vocab_size, config.hidden_size), "BF16")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        yield from _attention(config, prefix)
        if as_shipped:
            yield from _stray(config, prefix)
        if config.is_moe(layer):
            yield from _router(config, prefix, as_shipped)
            for expert in range(config.n_routed_experts):
                yield from _mlp(config, f"{prefix}mlp.experts.{expert}.", config.moe_intermediate_size)
            yield from _shared(config, prefix)
        else:
            yield from _mlp(config, prefix + "mlp.", config.intermediate_size)
    yield TensorSpec("model.norm.weight", (config.hidden_size,), "BF16")
    yield TensorSpec("lm_head.weight", (config.vocab_size, config.hidden_size), "BF16")


def is_quantized(name: str) -> bool:
    """Which weights block-fp8 applies to: every projection; never embedding, head, norms and the router."""
    return name.endswith(("_proj.weight", "kv_a_proj_with_mqa.weight"))


def parameters(config: ModelConfig) -> int:
    """All trained values, the router's correction bias included, scales not."""
    return sum(part.times * _numel(part) for part in parts(config))


def active_parameters(config: ModelConfig) -> int:
    """Parameters that one token meets: K of the E experts, everything else whole (embedding and head too)."""
    return sum(part.active * _numel(part) for part in parts(config))


def tensor_bytes(config: ModelConfig) -> int:
    """Bytes of all tensors in the published files, without their headers."""
    return sum(part.times * spec.nbytes for part in parts(config) for spec in part.tensors)


def expert_bytes(config: ModelConfig) -> int:
    """Of one routed expert as shipped, scales included."""
    return sum(spec.nbytes for spec in _mlp(config, "", config.moe_intermediate_size))


def cache_bytes_per_token(config: ModelConfig, *, value_bytes: int = 2) -> int:
    """MLA keeps a latent and one rotary key per layer and token, whatever the number of heads."""
    return config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * value_bytes


def decode_flops(config: ModelConfig, *, context: int) -> int:
    """Floating point operations for one new token that attends to `context` tokens, itself included.

    Two for each weight it is multiplied with (embedding, norms and bias are not products), and for absorbed
    attention 2 H S (C + R) for scores and 2 H S C for the mixture of latents in each layer. Absorbing kv_b costs
    what expanding one token would: its weights once.
    """
    per_position = config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return 2 * (_products(config) + _head(config) + config.num_hidden_layers * context * per_position)


def prefill_flops(config: ModelConfig, *, tokens: int, past: int = 0) -> int:
    """Operations for `tokens` prompt tokens behind `past` cached ones; only the last one passes the head.

    Expanded attention: token t attends to past + t, each with 2 H (N + R) for the score and 2 H V for the value,
    future positions not counted. Cached latents are expanded once more: 2 kv_b for each past token and layer.
    """
    attended = tokens * past + tokens * (tokens + 1) // 2
    per_position = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    expand = config.kv_lora_rank * config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
    layers = config.num_hidden_layers * (attended * per_position + past * expand)
    return 2 * (tokens * _products(config) + layers + (_head(config) if tokens else 0))


def _head(config: ModelConfig) -> int:
    return config.vocab_size * config.hidden_size


def _products(config: ModelConfig) -> int:
    """Weights that one token is multiplied with inside the layers."""
    layers = (part for part in parts(config) if part.tensors[0].name.startswith("model.layers."))
    matrices = ((part.active, spec) for part in layers for spec in part.tensors if len(spec.shape) == 2)
    return sum(active * spec.numel for active, spec in matrices if spec.is_parameter)


def _numel(part: Part) -> int:
    return sum(spec.numel for spec in part.tensors if spec.is_parameter)


def parts(config: ModelConfig) -> list[Part]:
    """The model without repetition: what a layer, an expert, ... consists of and how often it occurs."""
    layers = config.num_hidden_layers
    moe = sum(config.is_moe(layer) for layer in range(layers))
    prefix, hidden = "model.layers.0.", config.hidden_size
    dense = tuple(_mlp(config, prefix, config.intermediate_size))
    router = (*_router(config, prefix, as_shipped=True), *_shared(config, prefix))
    expert = tuple(_mlp(config, prefix, config.moe_intermediate_size))
    return [
        Part(
            "ends", 2, 2, (TensorSpec("lm_head.weight", (config.vocab_size, hidden), "BF16"),)
        ),  # the embedding is as large
        Part("norm", 1, 1, (TensorSpec("model.norm.weight", (hidden,), "BF16"),)),
        Part("attention", layers, layers, (*_attention(config, prefix), *_stray(config, prefix))),
        Part("dense", layers - moe, layers - moe, dense),
        Part("shared", moe, moe, router),
        Part("experts", moe * config.n_routed_experts, moe * config.num_experts_per_tok, expert),
    ]


def _matrix(config: ModelConfig, name: str, outputs: int, inputs: int) -> Iterator[TensorSpec]:
    """A projection; in block-fp8 with one scale for each block, partial blocks at the edges included."""
    if config.weight_block_size is None:
        yield TensorSpec(name, (outputs, inputs), "BF16")
    else:
        yield TensorSpec(name, (outputs, inputs), "F8_E4M3")
        yield TensorSpec(name + "_scale_inv", (-(-outputs // BLOCK), -(-inputs // BLOCK)), "F32")


def _attention(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    hidden, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    attn = prefix + "self_attn."
    yield TensorSpec(prefix + "input_layernorm.weight", (hidden,), "BF16")
    if config.q_lora_rank is None:
        yield from _matrix(config, attn + "q_proj.weight", heads * config.qk_head_dim, hidden)
    else:
        yield from _matrix(config, attn + "q_a_proj.weight", config.q_lora_rank, hidden)
        yield TensorSpec(attn + "q_a_layernorm.weight", (config.q_lora_rank,), "BF16")
        yield from _matrix(config, attn + "q_b_proj.weight", heads * config.qk_head_dim, config.q_lora_rank)
    yield from _matrix(config, attn + "kv_a_proj_with_mqa.weight", latent + config.qk_rope_head_dim, hidden)
    yield TensorSpec(attn + "kv_a_layernorm.weight", (latent,), "BF16")
    yield from _matrix(config, attn + "kv_b_proj.weight", heads * (config.qk_nope_head_dim + config.v_head_dim), latent)
    yield from _matrix(config, attn + "o_proj.weight", hidden, heads * config.v_head_dim)
    yield TensorSpec(prefix + "post_attention_layernorm.weight", (hidden,), "BF16")


def _mlp(config: ModelConfig, prefix: str, width: int) -> Iterator[TensorSpec]:
    yield from _matrix(config, prefix + "gate_proj.weight", width, config.hidden_size)
    yield from _matrix(config, prefix + "up_proj.weight", width, config.hidden_size)
    yield from _matrix(config, prefix + "down_proj.weight", config.hidden_size, width)


def _router(config: ModelConfig, prefix: str, as_shipped: bool) -> Iterator[TensorSpec]:
    experts = config.n_routed_experts
    yield TensorSpec(prefix + "mlp.gate.weight", (experts, config.hidden_size), "BF16")
    bias = _bias_dtype(config) if as_shipped else "F32"
    yield TensorSpec(prefix + "mlp.gate.e_score_correction_bias", (experts,), bias)


def _shared(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    if config.n_shared_experts:
        width = config.n_shared_experts * config.moe_intermediate_size
        yield from _mlp(config, prefix + "mlp.shared_experts.", width)


def _shape_of(config: ModelConfig) -> tuple[int, int, int]:
    return config.num_hidden_layers, config.hidden_size, config.n_routed_experts


def _stray(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    """Kimi K2's block-fp8 files hold an unused rotary table a layer: hidden_size / heads / 2 values, not R / 2."""
    if _shape_of(config) == (61, 7168, 384) and config.weight_block_size is not None:
        half = config.hidden_size // config.num_attention_heads // 2
        yield TensorSpec(prefix + "self_attn.rotary_emb.inv_freq", (half,), "BF16")


def _bias_dtype(config: ModelConfig) -> str:
    """Moonlight's files alone round the correction bias to bf16."""
    return "BF16" if _shape_of(config) == (27, 2048, 64) else "F32"
