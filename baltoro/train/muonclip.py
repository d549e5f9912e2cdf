"""MuonClip: Muon with weight decay and matched RMS, and QK-clip per head of multi-head latent attention.

    matrices    M <- mu M + G;  O <- NewtonSchulz(mu M + G) * 0.2 sqrt(max(rows, columns));  W <- W - lr (O + wd W)
    the rest    AdamW: embeddings, head, norms
    then        each head whose largest score S exceeded tau: gamma = tau / S,
                q_b no-rope rows and kv_b key rows times sqrt(gamma), q_b rope rows times gamma; the shared
                rotary key (kv_a) is untouched, since other heads read it too

Source: Kimi K2 report, algorithm 1; constants of Newton-Schulz, momentum, RMS matching: Moonlight, arXiv:2502.16982.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from baltoro.config import ModelConfig
from baltoro.model.attention import Attention
from baltoro.model.transformer import Transformer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # singular values land in about 0.7 .. 1.2, not at 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Field names are recipe keys. One learning rate drives both optimizers, as in Moonlight."""

    lr: float  # peak, update RMS of a matrix is about 0.2 lr
    adamw_lr: float | None = None  # peak for what AdamW trains; None: lr
    weight_decay: float = 0.1  # decoupled: lr * weight_decay * W
    momentum: float = 0.95
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    adamw_eps: float = 1e-8
    qk_clip_tau: float = 100.0  # largest score before the softmax that a head may show
    newton_schulz_steps: int = 5
    per_head: bool = True  # orthogonalise each head's block of q_b and kv_b, and latent and key rows of kv_a, apart
    adamw_matrices: tuple[str, ...] = ()  # regular expressions of matrices that AdamW trains instead


def newton_schulz(matrices: Tensor, steps: int) -> Tensor:
    """(B, n, m) -> about the nearest semi-orthogonal matrices, in bfloat16, each for itself.

    Runs on the smaller side. Source: Moonlight toy_train.py's constants; Jordan et al., "Muon".
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    norm = cast(Tensor, x.float().norm(dim=(-2, -1), keepdim=True))
    x = (x / (norm + 1e-7).to(x.dtype)).contiguous()
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@dataclass(slots=True)
class _Matrix:
    """A parameter that Muon trains, and how its rows fall into blocks that are orthogonalised apart."""

    name: str
    parameter: nn.Parameter
    blocks: list[int]  # row counts; [rows] for a whole matrix
    momentum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.momentum = torch.zeros_like(self.parameter)


class MuonClip:
    """Steps a Transformer. `step(lr_scale, max_logits)` after backward; `state_dict` resumes it bit for bit."""

    def __init__(self, model: Transformer, config: OptimizerConfig) -> None:
        self.model, self.config = model, config
        self.attentions = [module for module in model.modules() if isinstance(module, Attention)]  # by layer
        self.matrices: list[_Matrix] = []
        rest: list[nn.Parameter] = []
        by_hand = re.compile("|".join(config.adamw_matrices)) if config.adamw_matrices else None
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            hidden = parameter.dim() >= 2 and "embed_tokens" not in name and "lm_head" not in name
            if hidden and not (by_hand and by_hand.search(name)):
                blocks = _row_blocks(name, parameter, model.config) if config.per_head else [parameter.shape[-2]]
                self.matrices.append(_Matrix(name, parameter, blocks))
            else:
                rest.append(parameter)
        self.adamw_lr = config.lr if config.adamw_lr is None else config.adamw_lr
        self.adamw = torch.optim.AdamW(
            rest, lr=self.adamw_lr, betas=config.adamw_betas, eps=config.adamw_eps, weight_decay=config.weight_decay,
            fused=True,
        )  # fmt: skip

    @torch.no_grad()
    def step(self, lr_scale: float, max_logits: list[Tensor]) -> int:
        """One update at `lr_scale` times the peak rates. max_logits: per layer (H,). Returns the heads clipped."""
        for group in self.adamw.param_groups:
            group["lr"] = self.adamw_lr * lr_scale
        self.adamw.step()
        self._muon(self.config.lr * lr_scale)
        clipped = 0
        for attention, peaks in zip(self.attentions, max_logits, strict=True):
            clipped += qk_clip(attention, peaks, self.config.qk_clip_tau)
        return clipped

    def _muon(self, lr: float) -> None:
        """Blocks of one shape go through one batched Newton-Schulz, whatever matrix or expert they come from."""
        same_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for matrix in self.matrices:
            parameter, gradient = matrix.parameter, matrix.parameter.grad
            assert gradient is not None, f"{matrix.name} had no gradient"
            matrix.momentum.mul_(self.config.momentum).add_(gradient)
            update = gradient.add(matrix.momentum, alpha=self.config.momentum)  # Nesterov
            parameter.mul_(1 - lr * self.config.weight_decay)
            pieces, sources = (torch.split(t, matrix.blocks, dim=-2) for t in (parameter, update))
            for piece, source in zip(pieces, sources, strict=True):
                rows, columns = piece.shape[-2:]
                if rows > columns:  # a tall block joins the wide ones: NS(X^T) = NS(X)^T
                    piece, source = piece.mT, source.mT
                shape = (min(rows, columns), max(rows, columns))
                same_shape[shape].append((piece.reshape(-1, *piece.shape[-2:]) if piece.dim() < 3 else piece,
                                          source.reshape(-1, *source.shape[-2:])))  # fmt: skip
        for (_, longer), pairs in same_shape.items():
            updates = newton_schulz(torch.cat([source for _, source in pairs]), self.config.newton_schulz_steps)
            scale = 0.2 * longer**0.5  # gives the update the RMS that AdamW's has: Moonlight, section 2.2
            for (piece, source), update in zip(pairs, torch.split(updates, [len(s) for _, s in pairs]), strict=True):
                piece.add_(update.view_as(source).to(piece.dtype), alpha=-lr * scale)

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": {m.name: m.momentum for m in self.matrices}, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for matrix in self.matrices:
            matrix.momentum.copy_(state["momentum"][matrix.name])
        self.adamw.load_state_dict(state["adamw"])


def _row_blocks(name: str, parameter: Tensor, config: ModelConfig) -> list[int]:
    heads = config.num_attention_heads
    if name.endswith(("q_b_proj.weight", "q_proj.weight")):
        return [config.qk_nope_head_dim, config.qk_rope_head_dim] * heads
    if name.endswith("kv_b_proj.weight"):
        return [config.qk_nope_head_dim, config.v_head_dim] * heads
    if name.endswith("kv_a_proj_with_mqa.weight"):
        return [config.kv_lora_rank, config.qk_rope_head_dim]
    return [parameter.shape[-2]]


@torch.no_grad()
def qk_clip(attention: Attention, peaks: Tensor, tau: float) -> int:
    """Shrink the heads whose largest score exceeded tau, so that the same batch would now give exactly tau.

    peaks: (H,). Returns how many heads were shrunk; the others are left bit for bit.
    """
    config = attention.config
    over = cast("list[int]", (peaks > tau).nonzero().flatten().tolist())
    if not over:
        return 0
    queries = attention.q_proj if config.q_lora_rank is None else attention.q_b_proj
    q = queries.weight.view(config.num_attention_heads, config.qk_head_dim, -1)  # (H, N + R, I)
    kv = attention.kv_b_proj.weight.view(config.num_attention_heads, -1, config.kv_lora_rank)  # (H, N + V, C)
    for head in over:
        gamma = float(tau / peaks[head])
        q[head, : config.qk_nope_head_dim] *= gamma**0.5
        q[head, config.qk_nope_head_dim :] *= gamma
        kv[head, : config.qk_nope_head_dim] *= gamma**0.5
    return len(over)


@torch.no_grad()
def rebalance(biases: Iterable[Tensor], expert_tokens: Iterable[Tensor], rate: float) -> None:
    """Move each router's selection bias towards even load: b += u (sign(err) - mean(sign(err))).

    err is the mean load less the expert's. Source: Moonlight, section 2.3 (u = 1e-3); DeepSeek-V3, section 2.1.2.
    """
    for bias, tokens in zip(biases, expert_tokens, strict=True):
        sign = (tokens.float().mean() - tokens.float()).sign()
        bias += rate * (sign - sign.mean())
