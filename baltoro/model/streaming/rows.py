"""What measuring a streamed model finds, as data and as a line for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The prompt or the answer of one session. What has to do with the disk is None where all was resident."""

    work: str  # prefill: the prompt, once it ran before; decode: the answer, one token a step
    format: str
    tokens: int
    layers: int
    experts: int  # of all layers together
    seconds: float
    tokens_per_s: float
    limit_tokens_per_s: float | None  # 1 / max(missed bytes / disk_gbps, compute_seconds)
    limit_fraction: float | None  # tokens_per_s of it
    limited_by: str  # disk, compute
    compute_seconds: float
    compute_from: str  # resident: the same session with everything in memory; not waited: this one less its waiting
    read_gbps: float | None  # bytes read / seconds of the work
    busy_gbps: float | None  # bytes read / seconds with a read under way
    disk_gbps: float | None  # plain reads of the same blocks between the steps
    disk_fraction: float | None  # read_gbps of disk_gbps
    hit_rate: float
    misses_per_token: float
    bytes_per_token: float  # read from disk, wrong guesses too
    guesses_per_token: float  # experts that were read before the router had run
    foreseen_fraction: float | None  # of the guesses, those that came true
    waited_fraction: float  # of the seconds, with nothing to multiply
    cpu_s_per_gb: float | None  # of reading
    open_seconds: float
    first_token_seconds: float  # opening and prompt, from a cold start
    peak_memory_bytes: int  # of the process, disk measurement included
    budget_bytes: int | None  # for experts
    expert_bytes: int  # of one
    threads: int


def line(row: Row) -> str:
    """A row for people."""
    text = f"{row.work:8}{row.tokens:6,} tokens  {row.tokens_per_s:8.2f} tokens/s"
    if row.limit_tokens_per_s is None:
        return f"{text}, everything resident"
    return (
        f"{text} of {row.limit_tokens_per_s:8.2f} ({row.limit_fraction or 0:.2f}; {row.limited_by})  "
        f"read {row.read_gbps or 0:.2f} of {row.disk_gbps or 0:.2f} GB/s ({row.disk_fraction or 0:.2f}), "
        f"{row.cpu_s_per_gb or 0:.3f} CPU s a GB  {row.hit_rate:6.1%} hit, {row.misses_per_token:.2f} misses "
        f"and {row.bytes_per_token / 1e6:,.0f} MB a token, {row.waited_fraction:.0%} waited"
    )


def summary(row: Row) -> str:
    budget = "everything resident" if row.budget_bytes is None else f"{row.budget_bytes / 1e9:.2f} GB for experts"
    return (
        f"{row.format}: {row.layers} layers, {row.experts:,} experts of {row.expert_bytes / 1e6:.1f} MB, {budget}: "
        f"open in {row.open_seconds:.2f} s, first token after {row.first_token_seconds:.2f} s, "
        f"peak memory {row.peak_memory_bytes / 1e9:.2f} GB"
    )
