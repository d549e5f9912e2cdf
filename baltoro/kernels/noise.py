"""Random weights made in packed form, as fast as memory takes them: for measuring, without a terabyte of real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from baltoro.kernels import formats
from baltoro.kernels.formats import Packed

WORDS = 2**22  # of 8 bytes, repeated behind one another: no cache holds them, and no product sees the repetition
# Root mean square of what random bytes mean before they are scaled; fp8 leaves out the numbers that are none
_RMS = {"fp8": 0.376, "int8": 73.9, "int4": 4.18}


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
    else:
        noise = _without_least(noise, 8 if packed.format == "int8" else 4)
    if packed.format != "bf16":
        packed.scales.fill_(size / _RMS[packed.format])
    _repeat(noise, words)
    return packed


def _without_least(noise: Tensor, bits: int) -> Tensor:
    """Bits that are all zeros mean the least number (-8, -128), whose opposite is none: here it becomes 0.

    A mean of -1/2 would add up layer by layer, until what all tokens have in common is larger than what they differ
    in, and all choose the same experts.
    """
    some = noise
    for shift in range(1, bits):
        some = some | noise >> shift
    lowest = 0x0101 if bits == 8 else 0x1111
    return noise | (~some & _four_times(lowest)) << bits - 1


def fill_heads(stacks: Sequence[Packed], *, seed: int) -> None:
    """Keys (H, N, C), values (H, V, C) and keys transposed (H, C, N), as latent attention has them.

    The keys are there twice and must be the same ones, so they are packed from numbers: one head's for all.
    """
    keys, values, absorbed = stacks
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(keys.outputs + values.outputs, keys.inputs, generator=generator) * keys.inputs**-0.5
    split = torch.split(w, [keys.outputs, values.outputs])
    for stack, part in zip((keys, values, absorbed), (*split, split[0].mT), strict=True):
        one = formats.pack(part, stack.format)
        for head in range(stack.experts or 0):
            stack.put(one, head)


def _repeat(noise: Tensor, words: Tensor) -> None:
    for start in range(0, len(words), len(noise)):
        piece = words[start : start + len(noise)]
        piece.copy_(noise[: len(piece)])


def _four_times(half: int) -> int:
    """16 bits four times, as a signed number of 64."""
    return int.from_bytes(half.to_bytes(2, "little") * 4, "little", signed=True)
