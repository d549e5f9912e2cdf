"""What is asked of an upstream, and what every dialect turns it into."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from baltoro.engine.request import SamplingParams, Scored
from baltoro.structure import Structure

Event = Mapping[str, Any]  # one JSON object of a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A sequence to go on with."""

    prompt: Sequence[int]  # with what has been generated so far
    sampling: SamplingParams  # of what is still to come
    structure: Structure | None = None  # a hint: what comes back is looked at all the same
    allowed: Sequence[int] | None = None  # the only ids that may come, rising; max_tokens is then 1


@dataclass(frozen=True, slots=True)
class Heard:
    """A token that an upstream sent."""

    token: int
    scored: Scored | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one event of a stream says."""

    heard: Sequence[Heard]
    over: bool  # the upstream has ended the sequence: nothing follows
    missed: bool = False  # it has generated tokens that it did not tell, before those of `heard`, which are void


class Malformed(Exception):
    """An event that does not say what its dialect says."""


class Failed(Exception):
    """An event in which an upstream tells of an error of its own."""


class Dialect(Protocol):
    """How one kind of engine is spoken to: pure translations, no connection."""

    name: str
    path: str  # where a sequence is posted
    health: str  # what answers 200 while it is well

    def check(self, sampling: SamplingParams) -> None:
        """Raise RequestError for a wish that this engine cannot fulfil as ours does."""
        ...

    def body(self, ask: Ask) -> dict[str, Any]: ...

    def reader(self) -> Callable[[Event], Chunk]:
        """For the events of one stream. Raises Malformed or Failed."""
        ...


def look_for_error(event: Event) -> None:
    """All three tell one as an object of this name, in the middle of a stream too."""
    if (error := event.get("error")) is not None:
        raise Failed(json.dumps(error, ensure_ascii=False)[:300])


def scored(token: int, logprob: float, likeliest: Sequence[tuple[int, float]], count: int) -> Scored:
    """As our own engine reports it: the `count` likeliest ids, and `token` behind them if it is none of these."""
    order = sorted(likeliest, key=lambda each: (-each[1], each[0]))[:count]
    if all(other != token for other, _ in order):
        order.append((token, logprob))
    return Scored(token, logprob, tuple(order))


def ids_of(value: object) -> list[int]:
    """A list of token ids, or Malformed."""
    ids = cast("list[int]", value) if isinstance(value, list) else None
    if ids is None or not all(type(each) is int for each in ids):
        raise Malformed(f"expected a list of token ids, got {str(cast('object', value))[:100]!r}")
    return ids


def number_of(value: object) -> float:
    if not isinstance(value, int | float):
        raise Malformed(f"expected a number, got {str(value)[:100]!r}")
    return float(value)


def signed_seed(seed: int) -> int:
    """Our seeds have 64 bits without a sign, theirs one with."""
    return (seed + 2**63) % 2**64 - 2**63
