"""From what was measured to why it is slow: pure functions of numbers.

a limit    seconds a token of one resource alone: bytes / (bytes a second), operations / (operations a second)
expected   between all limits one after the other (nothing overlaps) and the slowest (all else hides behind it)
binding    the disk, if more than half of the time is waited for it; else the slowest resource, if its limit is at
           least half of what was measured; else `overhead`: what none of them explains
"""

from __future__ import annotations

from dataclasses import dataclass

from baltoro.doctor.advice import EXPLAINED, Advice, advice
from baltoro.doctor.facts import Facts

OTHERS = 0.25  # of the time


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What a token takes of one resource, and how fast that alone would be."""

    resource: str  # memory, compute, disk
    amount: float  # bytes or operations
    rate: float  # a second
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    limits: tuple[Limit, ...]  # the slowest first
    binding: str  # memory, compute, disk, others, overhead; unknown where nothing could be measured
    expected_tokens_per_s: tuple[float, float] | None  # where nothing overlaps, where everything does
    tokens_per_s: float
    waited_share: float  # of the time, for the disk
    cached: bool  # what a token reads fits into the last cache: memory may be no limit
    advice: tuple[Advice, ...]


def judge(facts: Facts) -> Verdict:
    limits = tuple(sorted(_limits(facts), key=lambda limit: limit.tokens_per_s))
    seconds = [1 / limit.tokens_per_s for limit in limits]
    return Verdict(
        limits=limits,
        binding=_binding(facts, limits),
        expected_tokens_per_s=(1 / sum(seconds), 1 / max(seconds)) if seconds else None,
        tokens_per_s=facts.tokens_per_s,
        waited_share=facts.waited_s / facts.seconds,
        cached=facts.memory_bytes <= facts.last_cache_bytes,
        advice=advice(facts),
    )


def _limits(facts: Facts) -> list[Limit]:
    wanted: list[tuple[str, float, float | None]] = [
        ("memory", facts.memory_bytes, facts.roof.read_gbps),
        ("compute", facts.flops, facts.roof.peak_gflops),
    ]
    if facts.store is not None and facts.disk is not None and facts.store.bytes_read:
        wanted.append(("disk", facts.store.bytes_read / facts.tokens, facts.disk.read_gbps))
    return [
        Limit(resource=name, amount=amount, rate=giga * 1e9, tokens_per_s=giga * 1e9 / amount)
        for name, amount, giga in wanted
        if giga
    ]


def _binding(facts: Facts, limits: tuple[Limit, ...]) -> str:
    if not limits:
        return "unknown"
    if facts.waited_s > EXPLAINED * facts.seconds:
        return "disk"
    slowest = limits[0]
    if facts.tokens_per_s >= EXPLAINED * slowest.tokens_per_s:
        return slowest.resource
    return "others" if (facts.queued_s or 0.0) > OTHERS * facts.seconds else "overhead"
