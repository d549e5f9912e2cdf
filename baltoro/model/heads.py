"""kv_b: from latents to every head's keys and values, and its two halves taken apart for absorbed attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from baltoro.config import ModelConfig
from baltoro.kernels import formats, ops
from baltoro.kernels.formats import Packed


@dataclass(frozen=True, slots=True)
class PackedHeads:
    """Stacks of H matrices. The keys are there twice: absorbed attention multiplies with their transposes."""

    keys: Packed  # (H, N, C)
    values: Packed  # (H, V, C)
    absorbed_keys: Packed  # (H, C, N)


class Heads(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.split = [config.qk_nope_head_dim, config.v_head_dim]  # N, V
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads * sum(self.split), config.kv_lora_rank))
        self.packed: PackedHeads | None = None

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(S, C) -> keys without their rotary part (S, H, N), values (S, H, V)."""
        S = len(latent)
        if self.packed is not None:
            parts = (formats.as_matrix(self.packed.keys), formats.as_matrix(self.packed.values))
            wide = latent.float()
            k, v = (ops.matmul(wide, part).to(latent.dtype) for part in parts)
            return k.view(S, -1, self.split[0]), v.view(S, -1, self.split[1])
        kv = linear(latent, self.weight.to(latent.dtype)).view(S, -1, sum(self.split))  # (S, H, N + V)
        k, v = torch.split(kv, self.split, dim=-1)
        return k, v

    def query_to_latent(self, q_nope: Tensor) -> Tensor:
        """(B, H, N) -> (B, H, C): what meets a latent as the query meets the key made of it."""
        if self.packed is not None:
            return ops.matmul_each(q_nope.float(), self.packed.absorbed_keys).to(q_nope.dtype)
        return torch.einsum("bhn,hnc->bhc", q_nope, self._halves(q_nope.dtype)[0])

    def latent_to_value(self, context: Tensor) -> Tensor:
        """Mixed latents (B, H, C) -> mixed values (B, H, V)."""
        if self.packed is not None:
            return ops.matmul_each(context.float(), self.packed.values).to(context.dtype)
        return torch.einsum("bhc,hvc->bhv", context, self._halves(context.dtype)[1])

    def pack(self, packed: PackedHeads) -> None:
        """Take this instead of the parameter `weight`, which is gone afterwards: for inference."""
        del self.weight
        self.packed = packed

    def _halves(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(H, N, C), (H, V, C)."""
        stack = self.weight.to(dtype).view(-1, sum(self.split), self.weight.shape[1])
        keys, values = torch.split(stack, self.split, dim=1)
        return keys, values
