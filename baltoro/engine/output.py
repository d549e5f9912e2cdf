"""From a step's logits to tokens, each told to its request's sink.

A token is reported as soon as it is chosen, a stop token too: `Step(token, STOP)` carries it, and it counts as
generated. What fails inside one request (its constraint, its logits, its sink) ends that request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from baltoro.engine import logprobs, sampler
from baltoro.engine.observe import Observer
from baltoro.engine.orders import Orders
from baltoro.engine.request import FinishReason, Step
from baltoro.engine.sampler import PlainRow
from baltoro.engine.scheduler import Scheduler
from baltoro.engine.sequence import Chunk, Sequence
from baltoro.errors import EngineError

_log = logging.getLogger(__name__)


_UNHEARD = Step(None, FinishReason.ERROR)  # its sink raised


class Output:
    """Of one loop; used by its thread alone."""

    def __init__(
        self, scheduler: Scheduler, orders: Orders, observer: Observer, *, vocab_size: int, max_context: int
    ) -> None:
        self._scheduler = scheduler
        self._orders = orders
        self._observer = observer
        self._max_context = max_context
        self._sampler = sampler.Sampler(vocab_size)
        self._to_tell: set[Callable[[], None]] = set()
        self.generated = self.prefilled = self.drafted = self.foreseen = 0  # tokens

    def take(self, chunks: list[Chunk], logits: NDArray[np.float32]) -> None:
        """The chunks are computed; logits: the rows that `pack` has asked for."""
        row, foretold = 0, self._choose_plain(chunks, logits)
        for chunk in chunks:
            if self._orders.ended:  # this step was given up while it lasted
                return
            sequence, start, stop, drafts = chunk
            self._scheduler.computed(sequence, start, stop)
            listens = True
            if scored := len(logprobs.prompt_rows(chunk)):
                listens = self._tell_prompt(sequence, logits[row : row + scored])
                row += scored
            if chunk.is_last:
                end = row + 1 + len(drafts)
                if listens:
                    self._listen(sequence, drafts, logits[row:end], foretold[row:end])
                row = end
            if stop - start > 1 or not chunk.is_generated:
                self.prefilled += stop - start

    def end(self, sequence: Sequence, step: Step) -> None:
        self._forget(sequence, step)  # first, so that who hears of the end finds its pages free
        self._tell(sequence, step)

    def told(self) -> None:
        """Nothing follows for now."""
        while self._to_tell:
            _call(self._to_tell.pop())

    def _tell(self, sequence: Sequence, step: Step) -> bool:
        if sequence.request.told is not None:
            self._to_tell.add(sequence.request.told)
        return tell(sequence, step)

    def _choose_plain(self, chunks: list[Chunk], logits: NDArray[np.float32]) -> list[int | None]:
        """For each row the token that comes there, if it does; None where that is to be chosen by itself.

        What a constraint allows behind a guess is known only when that has been said.
        """
        chosen: list[int | None] = [None] * len(logits)
        if self._sampler.most < 2:
            return chosen
        wanted: list[PlainRow] = []
        row = 0
        for chunk in chunks:
            row += len(logprobs.prompt_rows(chunk))
            if not chunk.is_last:
                continue
            sequence, count = chunk.sequence, 1 + len(chunk.drafts)
            if sequence.plain:
                constraint, temperature = sequence.request.constraint, sequence.request.sampling.temperature
                mask = None
                try:
                    mask = None if constraint is None else constraint.mask()
                except Exception:  # it is asked again when it is its turn, and fails for its own request
                    row += count
                    continue
                for index in range(count if constraint is None else 1):
                    draw = sampler.uniform(sequence.seed, sequence.generated + index) if temperature else 0.0
                    wanted.append(PlainRow(row + index, mask, temperature, draw))
            row += count
        if len(wanted) > 1:  # one alone is chosen faster by itself
            for each, token in zip(wanted, self._sampler.choose_plain(logits, wanted), strict=True):
                chosen[each.row] = token
        return chosen

    def _listen(
        self, sequence: Sequence, drafts: tuple[int, ...], logits: NDArray[np.float32], chosen: list[int | None]
    ) -> None:
        """logits: behind its last token and behind each draft. It says as many tokens as its drafts have foreseen.

        Each is chosen as if there were no drafts: from the logits behind the token before it, by its own draw.
        """
        begun = sequence.cached
        for index, row in enumerate(logits):
            if (
                not self._speak(sequence, row, chosen[index])
                or index == len(drafts)
                or sequence.tokens[-1] != drafts[index]
            ):
                break
            sequence.cached += 1  # the draft's latents are those of the token that came
            self.foreseen += 1
        if drafts and sequence.drafter is not None:
            self.drafted += len(drafts)
            sequence.drafter.learn(len(drafts), sequence.cached - begun)

    def _tell_prompt(self, sequence: Sequence, logits: NDArray[np.float32]) -> bool:
        """Report how likely its prompt's next tokens were; False when that ended it."""
        request, first = sequence.request, sequence.scored + 1
        sequence.scored += len(logits)
        assert request.prompt_logprobs is not None
        try:
            tokens = request.prompt[first : first + len(logits)]
            scores = [logprobs.score(*row, request.prompt_logprobs) for row in zip(logits, tokens, strict=True)]
        except EngineError as error:
            self.end(sequence, Step(None, FinishReason.ERROR, error))
            return False
        if not self._tell(sequence, Step(None, prompt=tuple(scores))):
            self._forget(sequence, _UNHEARD)
            return False
        return True

    def _speak(self, sequence: Sequence, logits: NDArray[np.float32], token: int | None) -> bool:
        """Choose its next token, if it is not yet, and report it; False when it has ended."""
        sampling, constraint = sequence.request.sampling, sequence.request.constraint
        try:
            if token is None:
                mask = None if constraint is None else constraint.mask()
                draw = sampler.uniform(sequence.seed, sequence.generated) if sampling.temperature else 0.0
                avoid = sampling.stop_token_ids if sequence.generated < sampling.min_tokens else ()
                token = self._sampler.choose(
                    logits, sampling, mask=mask, draw=draw, penalties=sequence.penalties, avoid=avoid
                )
            if constraint is not None:
                constraint.advance(token)
            scored = None
            if sampling.logprobs is not None:
                at = sampling.temperature if sampling.tempered_logprobs else 1.0
                scored = logprobs.score(logits, token, sampling.logprobs, at)
        except Exception as error:  # a constraint is another's code; its bug ends its own request
            if not isinstance(error, EngineError):
                _log.exception("request %d: its constraint failed", sequence.request.id)
                error = EngineError(f"the constraint failed: {error!r}")
            self.end(sequence, Step(None, FinishReason.ERROR, error))
            return False
        sequence.tokens.append(token)
        if sequence.penalties is not None:
            sequence.penalties.advance(token)
        self.generated += 1
        if sequence.first_s is None:
            self._observer.first_token(sequence, time.monotonic())
        if token in sampling.stop_token_ids:
            self.end(sequence, Step(token, FinishReason.STOP, scored=scored))
        elif sequence.generated >= sampling.max_tokens or len(sequence.tokens) >= self._max_context:
            self.end(sequence, Step(token, FinishReason.LENGTH, scored=scored))
        elif not self._tell(sequence, Step(token, scored=scored)):
            self._forget(sequence, _UNHEARD)
        else:
            return True
        return False

    def _forget(self, sequence: Sequence, last: Step) -> None:
        assert last.finish is not None
        self._observer.ended(sequence, last.finish, time.monotonic())
        self._orders.forget(sequence.request)
        self._scheduler.remove(sequence)


def tell(sequence: Sequence, step: Step) -> bool:
    """False when its sink raised: nobody listens any more, so the request goes."""
    try:
        sequence.request.sink(replace(step, cached_tokens=sequence.reused) if sequence.reused else step)
    except Exception:  # a sink is another's code; its bug ends its own request
        _log.exception("request %d: its sink failed", sequence.request.id)
        return False
    return True


def tell_at_once(sequence: Sequence, step: Step) -> None:
    tell(sequence, step)
    if sequence.request.told is not None:
        _call(sequence.request.told)


def _call(told: Callable[[], None]) -> None:
    try:
        told()
    except Exception:  # another's code: its own readers miss what it has not handed over
        _log.exception("tokens could not be handed over")
