"""Talking to a model in a terminal: one question and its answer, or a conversation.

The answer goes to stdout as it comes, everything else to stderr or in dim print, so that
`baltoro chat nano "..." > answer.txt` holds the answer alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TextIO

from baltoro.chat.messages import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    ChatRequest,
    Delta,
    Finished,
    FinishReason,
    Likelihoods,
    Message,
    PromptRead,
    TextDelta,
    ToolCall,
)
from baltoro.errors import RequestError

if TYPE_CHECKING:
    from baltoro.llm import LLM

HELP = """\
/reset   forget the conversation
/exit    leave (Ctrl-D too)
Ctrl-C   stop the answer; at the prompt, twice: leave
A line that ends with \\ goes on in the next."""

# A model must not move the cursor or rename the window.
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    """A model's text without what a terminal would obey."""
    return text.translate(_CONTROLS)


@dataclass(slots=True)
class Answer:
    """What was said until now; `reason` None: it was stopped on the way."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    reason: FinishReason | None = None

    @property
    def message(self) -> Message:
        return Message(role="assistant", content=self.text, tool_calls=tuple(self.calls))


def print_answer(deltas: Iterator[Delta], out: TextIO, answer: Answer) -> None:
    """Write text as it comes, and each whole call as one line of JSON; fill `answer` on the way."""
    begun: dict[int, CallBegun] = {}
    arguments: dict[int, str] = {}
    for delta in deltas:
        match delta:
            case TextDelta():
                answer.text += delta.text
                _write(delta.text, out)
            case CallBegun():
                begun[delta.index], arguments[delta.index] = delta, ""
            case ArgumentsDelta():
                arguments[delta.index] += delta.text
            case CallEnded():
                call = begun[delta.index]
                answer.calls.append(ToolCall(id=call.id, name=call.name, arguments=arguments[delta.index]))
                start = "\n" if answer.text and not answer.text.endswith("\n") and len(answer.calls) == 1 else ""
                line = {"id": call.id, "name": call.name, "arguments": arguments[delta.index]}
                _write(f"{start}{json.dumps(line, ensure_ascii=False)}\n", out)
            case Finished():
                answer.reason = delta.reason
            case PromptRead() | Likelihoods():  # nobody asks for them here
                pass
    if answer.text and not answer.text.endswith("\n") and not answer.calls:
        _write("\n", out)


def _write(text: str, out: TextIO) -> None:
    out.write(printable(text) if out.isatty() else text)
    out.flush()


def ask(llm: LLM, request: ChatRequest) -> Answer:
    """One question, its answer on stdout."""
    answer = Answer()
    print_answer(llm.stream(request), sys.stdout, answer)
    if answer.reason == "length":
        _talk("(cut: max_tokens or the context is used up)")
    return answer


def _talk(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\x1b[2m{text}\x1b[0m\n" if sys.stderr.isatty() else f"{text}\n")
    sys.stderr.flush()


def converse(llm: LLM, request: ChatRequest, read: Callable[[str], str] = input) -> None:
    """A conversation that starts with `request.messages` and goes on until /exit or the end of the input."""
    history = list(request.messages)
    leaving = False  # the last thing was Ctrl-C at the prompt
    while True:
        try:
            line = _read_lines(read)
        except EOFError:
            _talk("")
            return
        except KeyboardInterrupt:
            if leaving:
                _talk("")
                return
            leaving = True
            _talk("\n(Ctrl-C again or /exit leaves)")
            continue
        leaving = False
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                history = list(request.messages)
                _talk("(a new conversation)")
            case "/help":
                _talk(HELP)
            case command if command.startswith("/") and " " not in command:
                _talk(f"unknown command {command}; /help lists them")
            case text:
                _turn(llm, request, history, text, read)


def _read_lines(read: Callable[[str], str]) -> str:
    line = read("> ")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{read('. ')}"
    return line


def _turn(llm: LLM, request: ChatRequest, history: list[Message], text: str, read: Callable[[str], str]) -> None:
    """One exchange: the answer, and while it calls tools, their results from the person at the keyboard.

    `history` grows by what was said, or by nothing where the request was refused or stopped before a word came.
    """
    before = len(history)
    history.append(Message(role="user", content=text))
    while True:
        answer = Answer()
        try:
            with closing(llm.stream(replace(request, messages=tuple(history)))) as deltas:
                print_answer(deltas, sys.stdout, answer)
        except KeyboardInterrupt:
            _talk("\n(stopped)")
            answer.calls.clear()
        except RequestError as error:
            _talk(str(error) + "\n/reset starts anew")
        if answer.reason is None and not answer.text:
            del history[before:]
            return
        history.append(answer.message)
        if not answer.calls:
            if answer.reason == "length":
                _talk("(cut: max_tokens or the context is used up)")
            return
        try:
            for call in answer.calls:
                result = read(f"{call.name} returns> ")
                history.append(Message(role="tool", content=result, tool_call_id=call.id, name=call.name))
        except (KeyboardInterrupt, EOFError):
            _talk("\n(the calls stay unanswered; this exchange is forgotten)")
            del history[before:]
            return
