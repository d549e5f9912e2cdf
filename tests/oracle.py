"""Kimi K2's forward pass in float64 numpy: slow, and written from the published description alone.

It shares no code with baltoro. Sources: DeepSeek-V2 report, section 2.1 (latent attention); DeepSeek-V3 report,
section 2.1.2 (routing); YaRN, arXiv:2309.00071, section 3; DeepSeek-V3 README_WEIGHTS.md (block-fp8).
`config` is the dictionary in config.json, `weights` maps the checkpoint's names to float64 arrays (O, I).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

Array = npt.NDArray[np.float64]
Config = dict[str, Any]


@dataclass
class Forward:
    logits: Array  # (T, vocabulary)
    max_scores: list[Array] = field(default_factory=list)  # per layer (heads,): largest score before the softmax
    expert_tokens: list[npt.NDArray[np.int64]] = field(default_factory=list)  # per MoE layer (experts,)


def read(directory: Path) -> tuple[Config, dict[str, Array]]:
    """config.json and every weight, block-fp8 multiplied with its scales."""
    stored = {}
    for shard in sorted(directory.glob("*.safetensors")):
        stored |= {name: tensor.float().numpy().astype(np.float64) for name, tensor in load_file(shard).items()}
    weights = {}
    for name, value in stored.items():
        if name.endswith("_scale_inv"):
            continue
        if (scale := stored.get(name + "_scale_inv")) is not None:
            rows, columns = np.indices(value.shape)
            value = value * scale[rows // 128, columns // 128]
        weights[name] = value
    return json.loads((directory / "config.json").read_text()), weights


def forward(config: Config, weights: dict[str, Array], ids: list[int]) -> Forward:
    """One sequence from position 0."""
    result = Forward(logits=np.empty(0))
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        own = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        attended, peaks = attention(config, own, rms_norm(x, own["input_layernorm.weight"], eps))
        result.max_scores.append(peaks)
        x = x + attended
        h = rms_norm(x, own["post_attention_layernorm.weight"], eps)
        if layer >= config["first_k_dense_replace"] and layer % config.get("moe_layer_freq", 1) == 0:
            mixed, tokens = mixture(config, own, h)
            result.expert_tokens.append(tokens)
            x = x + mixed
        else:
            x = x + mlp(own, "mlp", h)
    result.logits = rms_norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T
    return result


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def attention(config: Config, own: dict[str, Array], x: Array) -> tuple[Array, Array]:
    """Head by head and token by token. The two inner norms have eps 1e-6 in every published implementation."""
    heads, nope, rope = config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    if config["q_lora_rank"] is None:
        queries = x @ own["self_attn.q_proj.weight"].T
    else:
        compressed = x @ own["self_attn.q_a_proj.weight"].T
        queries = rms_norm(compressed, own["self_attn.q_a_layernorm.weight"], 1e-6) @ own["self_attn.q_b_proj.weight"].T
    joint = x @ own["self_attn.kv_a_proj_with_mqa.weight"].T
    latent = rms_norm(joint[:, : config["kv_lora_rank"]], own["self_attn.kv_a_layernorm.weight"], 1e-6)
    keys_values = latent @ own["self_attn.kv_b_proj.weight"].T

    tokens = len(x)
    frequencies, amplitude = rotary(config)
    shared_key = np.stack([turn(joint[t, -rope:], t * frequencies) * amplitude for t in range(tokens)])
    queries = queries.reshape(tokens, heads, nope + rope)
    keys_values = keys_values.reshape(tokens, heads, nope + config["v_head_dim"])
    scale = softmax_scale(config)
    peaks = np.full(heads, -np.inf)
    context = np.zeros((tokens, heads, config["v_head_dim"]))
    for head in range(heads):
        for t in range(tokens):
            rotated = turn(queries[t, head, nope:], t * frequencies) * amplitude
            scores = keys_values[: t + 1, head, :nope] @ queries[t, head, :nope] + shared_key[: t + 1] @ rotated
            scores = scores * scale
            peaks[head] = max(peaks[head], scores.max())
            share = np.exp(scores - scores.max())
            context[t, head] = share / share.sum() @ keys_values[: t + 1, head, nope:]
    return context.reshape(tokens, -1) @ own["self_attn.o_proj.weight"].T, peaks


def turn(pairs: Array, angles: Array) -> Array:
    """(2i, 2i + 1) as a complex number, turned by angle i."""
    turned = (pairs[0::2] + 1j * pairs[1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(-1)


def rotary(config: Config) -> tuple[Array, float]:
    """Radians per position of each pair, and what cosine and sine are multiplied with."""
    dim, base, yarn = config["qk_rope_head_dim"], config["rope_theta"], config["rope_scaling"]
    plain = np.array([base ** (-2 * i / dim) for i in range(dim // 2)])
    if yarn is None:
        return plain, 1.0

    def pair_with(turns: float) -> float:
        return dim * math.log(yarn["original_max_position_embeddings"] / (2 * math.pi * turns)) / (2 * math.log(base))

    first = max(math.floor(pair_with(yarn["beta_fast"])), 0)
    last = min(math.ceil(pair_with(yarn["beta_slow"])), dim - 1)
    frequencies = []
    for i, frequency in enumerate(plain):
        slow = 1.0 if i >= last else 0.0 if i <= first else (i - first) / (last - first)
        frequencies.append(frequency * (1 - slow) + frequency / yarn["factor"] * slow)
    temperature = magnitude(yarn["factor"], yarn["mscale"]) / magnitude(yarn["factor"], yarn["mscale_all_dim"])
    return np.array(frequencies), temperature


def magnitude(factor: float, mscale: float) -> float:
    return 1.0 + 0.1 * mscale * math.log(factor)


def softmax_scale(config: Config) -> float:
    scale = 1 / math.sqrt(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    if yarn := config["rope_scaling"]:
        scale *= magnitude(yarn["factor"], yarn["mscale_all_dim"]) ** 2
    return scale


def mlp(own: dict[str, Array], name: str, x: Array) -> Array:
    gate, up = x @ own[f"{name}.gate_proj.weight"].T, x @ own[f"{name}.up_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ own[f"{name}.down_proj.weight"].T


def mixture(config: Config, own: dict[str, Array], x: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """Token by token: choose, mix, add what is shared."""
    tokens = np.zeros(config["n_routed_experts"], dtype=np.int64)
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        for expert, weight in route(config, own, row).items():
            tokens[expert] += 1
            out[t] += weight * mlp(own, f"mlp.experts.{expert}", row)
    if config["n_shared_experts"]:
        out = out + mlp(own, "mlp.shared_experts", x)
    return out, tokens


def route(config: Config, own: dict[str, Array], row: Array) -> dict[int, float]:
    """Expert -> weight of one token. The bias takes part in the choice alone."""
    scores = 1 / (1 + np.exp(-(own["mlp.gate.weight"] @ row)))
    choice = scores + own["mlp.gate.e_score_correction_bias"]
    per_group = len(scores) // config["n_group"]
    groups = [range(g * per_group, (g + 1) * per_group) for g in range(config["n_group"])]
    if config["n_group"] > 1:
        strongest = sorted(groups, key=lambda group: -sum(sorted(choice[list(group)])[-2:]))
        groups = strongest[: config["topk_group"]]
    allowed = [expert for group in groups for expert in group]
    chosen = sorted(allowed, key=lambda expert: -choice[expert])[: config["num_experts_per_tok"]]
    total = sum(scores[chosen]) + 1e-20 if config["norm_topk_prob"] else 1.0
    return {expert: scores[expert] / total * config["routed_scaling_factor"] for expert in chosen}
