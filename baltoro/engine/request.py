"""One sequence and its wishes: what enters the engine, and what comes out of it. Token ids only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baltoro.errors import RequestError

_serial = itertools.count()


class FinishReason(StrEnum):
    STOP = "stop"  # one of stop_token_ids, or the constraint reached its end
    LENGTH = "length"  # max_tokens or the context is used up
    CANCELLED = "cancelled"  # the caller went away
    ERROR = "error"  # the engine failed; Step.error says why


class Constraint(Protocol):
    """What may come next, seen from the engine: a mask and a step. chat/grammar.py makes these."""

    def mask(self) -> NDArray[np.bool_] | None:
        """(vocab_size,) True where a token is allowed now; None where everything is."""
        ...

    def advance(self, token: int) -> None:
        """The sequence goes on with `token`, which the last mask allowed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. The same seed gives the same tokens whatever else is running."""

    max_tokens: int  # at least 1
    temperature: float = 0.0  # 0: the most likely token
    top_p: float = 1.0  # keep the smallest set of tokens whose probability reaches this
    top_k: int = 0  # keep this many tokens; 0 keeps all
    seed: int | None = None  # None: a fresh one
    stop_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < math.inf, "a finite number, at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "more than 0, at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
        ):
            if not holds:
                raise RequestError(f"{name} is {getattr(self, name)}, expected {expected}", param=name)


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine reports to a request's sink: a token, an end, or both."""

    token: int | None
    finish: FinishReason | None = None
    error: BaseException | None = None
    cached_tokens: int = 0  # of the prompt, that were not computed for it


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A prompt, its sampling, and the sink that hears of every new token (called on the engine's thread)."""

    prompt: list[int]
    sampling: SamplingParams
    sink: Callable[[Step], None]
    constraint: Constraint | None = None
    id: int = field(default_factory=lambda: next(_serial))
