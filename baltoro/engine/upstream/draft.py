"""One answer that upstreams write: what to ask for next, and whether what comes back may stand.

    next() ──> a token, the only one allowed      taken here, nobody is asked
          └──> Ask: go on from prompt + tokens ──> upstream ──> hear(token) ──> Step
                    ^                                              │ refused: no part of the answer
                    └── at this place once more, with the mask ────┘

The constraint looks at every token, so what is emitted is what our own engine could emit under the same mask. It is
also as likely: a token that is allowed is kept, in place of one that is not another is drawn under the mask, and both
together are the masked distribution (for greedy: the masked argmax). An engine's own grammar saves second draws; only
where it is narrower than ours does it change what may be said.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from baltoro.engine.request import FinishReason, Request, SamplingParams, Step
from baltoro.engine.upstream.dialect import Ask, Heard
from baltoro.errors import EngineError

MAX_ASKS = 1000  # for one answer; each goes on by a token at least, so this bounds what a confused upstream costs
SHORT = 8  # tokens; llama-server tells so few all at once, parts of characters included


class Draft:
    """Pure: no connection, no clock. Belongs to one thread."""

    def __init__(self, request: Request, *, vocab_size: int, max_context: int) -> None:
        self.request = request
        self.tokens: list[int] = []
        self._vocab_size = vocab_size
        self._room = min(request.sampling.max_tokens, max_context - len(request.prompt))
        self._mask: NDArray[np.bool_] | None = None
        self._look()
        self._narrow = False  # the next ask names what is allowed
        self._short = False  # the next ask is for a few tokens
        self._hinted = True  # structures may be sent
        self._asks = 0

    @property
    def over(self) -> FinishReason | None:
        if self.tokens and self.tokens[-1] in self.request.sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.tokens) >= self._room else None

    def next(self) -> int | Ask:
        """The next token, where only one is allowed, to be told to `hear`; or what an upstream is to be asked."""
        scored = self.request.sampling.logprobs is not None
        if self._mask is not None and not self._mask.any():
            raise EngineError("the constraint allows no token at all")
        if self._mask is not None and not scored and np.count_nonzero(self._mask) == 1:
            self._narrow = False
            return int(self._mask.argmax())
        self._asks += 1
        if self._asks > MAX_ASKS:
            raise EngineError(
                f"{MAX_ASKS} times the upstream said what is not allowed, in {len(self.tokens)} tokens",
                hint="is it another model than the one whose tokenizer is used here?",
            )
        allowed = None
        if self._narrow:
            assert self._mask is not None
            allowed = np.flatnonzero(self._mask).tolist()
        describe = getattr(self.request.constraint, "describe", None) if self._hinted and allowed is None else None
        most = 1 if allowed is not None else SHORT if self._short else self._room
        self._narrow = self._short = False
        return Ask(
            prompt=self.request.prompt + self.tokens,
            sampling=self._rest(most),
            structure=describe() if describe is not None else None,
            allowed=allowed,
        )

    def hear(self, heard: Heard) -> Step | None:
        """What to report of it; None: refused, so that everything behind it is void and `next` is to be asked."""
        token = heard.token
        if not 0 <= token < self._vocab_size:
            raise EngineError(
                f"the upstream said token {token}, expected 0 to {self._vocab_size - 1}",
                hint="it serves another model than the one whose tokenizer is used here",
            )
        if self._mask is not None and not self._mask[token]:
            self._narrow = True
            return None
        if self.request.constraint is not None:
            self.request.constraint.advance(token)
        self.tokens.append(token)
        if self.over is None:
            self._look()
        return Step(token, self.over, scored=heard.scored)

    def missed(self) -> None:
        """The upstream has generated tokens that it does not tell: ask for a few, all at once."""
        self._short = True

    def unhinted(self) -> bool:
        """Send no structures any more; False if none was sent before."""
        was, self._hinted = self._hinted and self.request.constraint is not None, False
        return was

    def _look(self) -> None:
        """The mask of the next token; None where everything is allowed."""
        sampling, constraint = self.request.sampling, self.request.constraint
        mask = None if constraint is None else constraint.mask()
        if len(self.tokens) < sampling.min_tokens and sampling.stop_token_ids:
            going_on = np.ones(self._vocab_size, np.bool_) if mask is None else mask.copy()
            going_on[list(sampling.stop_token_ids)] = False
            if going_on.any():
                mask = going_on
        self._mask = mask

    def _rest(self, most: int) -> SamplingParams:
        """The wishes for what is still to come."""
        s, done = self.request.sampling, len(self.tokens)
        left = min(self._room - done, most)
        bias: dict[int, float] = dict(s.logit_bias)
        if done and (s.presence_penalty or s.frequency_penalty):
            # What is sent as prompt counts no more there. (Presence counts twice for an id that comes once again.)
            for token, times in Counter(self.tokens).items():
                bias[token] = bias.get(token, 0.0) - s.presence_penalty - s.frequency_penalty * times
        return replace(
            s,
            max_tokens=left,
            # A grammar that has ended must not be kept from ending; what comes too early is refused here.
            min_tokens=0 if self.request.constraint is not None else min(max(0, s.min_tokens - done), left),
            logit_bias=bias,
            seed=None if s.seed is None else (s.seed + done) % 2**64,  # else each ask would draw the same numbers
        )
