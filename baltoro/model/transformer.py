"""Kimi K2: embedding, pre-norm blocks, head. Module names are the checkpoint's tensor names."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from baltoro.config import ModelConfig
from baltoro.model.attention import Attention
from baltoro.model.batch import Batch, LatentCache, Layout
from baltoro.model.linear import Linear, RMSNorm
from baltoro.model.moe import MLP, MoE, Routing
from baltoro.model.rope import rotary_table
from baltoro.weights.experts import ExpertStore


@dataclass(slots=True)
class Observed:
    """What is to be known of a forward beside its logits; filled layer by layer."""

    # per layer (H,): largest score before softmax, of forwards without a cache, as in training
    max_logits: list[Tensor] = field(default_factory=list[Tensor])
    chosen: list[Tensor] = field(default_factory=list[Tensor])  # per MoE layer (T, K) int64: each token's experts

    def expert_tokens(self, experts: int) -> list[Tensor]:
        """Per MoE layer (E,): (token, choice) pairs."""
        return [torch.bincount(chosen.flatten(), minlength=experts) for chosen in self.chosen]


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.is_moe(layer) else MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Tensor, layout: Layout, cos: Tensor, sin: Tensor, cache: Tensor | None, observed: Observed | None
    ) -> Tensor:  # (T, D)
        observe = observed is not None and cache is None
        if isinstance(self.mlp, MoE):
            self.mlp.expect(x, self.post_attention_layernorm)
        attended, peak = self.self_attn(self.input_layernorm(x), layout, cos, sin, cache, observe)
        x, h = self.post_attention_layernorm.after(x, attended)
        if observed is not None and peak is not None:
            observed.max_logits.append(peak)
        if not isinstance(self.mlp, MoE):
            return x + self.mlp(h)
        routing: Routing
        x, routing = self.mlp.onto(x, h)
        if observed is not None:
            observed.chosen.append(routing.experts)
        return x


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Block(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """ids -> logits. `dtype` is the type everything is computed in; weights may be kept in another."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.store: ExpertStore | None = None  # where routed experts come from that are not parameters
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(self, batch: Batch, cache: LatentCache | None = None, observed: Observed | None = None) -> Tensor:
        """Logits (rows, V) float32 of batch.logit_rows, or of all rows.

        With a cache the batch's latents are first written to its pages, then each token attends to
        positions 0 .. its own. Without one every sequence must start at position 0.
        """
        layout = Layout(batch, cache)
        cos, sin = rotary_table(self.config, batch.positions)
        x = self.model.embed_tokens(batch.ids).to(self.dtype)  # (T, D)
        for index, block in enumerate(self.model.layers):
            x = block(x, layout, cos, sin, None if cache is None else cache.latents[index], observed)
        if batch.logit_rows is not None:
            x = x[batch.logit_rows]
        return self.lm_head(self.model.norm(x)).float()
