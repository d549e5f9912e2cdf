"""Models small enough for a test, with weights that make every part count."""

from __future__ import annotations

import torch

from baltoro.config import ModelConfig, Yarn
from baltoro.model.load import build
from baltoro.model.transformer import Transformer
from tests import tiny

SHAPES = {
    # Kimi K2: one group, YaRN as a step. Nothing is a multiple of 128.
    "k2": tiny.config(n_routed_experts=10, num_experts_per_tok=3, num_hidden_layers=3),
    # Matrices of several fp8 blocks, whole ones and ragged ones.
    "blocks": tiny.config(hidden_size=256, q_lora_rank=128, kv_lora_rank=136, moe_intermediate_size=128),
    # Moonlight: no query compression, two shared experts, no YaRN, another eps outside than inside attention.
    "moonlight": tiny.config(
        q_lora_rank=None,
        n_shared_experts=2,
        n_routed_experts=8,
        num_experts_per_tok=6,
        yarn=None,
        rms_norm_eps=1e-5,
        routed_scaling_factor=2.446,
    ),
    # DeepSeek-V3: groups of experts, a real YaRN ramp, rotary amplitude not 1, two dense layers, wide values.
    "deepseek": tiny.config(
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        num_hidden_layers=4,
        first_k_dense_replace=2,
        qk_rope_head_dim=32,
        v_head_dim=20,
        rope_theta=10000.0,
        yarn=Yarn(factor=32.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.8),
    ),
}
# What transformers cannot express.
ODD_SHAPES = {
    "no shared experts": tiny.config(n_shared_experts=0),
    "every second layer dense": tiny.config(num_hidden_layers=5, moe_layer_freq=2, first_k_dense_replace=0),
    "weights not normalised": tiny.config(norm_topk_prob=False),
    "one expert per token": tiny.config(num_experts_per_tok=1),
}


def random_model(config: ModelConfig, *, seed: int = 0) -> Transformer:
    """Norms away from 1, a router that is sure of itself, a bias that matters, attention with peaks, logits of size 2.

    Every weight fits bfloat16, so that a checkpoint in bf16 loses nothing.
    """
    gains = {"mlp.gate.weight": 1.5, "q_proj.weight": 3.0, "q_b_proj.weight": 3.0, "lm_head.weight": 2.0}
    model = build(config).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if name.endswith("e_score_correction_bias"):
                parameter.mul_(0.2).sub_(0.4)  # most choices are positive, some are not
                continue
            if parameter.dim() == 1:
                parameter.mul_(0.2).add_(1.0)
            elif "embed_tokens" not in name:
                gain = next((gain for ending, gain in gains.items() if name.endswith(ending)), 1.0)
                parameter.mul_(gain * parameter.shape[-1] ** -0.5)
            parameter.copy_(parameter.bfloat16())
    return model.eval()


def random_ids(config: ModelConfig, tokens: int, *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + tokens)
    return torch.randint(0, config.vocab_size, (tokens,), generator=generator).tolist()
