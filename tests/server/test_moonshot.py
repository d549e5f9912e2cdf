"""Moonshot's own fields and paths, through OpenAI's client, as its documentation shows them."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from baltoro.chat.messages import Message
from baltoro.chat.template import render
from tests.server.conftest import Address
from tests.server.script import Script

HI: list[Any] = [{"role": "user", "content": "Hi"}]
COUNT = "/v1/tokenizers/estimate-token-count"


def test_partial_mode_reaches_the_model_with_its_name(server: Address, script: Script) -> None:
    opened: Any = {"role": "assistant", "name": "Kelsey", "content": "", "partial": True}
    server.openai.chat.completions.create(model="tiny", messages=[*HI, opened])
    assert script.requests[0].messages[-1] == Message(role="assistant", name="Kelsey", content="", partial=True)
    server.openai.chat.completions.create(model="tiny", messages=[*HI, {**opened, "partial": False}, *HI])
    assert not any(message.partial for message in script.requests[1].messages)


def test_thinking_can_be_disabled_and_thoughts_of_other_models_are_dropped(server: Address, script: Script) -> None:
    thought: Any = {"role": "assistant", "content": "Hello", "reasoning_content": "They greet me."}
    off: Any = {"thinking": {"type": "disabled", "keep": "all"}}
    server.openai.chat.completions.create(model="tiny", messages=[*HI, thought, *HI], extra_body=off)
    assert script.requests[0].messages[1] == Message(role="assistant", content="Hello")
    with pytest.raises(openai.BadRequestError, match=r"thinking\.type is \"enabled\""):
        server.openai.chat.completions.create(model="tiny", messages=HI, extra_body={"thinking": {"type": "enabled"}})


def test_max_completion_tokens_is_a_bound_up_to_the_context_and_max_tokens_is_not(
    server: Address, script: Script
) -> None:
    """kimi-code sends the size of its model's context as max_completion_tokens."""
    for name, clipped in (("max_completion_tokens", True), ("max_tokens", False)):
        wishes: Any = {name: script.max_context}
        server.openai.chat.completions.create(model="tiny", messages=HI, **wishes)
        request = script.requests[-1]
        assert (request.max_tokens, request.clip_max_tokens) == (script.max_context, clipped)
    with pytest.raises(openai.BadRequestError, match="expected at most the context, 4096") as refused:
        server.openai.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=4097)
    assert refused.value.param == "max_completion_tokens"


def test_a_conversation_s_tokens_are_counted(server: Address, script: Script) -> None:
    """The script counts characters of the prompt."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    response = server.http.post(COUNT, json={"model": "tiny", "messages": HI, "tools": [tool]})
    assert script.requests == []
    server.openai.chat.completions.create(model="tiny", messages=HI, tools=[tool])  # type: ignore[list-item]
    request = script.requests[0]
    assert response.json() == {"data": {"total_tokens": len(render(request.messages, request.tools).text)}}
    assert server.http.post(COUNT, json={"model": "gpt", "messages": HI}).status_code == 404
    assert server.http.post(COUNT, json={"model": "tiny", "messages": []}).json()["error"]["param"] == "messages"


def test_tools_that_run_at_moonshot_are_refused_by_name(server: Address, script: Script) -> None:
    """`$web_search` too, where no search was configured; then it is told how."""
    for name, words in [("$calculator", "nothing in its place"), ("$web_search", "--web-search MODULE:FUNCTION")]:
        tools: Any = [{"type": "builtin_function", "function": {"name": name}}]
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            server.openai.chat.completions.create(model="tiny", messages=HI, tools=tools)
        assert (refused.value.param, refused.value.code) == ("tools[0]", "unsupported_value")
        assert f"'{name}'" in refused.value.message
        counted = server.http.post(COUNT, json={"model": "tiny", "messages": HI, "tools": tools})
        assert counted.json()["error"]["param"] == "tools[0]"
    assert script.requests == []


def test_without_a_search_arguments_that_come_back_are_what_the_model_reads(server: Address, script: Script) -> None:
    call = {"id": "x", "type": "builtin_function", "function": {"name": "$web_search", "arguments": '{"query": "a"}'}}
    told: Any = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": '{"query": "a"}'},
    ]
    server.openai.chat.completions.create(model="tiny", messages=[*HI, *told])
    assert script.requests[0].messages[-1].content == '{"query": "a"}'
