"""A GGUF file of a few layers with Kimi K2's dimensions and random weights, for llama.cpp to be measured with.

    python bench/peers/k2_gguf.py Q4_0 FILE [--dense 1 --mixtures 2 --experts 48 --vocabulary 1024]

Needs `pip install gguf`. A block of random numbers is repeated: what they are makes no difference to speed, as long as
none is a NaN and their mean is 0; else all tokens would look alike behind a few layers, and choose the same experts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from baltoro.config import ModelConfig

POOL = 2**22 + 1  # distinct blocks of weights; odd, so that no two rows or experts are alike


def blocks(kind: GGMLQuantizationType, rows: int, columns: int, scale: float) -> np.ndarray:
    """(rows, bytes of a row)"""
    size, nbytes = GGML_QUANT_SIZES[kind]
    count = rows * columns // size
    random, shape = np.random.default_rng(0), (min(count, POOL), nbytes)
    if kind is GGMLQuantizationType.Q8_0:
        pool = random.integers(-127, 128, shape, dtype=np.int8).view(np.uint8)
    else:  # Q4_0: two halves a byte, from which 8 is subtracted
        pool = random.integers(1, 16, shape, dtype=np.uint8) * 16 + random.integers(1, 16, shape, dtype=np.uint8)
    pool[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)  # the block's scale
    return np.resize(pool, (count, nbytes)).reshape(rows, -1)


class Writer:
    def __init__(self, path: Path, kind: GGMLQuantizationType) -> None:
        self.gguf, self.kind = gguf.GGUFWriter(path, "deepseek2"), kind
        self.random = np.random.default_rng(1)

    def packed(self, name: str, *shape: int, kind: GGMLQuantizationType | None = None, scale: float = 0.002) -> None:
        kind = kind or self.kind
        data = blocks(kind, int(np.prod(shape[:-1])), shape[-1], scale)
        self.gguf.add_tensor(name, data.reshape(*shape[:-1], -1), raw_dtype=kind)

    def floats(self, name: str, *shape: int) -> None:
        numbers = self.random.standard_normal(shape) * 0.02 if len(shape) > 1 else np.ones(shape)
        self.gguf.add_tensor(name, numbers.astype(np.float32))


def describe(writer: gguf.GGUFWriter, config: ModelConfig, *, layers: int, dense: int, experts: int) -> None:
    assert config.q_lora_rank is not None
    latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
    writer.add_name("random layers of Kimi K2's size")
    writer.add_context_length(8192)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(rope)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_leading_dense_block_count(dense)
    writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_tokenizer_model("none")


def write(path: Path, kind: str, *, dense: int, mixtures: int, experts: int, vocabulary: int) -> None:
    config = ModelConfig.open("kimi-k2-instruct")
    hidden, width, heads = config.hidden_size, config.moe_intermediate_size, config.num_attention_heads
    latent, rope, nope, value = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim, config.v_head_dim
    low = config.q_lora_rank
    assert low is not None
    eight = GGMLQuantizationType.Q8_0
    out = Writer(path, GGMLQuantizationType[kind])
    describe(out.gguf, config, layers=dense + mixtures, dense=dense, experts=experts)
    out.gguf.add_vocab_size(vocabulary)
    # Larger than what layers add, so that tokens stay apart, and with them the experts they choose
    out.packed("token_embd.weight", vocabulary, hidden, kind=eight, scale=0.1)
    out.packed("output.weight", vocabulary, hidden, kind=eight)
    out.floats("output_norm.weight", hidden)
    for layer in range(dense + mixtures):
        name = f"blk.{layer}."
        for norm, length in (
            ("attn_norm", hidden),
            ("ffn_norm", hidden),
            ("attn_q_a_norm", low),
            ("attn_kv_a_norm", latent),
        ):
            out.floats(f"{name}{norm}.weight", length)
        out.packed(f"{name}attn_q_a.weight", low, hidden)
        out.packed(f"{name}attn_q_b.weight", heads * (nope + rope), low)
        out.packed(f"{name}attn_kv_a_mqa.weight", latent + rope, hidden)
        out.packed(f"{name}attn_k_b.weight", heads, latent, nope, kind=eight)
        out.packed(f"{name}attn_v_b.weight", heads, value, latent, kind=eight)
        out.packed(f"{name}attn_output.weight", hidden, heads * value)
        if layer < dense:
            parts, middle = (("", ()),), config.intermediate_size
        else:
            parts, middle = (("_exps", (experts,)), ("_shexp", ())), width
            out.floats(f"{name}ffn_gate_inp.weight", experts, hidden)
            out.floats(f"{name}exp_probs_b.bias", experts)
        for part, stack in parts:
            out.packed(f"{name}ffn_gate{part}.weight", *stack, middle, hidden)
            out.packed(f"{name}ffn_up{part}.weight", *stack, middle, hidden)
            out.packed(f"{name}ffn_down{part}.weight", *stack, hidden, middle)
    out.gguf.write_header_to_file()
    out.gguf.write_kv_data_to_file()
    out.gguf.write_tensors_to_file()
    out.gguf.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", help="Q4_0, Q8_0")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dense", type=int, default=1)
    parser.add_argument("--mixtures", type=int, default=2)
    parser.add_argument("--experts", type=int, default=48)
    parser.add_argument("--vocabulary", type=int, default=1024)
    given = parser.parse_args()
    write(given.file, given.kind, dense=given.dense, mixtures=given.mixtures, experts=given.experts,
          vocabulary=given.vocabulary)  # fmt: skip


if __name__ == "__main__":
    main()
