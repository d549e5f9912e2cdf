"""Multi-head latent attention, expanded for prefill and training, absorbed for decode.

    x ── q_a ─ norm ─ q_b ──────────► queries   per head [N no-rope | R rotary]
    x ── kv_a ─┬─ norm ─► latent (C) ─ kv_b ─► per head [N keys | V values]
               └─ rotate ─► shared key (R)      the same for all heads

Only latent and shared key are cached. Expanded: kv_b is applied to every attended latent, then ordinary
attention. Absorbed: kv_b's key half moves into the query and its value half behind the softmax, so that
one token attends to the latents as they lie in the cache. Both give the same result up to rounding.
Source: DeepSeek-V2 report, section 2.1; DeepSeek-V3 inference/model.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baltoro.config import ModelConfig
from baltoro.kernels import attention, latents, steps
from baltoro.model.batch import Decode, Layout
from baltoro.model.heads import Heads
from baltoro.model.linear import Linear, RMSNorm
from baltoro.model.rope import rotate, softmax_scale

LATENT_EPS = 1e-6  # of the two inner norms whatever rms_norm_eps says, as in K2's own code and transformers
QUERY_TILE = 256  # rows of scores made at once: keys behind the tile are not even multiplied (1.5x at 1,024 tokens)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = softmax_scale(config)
        hidden, heads = config.hidden_size, config.num_attention_heads
        if config.q_lora_rank is None:
            self.q_proj = Linear(hidden, heads * config.qk_head_dim)
        else:
            self.q_a_proj = Linear(hidden, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(hidden, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_EPS)
        self.kv_b_proj = Heads(config)
        self.o_proj = Linear(heads * config.v_head_dim, hidden)
        self.step: steps.AttentionStep | None = None  # described at the first use, where all is packed

    def forward(
        self, x: Tensor, layout: Layout, cos: Tensor, sin: Tensor, cache: Tensor | None, observe: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x: (T, D) -> (T, D), and with `observe` each head's largest score before the softmax, (H,) float32.

        cache: (pages, page_tokens, C + R) of this layer, written before it is read.
        """
        config = self.config
        if cache is not None and steps.runs(x) and (step := self.described(cache)) is not None:
            slots = cache.view(-1, cache.shape[-1])  # (pages * page_tokens, C + R)
            return step(x, cos, sin, slots, layout.rows, scale=self.scale), None
        q = self._queries(x).view(-1, config.num_attention_heads, config.qk_head_dim)  # (T, H, N + R)
        q = latents.turn(q, cos, sin)
        kv = self.kv_a_proj_with_mqa(x)  # (T, C + R)
        if cache is None:
            latent, k_pe = self._split_latent(kv)
            latent, k_pe = self.kv_a_layernorm(latent), rotate(k_pe, cos, sin)  # (T, C), (T, R)
            context, peak = self._expanded_whole(q, latent, k_pe, layout, observe)
        else:
            assert not observe, "scores are observed in training, which has no cache"
            slots = cache.view(-1, cache.shape[-1])  # (pages * page_tokens, C + R)
            norm = self.kv_a_layernorm
            latents.keep(kv, norm.weight, norm.eps, cos, sin, slots, layout.write_slots)
            context, peak = self._through_cache(q, slots, layout), None
        return self.o_proj(context.flatten(1)), peak

    def described(self, cache: Tensor) -> steps.AttentionStep | None:
        """All of it as one native call, where every matrix is packed and such a cache suits; None elsewhere."""
        heads, config = self.kv_b_proj.packed, self.config
        if heads is None or not attention.can_attend(
            cache, latent=config.kv_lora_rank, key=config.qk_head_dim, value=config.v_head_dim
        ):
            return None
        if self.step is None:
            kv_a, output = self.kv_a_proj_with_mqa.packed, self.o_proj.packed
            whole = config.q_lora_rank is None
            q_a, q_b = (None, self.q_proj.packed) if whole else (self.q_a_proj.packed, self.q_b_proj.packed)
            assert q_b is not None and kv_a is not None and output is not None and (whole or q_a is not None)
            self.step = steps.AttentionStep(
                q_a=q_a, q_norm=None if whole else self.q_a_layernorm.weight, q_b=q_b, kv_a=kv_a,
                kv_norm=self.kv_a_layernorm.weight, keys=heads.keys, absorbed_keys=heads.absorbed_keys,
                values=heads.values, output=output, eps=LATENT_EPS, heads=config.num_attention_heads,
            )  # fmt: skip
        return self.step

    def _queries(self, x: Tensor) -> Tensor:
        if self.config.q_lora_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def _split_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(S, C + R) -> latent (S, C), shared key (S, R)."""
        latent, k_pe = torch.split(x, [self.config.kv_lora_rank, self.config.qk_rope_head_dim], dim=-1)
        return latent, k_pe

    def _expanded_whole(
        self, q: Tensor, latent: Tensor, k_pe: Tensor, layout: Layout, observe: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Whole sequences from position 0, side by side, padded to the longest."""
        k, v = self._expand(latent, k_pe)
        q, k, v = (layout.pad(t).transpose(1, 2) for t in (q, k, v))  # (B, H, L, .)
        context, peaks = causal_attention(q, k, v, scale=self.scale, past=0, observe=observe)
        peak = None if peaks is None else layout.unpad(peaks.transpose(1, 2)).amax(0)  # padded rows score 0: left out
        return layout.unpad(context.transpose(1, 2)), peak  # (T, H, V)

    def _expand(self, latent: Tensor, k_pe: Tensor) -> tuple[Tensor, Tensor]:
        """(S, C), (S, R) -> keys (S, H, N + R), values (S, H, V)."""
        k_nope, v = self.kv_b_proj(latent)
        k_pe = k_pe.unsqueeze(1).expand(-1, self.config.num_attention_heads, -1)
        return torch.cat((k_nope, k_pe), dim=-1), v

    def _through_cache(self, q: Tensor, slots: Tensor, layout: Layout) -> Tensor:
        """Each token of q (T, H, N + R) against all that its sequence has in `slots`: (T, H, V)."""
        config, packed = self.config, self.kv_b_proj.packed
        native = attention.can_attend(slots, latent=config.kv_lora_rank, key=q.shape[-1], value=config.v_head_dim)
        if layout.decode is not None and not layout.chunks:
            return self._absorbed(q, slots, layout.decode, native)
        context = q.new_empty(*q.shape[:2], config.v_head_dim)
        for chunk in layout.chunks:
            if native and packed is not None:
                context[chunk.rows] = attention.mla_prefill(
                    q[chunk.rows].float(), packed.keys, packed.values, slots, chunk.read_slots, scale=self.scale
                ).to(q.dtype)
                continue
            seen = slots[chunk.read_slots].to(q.dtype)  # (S, C + R)
            k, v = self._expand(*self._split_latent(seen))
            if native:
                context[chunk.rows] = attention.causal_attention(
                    q[chunk.rows].float(), k.bfloat16(), v.bfloat16(), scale=self.scale
                ).to(q.dtype)
                continue
            out, _ = causal_attention(
                *(t.transpose(0, 1).unsqueeze(0) for t in (q[chunk.rows], k, v)),
                scale=self.scale, past=chunk.past, observe=False,
            )  # fmt: skip
            context[chunk.rows] = out.squeeze(0).transpose(0, 1)
        if layout.decode is not None:
            rows = layout.decode.rows
            context[rows] = self._absorbed(q[rows], slots, layout.decode, native)
        return context

    def _absorbed(self, q: Tensor, slots: Tensor, decode: Decode, native: bool) -> Tensor:
        """One token per sequence, q (B, H, N + R), against the latents where they lie: (B, H, V)."""
        config, packed = self.config, self.kv_b_proj.packed
        if native and packed is not None:
            keys, values = packed.absorbed_keys, packed.values
            return latents.attend(
                q.float(), keys, values, slots, decode.slots, decode.edges, scale=self.scale
            ).to(q.dtype)  # fmt: skip
        if packed is None and latents.suits_dense(q, self.kv_b_proj.weight, slots):
            kv_b = self.kv_b_proj.weight.view(q.shape[1], -1, config.kv_lora_rank)
            return latents.attend_dense(q, kv_b, slots, decode.slots, decode.edges, scale=self.scale)
        q_nope, q_pe = torch.split(q, [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        q = torch.cat((self.kv_b_proj.query_to_latent(q_nope), q_pe), dim=-1)  # (B, H, C + R)
        if native:
            context = attention.mla_decode(
                q.float(), slots, decode.slots, decode.edges, scale=self.scale, latent=config.kv_lora_rank
            ).to(q.dtype)
        else:
            read_slots, unseen = decode.padded
            seen = slots[read_slots].to(q.dtype)  # (B, S, C + R)
            scores = (q @ seen.mT).float() * self.scale  # (B, H, S)
            scores = scores.masked_fill(unseen.unsqueeze(1), -torch.inf)
            context = scores.softmax(-1).to(q.dtype) @ seen[..., : config.kv_lora_rank]  # (B, H, C)
        return self.kv_b_proj.latent_to_value(context)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, past: int, observe: bool
) -> tuple[Tensor, Tensor | None]:
    """softmax(q k^T scale) v, query row i seeing keys 0 .. past + i.

    q: (B, H, L, N + R); k: (B, H, S, N + R); v: (B, H, S, V). Returns (B, H, L, V) and, with `observe`, the
    largest scaled score of each row over the keys it sees, (B, H, L) float32.
    Plain products beat torch's fused CPU kernel below some 400 tokens, and give the scores that QK-clip needs.
    """
    peaks: list[Tensor] = []
    outs: list[Tensor] = []
    for start in range(0, q.shape[2], QUERY_TILE):
        rows = (q[:, :, start : start + QUERY_TILE] * scale).contiguous()
        end = past + start + rows.shape[2]  # keys any of these rows may see
        scores = rows @ k[:, :, :end].mT  # (B, H, l, s)
        future = torch.full((rows.shape[2], end), -torch.inf, dtype=scores.dtype, device=q.device).triu(
            1 + past + start
        )
        scores += future
        if observe:
            peaks.append(scores.detach().amax(-1).float())
        outs.append(scores.softmax(-1) @ v[:, :, :end])
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
    return out, torch.cat(peaks, dim=2) if observe else None
