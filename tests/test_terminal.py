"""The terminal: what goes where, what Ctrl-C does, what is remembered."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from baltoro import terminal
from baltoro.chat.messages import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    ChatRequest,
    Delta,
    Finished,
    Message,
    TextDelta,
    Usage,
)
from baltoro.errors import ContextError

USAGE = Usage(prompt_tokens=1, completion_tokens=1)
CALL = [
    CallBegun(0, "functions.now:0", "now"),
    ArgumentsDelta(0, '{"zone": '),
    ArgumentsDelta(0, '"UTC"}'),
    CallEnded(0),
    Finished("tool_calls", USAGE),
]


class Turns:
    """An LLM that gives one prepared answer a turn; an exception among the deltas is raised."""

    def __init__(self, *turns: list[Delta | BaseException]) -> None:
        self.turns = list(turns)
        self.requests: list[ChatRequest] = []

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        self.requests.append(request)
        turn = self.turns.pop(0)
        if isinstance(turn[0], ContextError):
            raise turn[0]
        return self._play(turn)

    def _play(self, turn: list[Delta | BaseException]) -> Iterator[Delta]:
        for delta in turn:
            if isinstance(delta, BaseException):
                raise delta
            yield delta


def says(text: str) -> list[Delta | BaseException]:
    return [*(TextDelta(word) for word in text.split(" ")), Finished("stop", USAGE)]


class Keyboard:
    """Types the lines given; an exception among them is Ctrl-C or Ctrl-D."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


def converse(llm: Turns, keyboard: Keyboard, request: ChatRequest | None = None) -> None:
    terminal.converse(llm, request or ChatRequest(messages=()), keyboard)  # type: ignore[arg-type]
    assert keyboard.lines == []


def said(request: ChatRequest) -> list[tuple[str, object]]:
    return [(message.role, message.content) for message in request.messages]


def test_one_question_puts_the_answer_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    llm = Turns([TextDelta("Hel"), TextDelta("lo"), Finished("length", USAGE)])
    terminal.ask(llm, ChatRequest(messages=(Message(role="user", content="Hi"),)))  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert printed.out == "Hello\n"
    assert "cut" in printed.err


def test_a_call_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.ask(Turns([TextDelta("Looking"), *CALL]), ChatRequest(messages=()))  # type: ignore[arg-type]
    line = '{"id": "functions.now:0", "name": "now", "arguments": "{\\"zone\\": \\"UTC\\"}"}'
    assert capsys.readouterr().out == f"Looking\n{line}\n"


def test_a_call_that_is_never_whole_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.ask(Turns([*CALL[:2], Finished("length", USAGE)]), ChatRequest(messages=()))  # type: ignore[arg-type]
    assert "now" not in capsys.readouterr().out


def test_a_conversation_remembers_what_was_said() -> None:
    llm = Turns(says("Hello."), says("Ada."))
    system = Message(role="system", content="Be brief.")
    converse(llm, Keyboard("I am Ada", "", "Who am I?", EOFError), ChatRequest(messages=(system,)))
    assert said(llm.requests[1]) == [
        ("system", "Be brief."),
        ("user", "I am Ada"),
        ("assistant", "Hello."),
        ("user", "Who am I?"),
    ]


def test_reset_forgets_all_but_the_system_prompt() -> None:
    llm = Turns(says("Hello."), says("No."))
    system = Message(role="system", content="Be brief.")
    converse(llm, Keyboard("I am Ada", "/reset", "Who am I?", "/exit"), ChatRequest(messages=(system,)))
    assert said(llm.requests[1]) == [("system", "Be brief."), ("user", "Who am I?")]


def test_help_and_unknown_commands_ask_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    llm = Turns()
    converse(llm, Keyboard("/help", "/hlep", "/exit"))
    assert llm.requests == []
    printed = capsys.readouterr()
    assert "/reset" in printed.err
    assert "unknown command /hlep" in printed.err
    assert printed.out == ""


def test_a_line_that_ends_with_a_backslash_goes_on() -> None:
    llm = Turns(says("ok"))
    converse(llm, Keyboard("one\\", "two", EOFError))
    assert said(llm.requests[0]) == [("user", "one\ntwo")]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_heard() -> None:
    llm = Turns([TextDelta("Once upon"), KeyboardInterrupt()], says("ok"))
    converse(llm, Keyboard("Tell", "Go on", EOFError))
    assert said(llm.requests[1]) == [("user", "Tell"), ("assistant", "Once upon"), ("user", "Go on")]


def test_ctrl_c_before_a_word_forgets_the_question() -> None:
    llm = Turns([KeyboardInterrupt()], says("ok"))
    converse(llm, Keyboard("Tell", "Again", EOFError))
    assert said(llm.requests[1]) == [("user", "Again")]


def test_ctrl_c_twice_at_the_prompt_leaves_and_once_does_not() -> None:
    llm = Turns(says("ok"))
    converse(llm, Keyboard(KeyboardInterrupt, "Hi", KeyboardInterrupt, KeyboardInterrupt))
    assert len(llm.requests) == 1


def test_a_refused_request_is_explained_and_the_conversation_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    llm = Turns([ContextError("5000 tokens do not fit into 4096")], says("ok"))  # type: ignore[list-item]
    converse(llm, Keyboard("long", "short", EOFError))
    assert "do not fit" in capsys.readouterr().err
    assert said(llm.requests[1]) == [("user", "short")]


def test_the_person_gives_a_tool_s_result() -> None:
    llm = Turns(CALL, says("Noon."))
    keyboard = Keyboard("What time is it?", "12:00", EOFError)
    converse(llm, keyboard)
    assert "now returns> " in keyboard.prompts
    assistant, tool = llm.requests[1].messages[1:]
    assert assistant.tool_calls[0].arguments == '{"zone": "UTC"}'
    assert (tool.role, tool.content, tool.tool_call_id, tool.name) == ("tool", "12:00", "functions.now:0", "now")


def test_ctrl_c_at_a_result_forgets_the_exchange() -> None:
    llm = Turns(CALL, says("ok"))
    converse(llm, Keyboard("What time is it?", KeyboardInterrupt, "Hi", EOFError))
    assert said(llm.requests[1]) == [("user", "Hi")]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_model_cannot_drive_the_terminal_but_a_file_gets_its_bytes() -> None:
    text = "\x1b[2Jred\x9b31m\a tab\there\n👩\u200d🚀"
    for out, expected in [(Screen(), "�[2Jred�31m� tab\there\n👩\u200d🚀"), (io.StringIO(), text)]:
        terminal.print_answer(iter([TextDelta(text)]), out, terminal.Answer())
        assert out.getvalue() == expected + "\n"
