"""A ChatModel without a model, for tests of what stands above one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from typing import TypeVar

from baltoro import choices
from baltoro.answer import Admit, Answer
from baltoro.chat.call_ids import canonicalize
from baltoro.chat.compiler import Loosened
from baltoro.chat.messages import (
    CallEnded,
    ChatRequest,
    CompletionRequest,
    Delta,
    Finished,
    Json,
    Piece,
    PromptRead,
    TextDelta,
    TokenDelta,
    Usage,
)
from baltoro.chat.parser import TextParser, fold
from baltoro.chat.template import render
from baltoro.errors import EngineError

Item = TypeVar("Item")


class ScriptedLLM:
    """A ChatModel without a model, for tests of what stands above: each request takes the next answer of a script.

    An answer is text, in which K2's markers may be spelled out, or the deltas themselves; an exception among
    them is raised in their place. `requests` holds what was asked.
    """

    def __init__(
        self, answers: Iterable[str | Sequence[Delta | Exception]], *, name: str = "scripted", max_context: int = 4096
    ) -> None:
        self.name = name
        self.max_context = max_context
        self.requests: list[ChatRequest | CompletionRequest] = []
        self._answers = iter(answers)

    def unhealthy(self) -> str | None:
        return None

    def statistics(self) -> dict[str, Json]:
        """There is no engine."""
        return {"max_context": self.max_context, "engine": None, "store": None}

    def close(self) -> None:
        """Nothing to release."""

    def stream(self, request: ChatRequest) -> Generator[Delta]:
        return self._play(self._next(request))

    def astream(self, request: ChatRequest) -> AsyncGenerator[Delta]:
        return _asynchronous(self.stream(request))

    def astream_choices(self, request: ChatRequest, n: int, admit: Admit | None = None) -> list[AsyncGenerator[Delta]]:
        return _admitted([self.stream(each) for each in choices.split(request, n)], request.max_tokens, admit)

    def complete(self, request: ChatRequest) -> Answer:
        deltas = list(self.stream(request))
        last = deltas[-1]
        assert isinstance(last, Finished), "a script's deltas end with Finished"
        content, calls, incomplete = fold(deltas)
        return Answer(
            content=content,
            tool_calls=calls,
            incomplete=incomplete,
            reason=last.reason,
            usage=last.usage,
            prompt_ids=(),
            token_ids=(),
        )

    def stream_completion(self, request: CompletionRequest) -> Generator[Piece]:
        return self._play(
            [
                TokenDelta(token, delta.text) if isinstance(delta, TextDelta) else delta
                for token, delta in enumerate(self._next(request))
                if isinstance(delta, TextDelta | Finished | Exception)
            ]
        )

    def astream_completions(
        self, request: CompletionRequest, n: int, admit: Admit | None = None
    ) -> list[AsyncGenerator[Piece]]:
        pieces = [self.stream_completion(each) for each in choices.split(request, n)]
        return _admitted(pieces, request.max_tokens, admit)

    def loosened(self, request: ChatRequest) -> list[Loosened]:  # noqa: ARG002
        """Nothing is compiled."""
        return []

    def encode(self, text: str) -> list[int]:
        """One id a byte: a script has no vocabulary."""
        return list(text.encode())

    def count_tokens(self, request: ChatRequest) -> int:
        """One a byte."""
        messages, _ = canonicalize(request.messages)
        return len(self.encode(render(messages, request.tools).text))

    def _next(self, request: ChatRequest | CompletionRequest) -> Sequence[Delta | Exception]:
        self.requests.append(request)
        answer = next(self._answers, None)
        if answer is None:
            raise EngineError(f"the script has no answer to request {len(self.requests)}")
        deltas = _spoken(answer) if isinstance(answer, str) else answer
        if isinstance(request, ChatRequest) and request.tell_prompt:
            return [PromptRead(Usage(prompt_tokens=0, completion_tokens=0)), *deltas]
        return deltas

    def _play(self, items: Sequence[Item | Exception]) -> Generator[Item]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item


def _spoken(text: str) -> list[Delta]:
    """`text` as a model would say it, word by word."""
    parser = TextParser()
    words: list[str] = re.findall(r"\s*\S+|\s+", text)
    deltas = [delta for word in words for delta in parser.push(word)] + parser.finish()
    called = any(isinstance(delta, CallEnded) for delta in deltas)
    usage = Usage(prompt_tokens=0, completion_tokens=len(words))
    return [*deltas, Finished("tool_calls" if called else "stop", usage)]


class _Told:
    """The progress of an answer that passes: what its end says."""

    def __init__(self, max_tokens: int | None) -> None:
        self.max_tokens = max_tokens
        self.usage = Usage(prompt_tokens=0, completion_tokens=0)

    async def watch(self, items: AsyncGenerator[Item]) -> AsyncGenerator[Item]:
        async for item in items:
            if isinstance(item, Finished):
                self.usage = item.usage
            yield item


def _admitted(
    answers: list[Generator[Item]], max_tokens: int | None, admit: Admit | None
) -> list[AsyncGenerator[Item]]:
    told = [_Told(max_tokens) for _ in answers]
    if admit is not None:
        admit(told)
    return [each.watch(_asynchronous(answer)) for each, answer in zip(told, answers, strict=True)]


async def _asynchronous(items: Iterable[Item]) -> AsyncGenerator[Item]:
    for item in items:
        await asyncio.sleep(0)
        yield item
