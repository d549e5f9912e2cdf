"""One answer as it grows: the engine's steps in, what its caller hears out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from baltoro.chat.messages import CallEnded, Delta, Finished, FinishReason, TextDelta, TokenDelta, ToolCall, Usage
from baltoro.chat.parser import IncompleteCall, Parser
from baltoro.chat.stops import StopStrings
from baltoro.chat.tokenizer import Detokenizer, Tokenizer
from baltoro.engine.request import FinishReason as EngineFinish
from baltoro.engine.request import Step
from baltoro.errors import BaltoroError, EngineError

Item = TypeVar("Item")  # Delta of a chat, TokenDelta | Finished of a completion


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


class Reader(ABC, Generic[Item]):
    """Belongs to the thread or the event loop that reads the answer."""

    def __init__(self, prompt: list[int], stop: Sequence[str]) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.over = False
        self._stops = StopStrings(stop)

    def read(self, step: Step) -> list[Item]:
        if step.finish is EngineFinish.ERROR:
            self.over = True
            if isinstance(step.error, BaltoroError):
                raise step.error
            raise EngineError(f"the engine failed: {step.error!r}")
        items: list[Item] = []
        if step.token is not None:
            self.tokens.append(step.token)
            items += self._push(step.token)
        if step.finish is not None and self._stops.found is None:
            items += self._flush()
        if step.finish is not None or self._stops.found is not None:
            self.over = True
            reason = "stop" if self._stops.found is not None else self._reason(step.finish)
            usage = Usage(
                prompt_tokens=len(self.prompt), completion_tokens=len(self.tokens), cached_tokens=step.cached_tokens
            )
            items.append(cast("Item", Finished(reason, usage)))
        return items

    def _reason(self, finish: EngineFinish | None) -> FinishReason:
        if finish is EngineFinish.LENGTH:
            return "length"
        return "cancelled" if finish is EngineFinish.CANCELLED else "stop"

    @abstractmethod
    def _push(self, token: int) -> list[Item]: ...

    @abstractmethod
    def _flush(self) -> list[Item]:
        """What was held back: nothing follows."""


class ChatReader(Reader[Delta]):
    def __init__(self, prompt: list[int], stop: Sequence[str], parser: Parser, tokenizer: Tokenizer) -> None:
        super().__init__(prompt, stop)
        self.parser = parser
        self._section_end = tokenizer.tool_calls_section_end
        self._num_calls = 0  # whole ones

    def _push(self, token: int) -> list[Delta]:
        return self._until_stop(self.parser.push(token))

    def _flush(self) -> list[Delta]:
        return self._until_stop(self.parser.finish()) + self._held()

    def _until_stop(self, deltas: Iterable[Delta]) -> list[Delta]:
        """Stop strings end the text that a person reads; in a call's arguments they are data."""
        told: list[Delta] = []
        for delta in deltas:
            if self._stops.found is not None:
                break
            if isinstance(delta, TextDelta):
                if text := self._stops.push(delta.text):
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


class CompletionReader(Reader[TokenDelta | Finished]):
    def __init__(self, prompt: list[int], stop: Sequence[str], tokenizer: Tokenizer) -> None:
        super().__init__(prompt, stop)
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._printed = {  # control tokens that are text for the reference's decoder too; the others are not
            tokenizer.tool_calls_section_begin,
            tokenizer.tool_calls_section_end,
            tokenizer.tool_call_begin,
            tokenizer.tool_call_argument_begin,
            tokenizer.tool_call_end,
        }

    def _push(self, token: int) -> list[TokenDelta | Finished]:
        if token < self._tokenizer.num_base or token in self._printed:
            text = self._detokenizer.push(token)
        else:
            text = self._detokenizer.flush()
        return [TokenDelta(token, self._stops.push(text))]

    def _flush(self) -> list[TokenDelta | Finished]:
        text = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        return [TokenDelta(None, text)] if text else []
