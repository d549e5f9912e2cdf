"""One answer as it grows: the engine's steps in, what its caller hears out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, cast

from baltoro.chat.messages import (
    CallEnded,
    ChatRequest,
    CompletionRequest,
    Delta,
    Echo,
    Finished,
    FinishReason,
    Likelihood,
    Likelihoods,
    Piece,
    PromptRead,
    TextDelta,
    TokenDelta,
    ToolCall,
    Usage,
)
from baltoro.chat.parser import Folded, IncompleteCall, Parser, fold
from baltoro.chat.stops import StopStrings
from baltoro.chat.tokenizer import Detokenizer, Tokenizer
from baltoro.engine.request import FinishReason as EngineFinish
from baltoro.engine.request import Marks, Scored, Step
from baltoro.errors import BaltoroError, EngineError

Item = TypeVar("Item")  # Delta of a chat, Piece of a completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer, and the tokens that it was made of: training never encodes text again."""

    content: str | None  # None: no text at all
    tool_calls: tuple[ToolCall, ...]
    incomplete: tuple[IncompleteCall, ...]  # cut off; must not be dispatched
    reason: FinishReason
    usage: Usage
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # as generated, a stop token included
    logprobs: tuple[float, ...] = ()  # of each of them, where the request wished for any


class Progress(Protocol):
    """How far an answer is, for who counts what it costs."""

    @property
    def max_tokens(self) -> int | None: ...  # that were asked for; None: what the context leaves

    @property
    def usage(self) -> Usage: ...  # until now, also of an answer that was given up


# Hears of the answers to one prompt before any of them is submitted, and may refuse them by raising.
Admit = Callable[[Sequence[Progress]], None]


class Reader(ABC, Generic[Item]):
    """Belongs to the thread or the event loop that reads the answer."""

    def __init__(self, prompt: list[int], wishes: ChatRequest | CompletionRequest, tokenizer: Tokenizer) -> None:
        self.prompt = prompt
        self.wishes = wishes
        self.max_tokens = wishes.max_tokens
        self.tokens: list[int] = []
        self.over = False
        self.finish: FinishReason | None = None  # once it has one
        self.first_s: float | None = None  # time.monotonic() when the first token was read, and when the end was
        self.over_s: float | None = None
        self.marks: Marks | None = None  # the engine's; None until it has the request
        self._cached_tokens = 0
        self._tokenizer = tokenizer
        self._stops = StopStrings(wishes.stop)
        self._min_tokens = wishes.min_tokens
        self._nothing_wanted = wishes.max_tokens == 0  # the engine generates one token all the same

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.prompt), completion_tokens=len(self.tokens), cached_tokens=self._cached_tokens
        )

    def read(self, step: Step) -> list[Item]:
        self._cached_tokens = step.cached_tokens
        if self.first_s is None and step.token is not None:
            self.first_s = time.monotonic()
        if step.finish is EngineFinish.ERROR:
            self.over, self.over_s = True, time.monotonic()
            if isinstance(step.error, BaltoroError):
                raise step.error
            raise EngineError(f"the engine failed: {step.error!r}")
        items: list[Item] = []
        if step.token is not None and not self._nothing_wanted:
            self.tokens.append(step.token)
        items += self._push(step)
        if step.finish is not None and self._stops.found is None:
            items += self._flush()
        if step.finish is not None or self._stops.found is not None:
            self.over, self.over_s = True, time.monotonic()
            reason = "stop" if self._stops.found is not None else self._reason(step.finish)
            self.finish = reason
            items.append(cast("Item", Finished(reason, self.usage, self._stops.found)))
        return items

    def _reason(self, finish: EngineFinish | None) -> FinishReason:
        if finish is EngineFinish.LENGTH:
            return "length"
        return "cancelled" if finish is EngineFinish.CANCELLED else "stop"

    def _cut(self, text: str) -> str:
        """What of the answer's next text is certain to stand before a stop string; none counts before min_tokens."""
        return text if len(self.tokens) <= self._min_tokens else self._stops.push(text)

    @abstractmethod
    def retold(self) -> Folded:
        """Text and calls of the tokens until now, read once more; what follows a stop string included."""

    @abstractmethod
    def _push(self, step: Step) -> list[Item]:
        """What a step adds. A token that ended the answer in the engine is no text, whichever it is."""

    @abstractmethod
    def _flush(self) -> list[Item]:
        """What was held back: nothing follows."""


class ChatReader(Reader[Delta]):
    def __init__(self, prompt: list[int], request: ChatRequest, parser: Parser, tokenizer: Tokenizer) -> None:
        super().__init__(prompt, request, tokenizer)
        self.parser = parser
        self._section_end = tokenizer.tool_calls_section_end
        self._num_calls = 0  # whole ones
        self._prompt_told = not request.tell_prompt

    def retold(self) -> Folded:
        parser = Parser(self._tokenizer, endless=self.wishes.ignore_eos)
        return fold([delta for token in self.tokens for delta in parser.push(token)] + parser.finish())

    def _push(self, step: Step) -> list[Delta]:
        if step.token is None:
            return []
        told: list[Delta] = []
        if not self._prompt_told:
            self._prompt_told = True
            told.append(PromptRead(replace(self.usage, completion_tokens=0)))
        if step.scored is not None:
            told.append(_likelihoods(step.scored, self._tokenizer))
        return told if step.finish is EngineFinish.STOP else told + self._until_stop(self.parser.push(step.token))

    def _flush(self) -> list[Delta]:
        return self._until_stop(self.parser.finish()) + self._held()

    def _until_stop(self, deltas: Iterable[Delta]) -> list[Delta]:
        """Stop strings end the text that a person reads; in a call's arguments they are data."""
        told: list[Delta] = []
        for delta in deltas:
            if self._stops.found is not None:
                break
            if isinstance(delta, TextDelta):
                if text := self._cut(delta.text):
                    told.append(TextDelta(text))
                continue
            told += [*self._held(), delta]
            self._num_calls += isinstance(delta, CallEnded)
        return told

    def _held(self) -> list[Delta]:
        text = self._stops.flush()
        return [TextDelta(text)] if text else []

    def _reason(self, finish: EngineFinish | None) -> FinishReason:
        # Behind the section of calls only the end of the turn is possible: cut there, nothing is missing.
        whole = finish is EngineFinish.STOP or (finish is EngineFinish.LENGTH and self.tokens[-1] == self._section_end)
        return "tool_calls" if whole and self._num_calls else super()._reason(finish)


class CompletionReader(Reader[Piece]):
    def __init__(self, prompt: list[int], request: CompletionRequest, tokenizer: Tokenizer) -> None:
        super().__init__(prompt, request, tokenizer)
        self._detokenizer = Detokenizer(tokenizer)
        self._offset = 0  # characters that were completed
        self._unread: list[Likelihoods | None] | None = [None] if request.echo else None  # the prompt's, to be told
        self._printed = {  # control tokens that are text for the reference's decoder too; the others are not
            tokenizer.tool_calls_section_begin,
            tokenizer.tool_calls_section_end,
            tokenizer.tool_call_begin,
            tokenizer.tool_call_argument_begin,
            tokenizer.tool_call_end,
        }

    def retold(self) -> Folded:
        return Folded(self._tokenizer.decode(self.tokens), (), ())

    def _push(self, step: Step) -> list[Piece]:
        pieces: list[Piece] = []
        if self._unread is not None:
            self._unread += [_likelihoods(scored, self._tokenizer) for scored in step.prompt]
            if step.token is not None:
                pieces.append(self._echo(self._unread))
                self._unread = None
        if step.token is None or self._nothing_wanted:
            return pieces
        is_text = step.token < self._tokenizer.num_base or step.token in self._printed
        if is_text and step.finish is not EngineFinish.STOP:
            text = self._detokenizer.push(step.token)
        else:
            text = self._detokenizer.flush()
        scored = None if step.scored is None else _likelihoods(step.scored, self._tokenizer)
        pieces.append(TokenDelta(step.token, self._cut(text), self._offset, scored))
        self._offset += len(text)
        return pieces

    def _flush(self) -> list[Piece]:
        text = self._cut(self._detokenizer.flush()) + self._stops.flush()
        return [TokenDelta(None, text, self._offset)] if text else []

    def _reason(self, finish: EngineFinish | None) -> FinishReason:
        return "length" if self._nothing_wanted and finish is EngineFinish.STOP else super()._reason(finish)

    def _echo(self, scores: list[Likelihoods | None]) -> Echo:
        """The prompt token by token, its control tokens by their names: joined, the text that was sent."""
        detokenizer = Detokenizer(self._tokenizer)
        tokens: list[TokenDelta] = []
        last = len(self.prompt) - 1
        for place, token in enumerate(self.prompt):
            text = detokenizer.push(token) + (detokenizer.flush() if place == last else "")
            scored = scores[place] if place < len(scores) else None
            tokens.append(TokenDelta(token, text, self._offset, scored))
            self._offset += len(text)
        return Echo(tuple(tokens))


def _likelihoods(scored: Scored, tokenizer: Tokenizer) -> Likelihoods:
    def likelihood(token: int, logprob: float) -> Likelihood:
        return Likelihood(token, tokenizer.token_bytes(token), logprob)

    return Likelihoods(likelihood(scored.token, scored.logprob), tuple(likelihood(*each) for each in scored.top))
