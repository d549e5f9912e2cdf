"""One sequence and its wishes: what enters the engine, and what comes out of it. Token ids only."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baltoro.errors import ContextError, RequestError

_serial = itertools.count()


class FinishReason(StrEnum):
    STOP = "stop"  # one of stop_token_ids, or the constraint reached its end
    LENGTH = "length"  # max_tokens or the context is used up
    CANCELLED = "cancelled"  # the caller went away
    ERROR = "error"  # the engine failed, or the deadline has passed; Step.error says why


class Constraint(Protocol):
    """What may come next, seen from the engine: a mask and a step. chat/grammar.py makes these.

    One that can, also has `forced(most: int) -> Sequence[int]`: tokens that very likely come next whatever the model
    is, () where there is a choice; the engine guesses them (engine/speculative.py).
    """

    def mask(self) -> NDArray[np.bool_] | None:
        """(vocab_size,) True where a token is allowed now; None where everything is."""
        ...

    def advance(self, token: int) -> None:
        """The sequence goes on with `token`, which the last mask allowed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. The same seed gives the same tokens whatever else is running.

    The order is vLLM's: logit_bias, repetition_penalty, presence and frequency penalty, the constraint's mask and
    min_tokens, temperature, min_p, top_k, top_p. What each step removes is gone for the next, and what is left at the
    end is renormalised once. Log-probabilities are those of the model itself: the log-softmax of its logits, before
    all of this (vLLM's `raw_logprobs`). `tempered_logprobs` is for who trains on what was drawn.
    """

    max_tokens: int  # at least 1
    min_tokens: int = 0  # before so many are generated no stop token comes, unless a constraint leaves nothing else
    temperature: float = 0.0  # 0: the most likely token
    top_p: float = 1.0  # keep the smallest set of tokens whose probability reaches this
    top_k: int = 0  # keep this many tokens; 0 keeps all
    min_p: float = 0.0  # keep tokens at least this many times as likely as the likeliest
    repetition_penalty: float = 1.0  # of every id in prompt and output: positive logits divided by it, others times it
    presence_penalty: float = 0.0  # subtracted from the logit of every id in the output
    frequency_penalty: float = 0.0  # the same, for each time that it occurs there
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])  # id -> what is added to its logit
    seed: int | None = None  # 64 bits; None: a fresh one
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None  # report each token's log-probability and those of this many likeliest; None: nothing
    tempered_logprobs: bool = False  # those that tokens are drawn by: the log-softmax of logits / temperature

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, f"0 to max_tokens, {self.max_tokens}"),
            ("temperature", 0.0 <= self.temperature < math.inf, "a finite number, at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "more than 0, at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "0 to 1"),
            # Bounds far beyond any use, so that no logit becomes infinite.
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100.0, "0.01 to 100"),
            ("presence_penalty", -1e4 <= self.presence_penalty <= 1e4, "-1e4 to 1e4"),
            ("frequency_penalty", -1e4 <= self.frequency_penalty <= 1e4, "-1e4 to 1e4"),
            ("logit_bias", all(-1e4 <= bias <= 1e4 for bias in self.logit_bias.values()), "numbers from -1e4 to 1e4"),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**64, "64 bits: -2^63 to 2^64 - 1"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "at least 0"),
            (
                "tempered_logprobs",
                not self.tempered_logprobs or self._only_tempered,
                "False where a temperature of 0, or anything but the temperature, changes what is drawn",
            ),
        ):
            if not holds:
                raise RequestError(f"{name} is {getattr(self, name)}, expected {expected}", param=name)

    @property
    def _only_tempered(self) -> bool:
        whole = self.top_p == 1.0 and self.top_k == 0 and self.min_p == 0.0
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        unchanged = penalties == (1.0, 0.0, 0.0) and not self.logit_bias and self.min_tokens == 0
        return self.temperature > 0.0 and whole and unchanged


@dataclass(frozen=True, slots=True)
class Scored:
    """A token and how likely the model took it to be: natural logarithms of its softmax, at temperature 1 unless the
    request has `tempered_logprobs`."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # likeliest ids and `token`, falling, the lowest id first among equals


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine reports to a request's sink: scores of its prompt, a token, an end, or several of these."""

    token: int | None
    finish: FinishReason | None = None
    error: BaseException | None = None
    scored: Scored | None = None  # of `token`, where SamplingParams.logprobs asks for it
    prompt: tuple[Scored, ...] = ()  # the prompt's next tokens, its second one first; all come before the first token
    cached_tokens: int = 0  # of the prompt, that were not computed for it


@dataclass(slots=True)
class Marks:
    """When a request got where, by time.monotonic(). None: it did not, or not here but behind a URL."""

    arrived_s: float = field(default_factory=time.monotonic)
    began_s: float | None = None  # its first tokens were about to be computed
    first_s: float | None = None  # its first token was chosen


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A prompt, its sampling, and the sink that hears of every new token (called on the engine's thread).

    A sink that hands tokens to another thread does better to collect them until `told`: a thread that is woken for the
    first of a step's tokens takes the interpreter from the one that still chooses the others. `told` is called when the
    interpreter is free, for the next forward or a sleep.
    """

    prompt: list[int]
    sampling: SamplingParams
    sink: Callable[[Step], None]
    told: Callable[[], None] | None = None  # called once for all requests that share it, some time after their sinks
    constraint: Constraint | None = None
    priority: int = 0  # lower runs first, as vLLM has it; among equals who came first
    deadline: float | None = None  # time.monotonic() after which it ends with a DeadlineError, wherever it stands
    prompt_logprobs: int | None = None  # as SamplingParams.logprobs, of the prompt; needs the logits of all its rows
    id: int = field(default_factory=lambda: next(_serial))
    marks: Marks = field(default_factory=Marks)  # written by the engine, before the sink hears of what they tell

    def tell(self, step: Step) -> None:
        """To the sink, and that nothing follows for now."""
        self.sink(step)
        if self.told is not None:
            self.told()

    def check_length(self, max_context: int) -> None:
        """A RequestError where the prompt and one token more are not 2 .. max_context tokens."""
        if not self.prompt:
            raise RequestError("the prompt is empty, expected at least one token", param="prompt")
        if len(self.prompt) + 1 > max_context:
            raise ContextError(
                f"the prompt has {len(self.prompt)} tokens, expected at most {max_context - 1}",
                hint="shorten the conversation, or serve with a larger context",
                param="prompt",
                code="context_length_exceeded",
            )
