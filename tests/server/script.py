"""An LLM that plays what a test wrote down."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from baltoro.answer import Admit
from baltoro.chat.compiler import Loosened
from baltoro.chat.messages import ChatRequest, CompletionRequest, Delta, Finished, Piece, PromptRead, TextDelta, Usage
from baltoro.chat.template import render
from baltoro.errors import ContextError

USAGE = Usage(prompt_tokens=11, completion_tokens=4, cached_tokens=2)
HELLO = [TextDelta("Hel"), TextDelta("lo"), Finished("stop", USAGE)]


class Told:
    """The progress of one answer: the prompt is USAGE's, every item said is a token."""

    def __init__(self, max_tokens: int | None) -> None:
        self.max_tokens = max_tokens
        self.said = 0

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=USAGE.prompt_tokens, completion_tokens=self.said, cached_tokens=USAGE.cached_tokens)


class Script:
    """An LLM that says `deltas`; an exception among them is raised, a number is a pause in seconds."""

    max_context = 4096

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.deltas: Sequence[Any] = HELLO  # Deltas or TokenDeltas, exceptions, seconds
        self.refusal: Exception | None = None
        self.fault: str | None = None
        self.loose: list[Loosened] = []
        self.requests: list[ChatRequest] = []
        self.completions: list[CompletionRequest] = []
        self.begun = threading.Event()
        self.closed = threading.Event()
        self.closings: list[int] = []  # a new list for each test: an answer of the one before may end late

    def unhealthy(self) -> str | None:
        return self.fault

    def statistics(self) -> dict[str, Any]:
        return {"max_context": self.max_context, "engine": {"steps": len(self.requests)}, "store": None}

    def loosened(self, request: ChatRequest) -> list[Loosened]:
        return self.loose

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def astream_completions(
        self, request: CompletionRequest, n: int, admit: Admit | None = None
    ) -> list[AsyncGenerator[Piece]]:
        """One token an item of `deltas`; a prompt that starts with 0 is too long."""
        if list(request.prompt)[:1] == [0]:
            raise ContextError("too long", param="prompt", code="context_length_exceeded")
        told = self._admitted(request.max_tokens, n, admit)
        self.completions.append(request)
        return [self._play(each) for each in told]

    def astream_choices(self, request: ChatRequest, n: int, admit: Admit | None = None) -> list[AsyncGenerator[Delta]]:
        told = self._admitted(request.max_tokens, n, admit)
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        first = [PromptRead(replace(USAGE, completion_tokens=0))] if request.tell_prompt else []
        return [self._play(each, first) for each in told]

    def count_tokens(self, request: ChatRequest) -> int:
        return len(render(request.messages, request.tools).text)

    def _admitted(self, max_tokens: int | None, n: int, admit: Admit | None) -> list[Told]:
        told = [Told(max_tokens) for _ in range(n)]
        if admit is not None:
            admit(told)
        return told

    def astream(self, request: ChatRequest) -> AsyncGenerator[Delta]:
        return self.astream_choices(request, 1)[0]

    async def _play(self, told: Told, first: Sequence[Any] = ()) -> AsyncGenerator[Any]:
        begun, closed, closings, deltas = self.begun, self.closed, self.closings, [*first, *self.deltas]
        try:
            for delta in deltas:
                begun.set()
                if isinstance(delta, Exception):
                    raise delta
                if isinstance(delta, float):
                    await asyncio.sleep(delta)
                else:
                    told.said += not isinstance(delta, Finished | PromptRead)
                    yield delta
        finally:
            closings.append(1)
            closed.set()

    def all_closed(self, count: int) -> bool:
        """Whether `count` answers are over, within twenty seconds."""
        deadline = time.monotonic() + 20
        while len(self.closings) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(self.closings) == count
        return True
