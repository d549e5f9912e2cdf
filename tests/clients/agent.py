"""What the clients of this folder talk to: a script that calls a tool when it may, and tells the result at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping

from baltoro.answer import Admit
from baltoro.chat.call_ids import canonicalize
from baltoro.chat.messages import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    ChatRequest,
    Delta,
    Finished,
    Json,
    Message,
    TextDelta,
)
from tests.server.script import USAGE, Script


class Agent(Script):
    """Calls the first of `calls` that is offered, unless a result has come; then it says what the result was."""

    max_context = 262_144

    def __init__(self, calls: Mapping[str, Mapping[str, Json]]) -> None:
        super().__init__()
        self.calls = calls

    def astream_choices(self, request: ChatRequest, n: int, admit: Admit | None = None) -> list[AsyncGenerator[Delta]]:
        canonicalize(request.messages)  # a result that answers no call is refused, as a model's prompt refuses it
        self.deltas = self._next(request)
        return super().astream_choices(request, n, admit)

    def _next(self, request: ChatRequest) -> list[Delta]:
        results = [text(message) for message in request.messages if message.role == "tool"]
        if results:
            return [TextDelta("The tool "), TextDelta(f"said: {results[-1]}"), Finished("stop", USAGE)]
        offered = {tool.name for tool in request.tools}
        for name, arguments in self.calls.items():
            if name in offered:
                written = json.dumps(arguments)
                return [
                    TextDelta("Let me look."),
                    CallBegun(0, f"functions.{name}:0", name),
                    ArgumentsDelta(0, written[:5]),
                    ArgumentsDelta(0, written[5:]),
                    CallEnded(0),
                    Finished("tool_calls", USAGE),
                ]
        return [TextDelta("Hello."), Finished("stop", USAGE)]  # side requests: titles, topics


def text(message: Message) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
