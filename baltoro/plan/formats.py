"""How many bits a weight takes in each format, and what that does to answers.

    bytes of a matrix   weights * bits / 8; bits count the scales: block-fp8 one float32 for 128 x 128, int8 one
                        bfloat16 for 128 inputs, int4 one for 32 (`baltoro quantize`, and compressed-tensors' w4a16)
    kept in bf16        embedding, norms, router; the head too, but for int8 and int4, which keep it in 8 bits

`3.3bit` and its like stand for files of others (GGUF, MLX), whose sizes are given in bits a weight: there everything
but the norms and the router takes that many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from baltoro.errors import BaltoroError

SCALED_FP8 = 8 + 32 / 128**2
SCALED_INT8 = 8 + 16 / 128
SCALED_INT4 = 4 + 16 / 32
TWO_BITS = 3.0  # below it, answers break the syntax of tool calls
BELOW_INT4 = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    name: str
    expert_bits: float  # a weight of a routed expert, scales included
    matrix_bits: float  # of the other projections
    head_bits: float
    embedding_bits: float
    quality: str  # what becomes of answers


FORMATS = {
    "bf16": Format(
        name="bf16", expert_bits=16, matrix_bits=16, head_bits=16, embedding_bits=16,
        quality="exact: Kimi K2 is published in block-fp8, and these are its values at twice the size",
    ),
    "fp8": Format(
        name="fp8", expert_bits=SCALED_FP8, matrix_bits=SCALED_FP8, head_bits=16, embedding_bits=16,
        quality="exact: as published",
    ),
    "int8": Format(
        name="int8", expert_bits=SCALED_INT8, matrix_bits=SCALED_INT8, head_bits=SCALED_INT8, embedding_bits=16,
        quality="near exact: 8 bits with a scale for 128 weights, from weights that had 8",
    ),
    "int4": Format(
        name="int4", expert_bits=SCALED_INT4, matrix_bits=SCALED_INT4, head_bits=SCALED_INT8, embedding_bits=16,
        quality="small loss: 4 bits with a scale for 32 weights; such K2 files came near 8 bits in perplexity",
    ),
    "w4a16": Format(
        name="w4a16", expert_bits=SCALED_INT4, matrix_bits=16, head_bits=16, embedding_bits=16,
        quality="small loss: routed experts alone in 4 bits, a scale for 32, as K2-Thinking and K2.5 are published",
    ),
}  # fmt: skip


def format_of(text: str) -> Format:
    """A name of `FORMATS`, or bits a weight as `3.3bit`."""
    if text in FORMATS:
        return FORMATS[text]
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*bits?", text.strip())
    bits = float(found[1]) if found else 0.0
    if not 1.0 <= bits <= 16.0:
        raise BaltoroError(
            f"a format of {text!r}", hint=f"{', '.join(FORMATS)}, or bits a weight from 1 to 16, as 3.3bit"
        )
    quality = (
        "tool calls unsafe: near 2 bits models lose quotes and brackets of JSON; let the grammar hold them, and "
        "measure with `baltoro verify`"
        if bits < TWO_BITS
        else "some loss: a divergence (KL) of 0.02 to 0.05 was reported at 3.6 and 3.3 bits; let the grammar hold calls"
        if bits < BELOW_INT4
        else "small loss"
        if bits < SCALED_FP8
        else "near exact"
    )
    return Format(
        name=f"{bits:g}bit", expert_bits=bits, matrix_bits=bits, head_bits=bits, embedding_bits=bits, quality=quality
    )


def of_checkpoint(block_fp8: bool, packed: str | None) -> Format:
    """The format that a config says its files have."""
    return FORMATS[packed or ("fp8" if block_fp8 else "bf16")]
