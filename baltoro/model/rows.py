"""What measuring a layer finds, as data and as a line for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layer, or the head, at one size. Bytes are those of weights and cache that were read, each counted once."""

    work: str  # decode: one new token for each of `tokens` sequences; prefill: a prompt of `tokens`
    layer: str  # dense, mixture, or head: final norm and head, and all that a forward does outside its layers
    format: str
    tokens: int
    context: int  # tokens that the last new one attends to, itself included
    seconds: float
    attention_seconds: float
    experts_seconds: float  # of the routed experts, or of the dense layer's MLP
    rest_seconds: float  # norms, router, shared expert, sums
    tokens_per_s: float  # through this layer alone
    bytes: int
    gbps: float
    roof_gbps: float
    roof_fraction: float
    gflops: float
    peak_gflops: float  # of the instruction that this format multiplies with
    peak_fraction: float
    experts: int  # how many of the mixture's experts are here
    touched: float  # distinct ones that the tokens chose; in prefill scaled to all experts
    expert_bytes: int
    time_ratio: float | None  # against one token at this context
    bytes_ratio: float | None
    target: str
    threads: int


def compared(row: Row, alone: Row) -> Row:
    return replace(row, time_ratio=row.seconds / alone.seconds, bytes_ratio=row.bytes / alone.bytes)


def title(rows: Sequence[Row]) -> str:
    row = rows[0]
    if row.work == "prefill":
        return f"{row.format}: a prompt of {row.tokens:,} tokens"
    return f"{row.format}: a token for each of {row.tokens} at context {row.context:,}"


def line(row: Row) -> str:
    """A row for people."""
    middle = {"dense": "mlp", "mixture": "experts"}.get(row.layer)
    parts = f"attention {row.attention_seconds * 1e3:.2f}, {middle} {row.experts_seconds * 1e3:.2f}, " if middle else ""
    against = f"   {row.time_ratio:.2f}x the time, {row.bytes_ratio:.2f}x the bytes" if row.time_ratio else ""
    return (
        f"{row.layer:8}{row.seconds * 1e3:10.2f} ms ({parts}rest {row.rest_seconds * 1e3:.2f})  "
        f"{row.tokens_per_s:7.1f} tokens/s  "
        f"{row.gbps:5.1f} of {row.roof_gbps:5.1f} GB/s ({row.roof_fraction:.2f})  "
        f"{row.gflops:6.0f} of {row.peak_gflops:6.0f} GFLOP/s ({row.peak_fraction:.2f}){against}"
    )
