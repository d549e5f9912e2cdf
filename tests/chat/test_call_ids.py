from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat.call_ids import canonicalize
from baltoro.chat.messages import Message, ToolCall
from baltoro.errors import RequestError


def calls(*ids_and_names: tuple[str, str]) -> Message:
    made = (ToolCall(id=client_id, name=name, arguments="{}") for client_id, name in ids_and_names)
    return Message(role="assistant", tool_calls=tuple(made))


def result(client_id: str | None, content: str = "x") -> Message:
    return Message(role="tool", tool_call_id=client_id, content=content)


USER = Message(role="user", content="go")


def ids(messages: list[Message]) -> list[str | None]:
    """Every id in order: of calls and of results."""
    of_messages = ([call.id for call in m.tool_calls] or [m.tool_call_id] for m in messages)
    return [one for several in of_messages for one in several if one]


def test_ids_of_any_client_are_numbered_over_the_whole_conversation() -> None:
    history = [
        USER,
        calls(("call_abc", "get_time"), ("toolu_01", "mcp__fs__read-file")),
        result("call_abc"),
        result("toolu_01"),
        calls(("functions.get_time:0", "get_time")),
        result("functions.get_time:0"),
    ]
    renamed, next_index = canonicalize(history)
    first, second, third = "functions.get_time:0", "functions.mcp__fs__read-file:1", "functions.get_time:2"
    assert ids(renamed) == [first, second, first, second, third, third]
    assert next_index == 3


def test_a_conversation_without_calls_is_unchanged() -> None:
    assert canonicalize([USER, Message(role="assistant", content="hi")]) == (
        [USER, Message(role="assistant", content="hi")],
        0,
    )
    assert canonicalize([]) == ([], 0)


def test_results_in_another_order_keep_their_calls() -> None:
    renamed, _ = canonicalize([calls(("a", "f"), ("b", "g")), result("b", "of g"), USER, result("a", "of f")])
    assert [(m.tool_call_id, m.content) for m in renamed if m.role == "tool"] == [
        ("functions.g:1", "of g"),
        ("functions.f:0", "of f"),
    ]


def test_a_call_without_a_result_counts() -> None:
    renamed, next_index = canonicalize([calls(("a", "f")), USER, calls(("b", "f")), result("b")])
    assert ids(renamed) == ["functions.f:0", "functions.f:1", "functions.f:1"]
    assert next_index == 2


def test_an_id_used_again_belongs_to_the_nearest_call_before() -> None:
    """Engines that count from 0 in every turn, and clients that number by position."""
    renamed, _ = canonicalize([calls(("0", "f")), result("0"), calls(("0", "g")), result("0"), result("0")])
    assert ids(renamed) == ["functions.f:0", "functions.f:0", "functions.g:1", "functions.g:1", "functions.g:1"]


def test_an_id_used_twice_in_one_turn_is_answered_in_turn() -> None:
    turn = calls(("functions.f:0", "f"), ("functions.f:0", "f"))
    renamed, _ = canonicalize([turn, result("functions.f:0", "first"), result("functions.f:0", "second")])
    assert [(m.tool_call_id, m.content) for m in renamed[1:]] == [
        ("functions.f:0", "first"),
        ("functions.f:1", "second"),
    ]


@pytest.mark.parametrize("client_id", ["unknown", "", None])
@pytest.mark.parametrize("before", [[USER], [USER, calls(("a", "f"))]], ids=["no call", "another call"])
def test_a_result_of_no_call_is_refused(before: list[Message], client_id: str | None) -> None:
    with pytest.raises(RequestError, match="expected the id of a call before it") as refusal:
        canonicalize([*before, result(client_id), calls(("unknown", "f"))])
    assert refusal.value.param == f"messages[{len(before)}].tool_call_id"


TURNS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), max_size=5)


@given(TURNS, st.data())
@settings(max_examples=100, deadline=None)
def test_results_follow_their_calls_through_any_history(turns: list[list[str]], data: st.DataObject) -> None:
    """Content remembers which call it answers: names are unique, so ids must name them after renumbering."""
    history: list[Message] = []
    for number, client_ids in enumerate(turns):
        history.append(calls(*((one, f"t{number}{one}") for one in client_ids)))
        answered = data.draw(st.permutations(sorted(set(client_ids))))
        history += [result(one, f"t{number}{one}") for one in answered]
    before = list(history)
    renamed, next_index = canonicalize(history)
    assert history == before
    assert [call.id for m in renamed for call in m.tool_calls] == [
        f"functions.{call.name}:{i}" for i, call in enumerate(c for m in history for c in m.tool_calls)
    ]
    assert all(f"functions.{m.content}:" in str(m.tool_call_id) for m in renamed if m.role == "tool")
    assert canonicalize(renamed) == (renamed, next_index)
