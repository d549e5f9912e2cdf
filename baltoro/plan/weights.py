"""Bytes of a model's weights in a format, by what they are for.

    resident    what every token needs: attention, dense layers, shared experts, routers, norms, embedding, head
    experts     routed: a token needs K of E in each layer

A token reads one row of the embedding, so that reads count all that is resident but the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.counts import TensorSpec
from baltoro.plan.formats import Format

BF16_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes, exact but for padding. `attention` and so on are of all layers together."""

    embedding: float
    head: float
    attention: float
    replicated_attention: float  # of it, what tensor parallelism does not cut: q_a, kv_a, norms
    dense: float
    shared: float  # shared experts, routers and their norms
    expert: float  # one routed expert of one layer
    moe_layers: int
    num_experts: int  # of a layer
    chosen: int  # by a token in a layer

    @property
    def resident(self) -> float:
        return self.embedding + self.head + self.attention + self.dense + self.shared

    @property
    def experts(self) -> float:
        return self.moe_layers * self.num_experts * self.expert

    @property
    def whole(self) -> float:
        return self.resident + self.experts

    @property
    def read_resident(self) -> float:
        """By a step, whatever the number of its tokens."""
        return self.resident - self.embedding

    @property
    def read_experts(self) -> float:
        """By one token alone; from the disk, where no expert is in memory."""
        return self.moe_layers * self.chosen * self.expert

    def read_by(self, tokens: int) -> float:
        """Bytes of routed experts that a step of `tokens` reads: E (1 - (1 - K / E)^tokens) of each layer's experts.

        As if tokens chose independently of each other, each expert as likely as any other.
        """
        distinct = self.num_experts * (1 - (1 - self.chosen / self.num_experts) ** tokens)
        return self.moe_layers * distinct * self.expert


def weights(config: ModelConfig, format: Format) -> Weights:
    found = {part.purpose: part for part in counts.parts(config)}

    def nbytes(purpose: str, matrix_bits: float, *, keep: tuple[str, ...] = ()) -> float:
        specs = [spec for spec in found[purpose].tensors if spec.is_parameter]
        return sum(_bits(spec, matrix_bits) * spec.numel for spec in specs if not keep or _named(spec, keep)) / 8

    ends = sum(spec.numel for spec in found["ends"].tensors) / 8
    replicated = ("q_a_proj", "kv_a_proj_with_mqa", "layernorm")
    layers, experts = config.num_hidden_layers, found["experts"]
    return Weights(
        embedding=ends * format.embedding_bits,
        head=ends * format.head_bits,
        attention=layers * nbytes("attention", format.matrix_bits),
        replicated_attention=layers * nbytes("attention", format.matrix_bits, keep=replicated),
        dense=found["dense"].times * nbytes("dense", format.matrix_bits),
        shared=found["shared"].times * nbytes("shared", format.matrix_bits) + nbytes("norm", BF16_BITS),
        expert=nbytes("experts", format.expert_bits),
        moe_layers=found["shared"].times,
        num_experts=config.n_routed_experts if experts.times else 1,
        chosen=config.num_experts_per_tok if experts.times else 0,
    )


def _bits(spec: TensorSpec, matrix_bits: float) -> float:
    if spec.name.endswith("e_score_correction_bias"):
        return 32
    return matrix_bits if counts.is_quantized(spec.name) else BF16_BITS


def _named(spec: TensorSpec, words: tuple[str, ...]) -> bool:
    return any(word in spec.name for word in words)
