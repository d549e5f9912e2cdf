"""Kimi K2: embedding, pre-norm blocks, head. Module names are the checkpoint's tensor names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from baltoro.config import ModelConfig
from baltoro.kernels import steps
from baltoro.kernels.forward import ForwardStep, Layer
from baltoro.model import trained
from baltoro.model.attention import Attention
from baltoro.model.batch import Batch, LatentCache, Layout
from baltoro.model.linear import Linear, RMSNorm
from baltoro.model.moe import MLP, MoE, Routing
from baltoro.model.rope import RotaryTable, rotary_table, softmax_scale
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
        self.recompute = False  # in training: keep x alone, and run once more when gradients are wanted

    def forward(
        self, x: Tensor, layout: Layout, cos: Tensor, sin: Tensor, cache: Tensor | None, observed: Observed | None
    ) -> Tensor:  # (T, D)
        """observed: with `recompute` it is filled a second time during backward."""
        if self.recompute and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self._run, x, layout, cos, sin, cache, observed, use_reentrant=False))
        return self._run(x, layout, cos, sin, cache, observed)

    def _run(
        self, x: Tensor, layout: Layout, cos: Tensor, sin: Tensor, cache: Tensor | None, observed: Observed | None
    ) -> Tensor:
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

    def described(self, cache: Tensor) -> Layer | None:
        """Its matrices for native code, where all of them are packed; None elsewhere."""
        attention = self.self_attn.described(cache)
        mlp = self.mlp.described()
        if attention is None or mlp is None:
            return None
        return Layer(self.input_layernorm.weight, attention, self.post_attention_layernorm.weight, mlp)


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
        self.by_layer = False  # run every module, for who looks at them; the result is the same
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self._table = RotaryTable(config)
        self._step: ForwardStep | None = None  # described at the first use, where all is packed
        self._trained = trained.PackedWeights()

    def forward(
        self,
        batch: Batch,
        cache: LatentCache | None = None,
        observed: Observed | None = None,
        *,
        layout: Layout | None = None,
    ) -> Tensor:
        """Logits (rows, V) float32 of batch.logit_rows, or of all rows.

        With a cache the batch's latents are first written to its pages, then each token attends to
        positions 0 .. its own. Without one every sequence must start at position 0.
        layout: of this batch and cache, where it was worked out before
        """
        if layout is None:
            layout = Layout(batch, cache)
        if cache is not None and observed is None and (step := self._described(cache)) is not None:
            table = self._table.upto(layout.positions)
            return step(batch.ids, batch.positions, table, cache.slots, layout.rows, batch.logit_rows)
        cos, sin = rotary_table(self.config, batch.positions)
        x = self.model.embed_tokens(batch.ids).to(self.dtype)  # (T, D)
        for index, block in enumerate(self.model.layers):
            x = block(x, layout, cos, sin, None if cache is None else cache.latents[index], observed)
        if batch.logit_rows is not None:
            x = x[batch.logit_rows]
        return self.lm_head(self.model.norm(x)).float()

    def loss(
        self, batch: Batch, targets: Tensor, observed: Observed | None = None, *, same_weights: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The sum of the cross-entropies behind batch.logit_rows, which has a gradient, and each of them, (rows,).

        batch: whole documents, without a cache; targets: (rows,) int64, what comes behind each row
        same_weights: as in the last call, after which nothing has changed them; saves rounding them again
        """
        if trained.suits(self, self._trained, batch):
            if not same_weights:
                self._trained.forget()
            return trained.total_loss(self, self._trained, batch, targets, observed)
        nats = cross_entropy(self(batch, None, observed), targets, reduction="none")
        return nats.sum(), nats.detach()

    def _described(self, cache: LatentCache) -> ForwardStep | None:
        """All of it as one native call, where everything is packed and here; None elsewhere."""
        embedding, head, latents = self.model.embed_tokens.weight, self.lm_head.packed, cache.latents
        if self.by_layer or self.dtype is not torch.float32 or head is None or self.store is not None:
            return None
        if latents.dtype is not torch.bfloat16:  # whatever another cache was
            return None
        if embedding.dtype not in (torch.float32, torch.bfloat16) or not steps.runs(self.model.norm.weight):
            return None
        if self._step is None:
            layers = [block.described(latents) for block in cast("list[Block]", list(self.model.layers))]
            whole = [layer for layer in layers if layer is not None]
            if len(whole) < len(layers):
                return None
            norm, eps = self.model.norm, self.config.rms_norm_eps
            self._step = ForwardStep(
                embedding, whole, norm.weight, head, eps=eps, scale=softmax_scale(self.config)
            )  # fmt: skip
        return self._step
