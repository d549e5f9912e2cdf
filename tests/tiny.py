"""Models small enough to make in a test: configs, and random weights under the checkpoint's names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from baltoro import counts
from baltoro.config import ModelConfig, Yarn
from baltoro.weights import fp8

YARN = Yarn(
    factor=32.0, original_max_position_embeddings=64, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0
)


def config(**changes: Any) -> ModelConfig:
    """K2 in miniature: no size a multiple of 128, value heads narrower than query heads, a dense layer first."""
    fields: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 144, "intermediate_size": 200, "moe_intermediate_size": 136,
        "num_hidden_layers": 2, "num_attention_heads": 3, "q_lora_rank": 40, "kv_lora_rank": 24,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.827, "max_position_embeddings": 2048, "rope_theta": 50000.0,
        "bos_token_id": 256, "eos_token_id": 257, "yarn": YARN,
    }  # fmt: skip
    return ModelConfig(**(fields | changes))


def weights(config: ModelConfig, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Random tensors for every name; block-fp8 where the config says so, the scales behind their weights."""
    generator = torch.Generator().manual_seed(seed)
    scale_inv = torch.empty(0)
    for spec in counts.tensors(config):
        if spec.name.endswith("_scale_inv"):
            yield spec.name, scale_inv
            continue
        values = torch.randn(spec.shape, generator=generator) / math.sqrt(spec.shape[-1])
        if spec.dtype == "F8_E4M3":
            values, scale_inv = fp8.quantize(values)
            yield spec.name, values
        else:
            yield spec.name, values.to(torch.bfloat16 if spec.dtype == "BF16" else torch.float32)
