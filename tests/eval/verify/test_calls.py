"""Streams put together, and which calls are valid."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.eval.endpoint import Reply
from baltoro.eval.verify.calls import is_valid, whole

EMPTY = {"type": "function", "function": {"name": "e", "parameters": {}}}
NONE = {"type": "function", "function": {"name": "n"}}
REMOTE = {"type": "function", "function": {"name": "r", "parameters": {"$ref": "http://127.0.0.1:9/schema.json"}}}
BROKEN = {"type": "function", "function": {"name": "b", "parameters": {"type": "no such type"}}}
PLAIN = {"type": "function", "function": {"name": "p", "parameters": {"type": "object", "required": ["a"]}}}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "x", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("made", "good"),
    [
        (call("p", '{"a": 1}'), True),
        (call("p", {"a": 1}), True),
        (call("p", "{}"), False),
        (call("p", ""), False),
        (call("p", None), False),
        (call("q", '{"a": 1}'), False),
        (call("e", "{}"), False),
        (call("n", "{}"), False),
        (call("r", "{}"), False),
        (call("b", "{}"), False),
        ({"id": "x"}, False),
    ],
)
def test_a_call_is_valid_as_the_vendor_verifier_judges(made: dict[str, Any], good: bool) -> None:
    assert is_valid(made, [PLAIN, EMPTY, NONE, REMOTE, BROKEN]) is good


@given(text=st.text(), made=st.lists(st.tuples(st.text(min_size=1), st.text()), max_size=3), data=st.data())
def test_a_stream_is_its_answer_however_it_was_cut(text: str, made: list[tuple[str, str]], data: st.DataObject) -> None:
    def pieces(whole_text: str) -> list[str]:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole_text)), max_size=4)))
        return [whole_text[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole_text)], strict=True)]

    def event(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "c", "created": 5, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    events = [event({"content": piece}) for piece in pieces(text)]
    for index, (name, arguments) in enumerate(made):
        begun = {"index": index, "id": f"id{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        events.append(event({"tool_calls": [begun]}))
        events += [event({"tool_calls": [{"index": index, "function": {"arguments": p}}]}) for p in pieces(arguments)]
    events += [event({}, "tool_calls" if made else "stop"), {"choices": [], "usage": {"prompt_tokens": 3}}]
    found = whole(Reply(200, events, "", 0.0), "kimi")
    message = found["choices"][0]["message"]
    assert message["content"] == text
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"] or []] == made
    assert [c["id"] for c in message["tool_calls"] or []] == [f"id{i}" for i in range(len(made))]
    assert found["choices"][0]["finish_reason"] == ("tool_calls" if made else "stop")
    assert found["usage"] == {"prompt_tokens": 3}
