"""Rotary positions, their YaRN stretch, and the softmax scale that goes with it."""

from __future__ import annotations

import functools
import math
from typing import cast

import torch
from torch import Tensor

from baltoro.config import ModelConfig


def yarn_inv_freq(config: ModelConfig) -> Tensor:
    """Rotary frequencies, stretched from the original context to `factor` times its length.

    Pairs turning more than `beta_fast` times inside the original context keep their frequency,
    those turning less than `beta_slow` times are slowed by `factor`, the rest are blended linearly.

    Returns: (R / 2,) float32, radians per position.
    Source:  YaRN, arXiv:2309.00071, section 3.2; tests/model/test_rope.py compares with transformers.
    """
    pairs = config.qk_rope_head_dim // 2
    freq = 1.0 / config.rope_theta ** (torch.arange(pairs, dtype=torch.float32) / pairs)
    yarn = config.yarn
    if yarn is None:
        return freq
    low = max(math.floor(_pair_turning(yarn.beta_fast, config)), 0)
    high = min(math.ceil(_pair_turning(yarn.beta_slow, config)), config.qk_rope_head_dim - 1)
    ramp = (torch.arange(pairs, dtype=torch.float32) - low) / (high - low if high > low else 1e-3)
    slowed = ramp.clamp(0, 1)  # 0: untouched, 1: divided by factor
    return freq * (1 - slowed) + freq / yarn.factor * slowed


def _pair_turning(turns: float, config: ModelConfig) -> float:
    """Index of the (fractional) pair that makes `turns` full turns inside the original context."""
    assert config.yarn is not None
    length = config.yarn.original_max_position_embeddings
    return config.qk_rope_head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_scale(config: ModelConfig) -> float:
    """What cos and sin are multiplied with; 1.0 for K2, whose two mscales are equal."""
    yarn = config.yarn
    if yarn is None:
        return 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)


def softmax_scale(config: ModelConfig) -> float:
    """1 / sqrt(qk_head_dim), times YaRN's temperature squared. K2-Instruct: 0.130861."""
    scale = config.qk_head_dim**-0.5
    if config.yarn is not None and config.yarn.mscale_all_dim:
        scale *= _mscale(config.yarn.factor, config.yarn.mscale_all_dim) ** 2
    return scale


@functools.cache
def _frequencies(config: ModelConfig) -> list[float]:
    """Numbers, not a tensor: one that was made under inference_mode could not be trained with."""
    return cast("list[float]", yarn_inv_freq(config).tolist())


def rotary_table(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin for each position and pair, both (T, R / 2) float32."""
    freq = torch.tensor(_frequencies(config), device=positions.device)  # (R / 2,)
    angles = positions[:, None].float() * freq  # (T, R / 2)
    scale = rotary_scale(config)
    return angles.cos() * scale, angles.sin() * scale


class RotaryTable:
    """What `rotary_table` says of the positions from 0 on, kept."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        none = torch.empty(0, config.qk_rope_head_dim // 2)
        self._kept = (none, none)

    def upto(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin of so many or more, both (., R / 2) float32."""
        if len(self._kept[0]) < positions:
            longer = min(max(positions, 2 * len(self._kept[0]), 1024), self._config.max_position_embeddings)
            self._kept = rotary_table(self._config, torch.arange(max(positions, longer)))
        return self._kept


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of the last axis.

    The checkpoint stores rotary dimensions interleaved; transformers de-interleaves them first.
    Queries and keys get the same permutation, so scores agree; treating the file as two halves is the
    classic bug.  x: (T, ..., R); cos, sin: (T, R / 2).
    """
    shape = (cos.shape[0],) + (1,) * (x.dim() - 2) + (cos.shape[1],)
    c, s = cos.view(shape).to(x.dtype), sin.view(shape).to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2)
