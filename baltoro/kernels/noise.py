"""Random weights made in packed form, as fast as memory takes them: for measuring, without a terabyte of real ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from baltoro.kernels.formats import Packed

WORDS = 2**22  # of 8 bytes, repeated behind one another: no cache holds them, and no product sees the repetition
# Root mean square of what random bytes mean before they are scaled; fp8 leaves out the numbers that are none
_RMS = {"fp8": 0.376, "int8": 73.9, "int4": 4.64}


def fill(packed: Packed, *, seed: int) -> Packed:
    """Numbers of either sign with a variance of about 1 / inputs, so that a product is as large as its input."""
    generator = torch.Generator().manual_seed(seed)
    words = packed.data.flatten().view(torch.int64)
    noise = torch.randint(-(2**63), 2**63 - 1, (min(len(words), WORDS),), generator=generator)
    size = packed.inputs**-0.5
    if packed.format == "bf16":  # sign and mantissa; one exponent, whose numbers have a mean square of 7/3
        exponent = 127 + round(math.log2(size * (3 / 7) ** 0.5))
        noise = noise & _four_times(0x807F) | _four_times(exponent << 7)
    elif packed.format == "fp8":
        noise &= _four_times(0xB7B7)
    if packed.format != "bf16":
        packed.scales.fill_(size / _RMS[packed.format])
    _repeat(noise, words)
    return packed


def _repeat(noise: Tensor, words: Tensor) -> None:
    for start in range(0, len(words), len(noise)):
        piece = words[start : start + len(noise)]
        piece.copy_(noise[: len(piece)])


def _four_times(half: int) -> int:
    """16 bits four times, as a signed number of 64."""
    return int.from_bytes(half.to_bytes(2, "little") * 4, "little", signed=True)
