"""A request under way, and what of it runs in one step."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from baltoro.engine.penalties import Penalties
from baltoro.engine.request import Request
from baltoro.engine.sampler import is_plain
from baltoro.engine.speculative import Drafter
from baltoro.engine.spill import Restore


@dataclass(slots=True, eq=False)
class Sequence:
    """A request under way."""

    request: Request
    tokens: list[int]  # the prompt and what was generated
    seed: int
    penalties: Penalties | None = None
    cached: int = 0  # tokens whose latents lie in its pages
    work: int = 0  # tokens that it had to compute when it was admitted
    scored: int = 0  # positions of the prompt after which the next token's log-probability has been reported
    plain: bool = False  # nothing is changed or cut from its logits, but for what its constraint forbids
    drafter: Drafter | None = None  # guesses what comes next
    reused: int | None = None  # of these, prompt tokens that it found there when it first ran
    restore: Restore | None = None  # pages that it waits for
    arrived_s: float = field(default_factory=time.monotonic)
    began_s: float | None = None  # time.monotonic() of its first step, and of its first token
    first_s: float | None = None
    order: tuple[int, int] = (0, 0)  # its place among all: priority, then the number of its arrival

    @classmethod
    def of(cls, request: Request, *, speculate: bool) -> Self:
        seed, penalties = request.sampling.seed, Penalties.of(request.sampling, request.prompt)
        free = penalties is None and not request.sampling.min_tokens
        return cls(
            request,
            list(request.prompt),
            secrets.randbits(64) if seed is None else seed,
            penalties,
            plain=free and is_plain(request.sampling),
            drafter=Drafter(request.constraint) if speculate else None,
        )

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


class Chunk(NamedTuple):
    """Tokens start:stop of a sequence, to run in this step, all of its prompt or all generated.

    The last of its tokens asks for a new one.
    """

    sequence: Sequence
    start: int
    stop: int
    drafts: tuple[int, ...] = ()  # what may come next, to run behind them; only behind the last one

    @property
    def is_last(self) -> bool:
        return self.stop == len(self.sequence.tokens)

    @property
    def is_generated(self) -> bool:
        return self.start >= len(self.sequence.request.prompt)
