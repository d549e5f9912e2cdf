"""Anthropic's dialect, heard by Anthropic's own client and its types."""

from __future__ import annotations

import asyncio
import json
import re
import typing
from typing import Any

import anthropic
import pytest
from anthropic.types import Message as WireMessage
from anthropic.types import ModelInfo, message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baltoro.chat.call_ids import canonicalize
from baltoro.chat.compiler import Loosened
from baltoro.chat.messages import (
    AnswerFormat,
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    Finished,
    Message,
    TextDelta,
    ToolChoice,
)
from baltoro.chat.template import render
from baltoro.errors import ContextError, EngineError, QueueFull
from baltoro.server import loosened
from baltoro.server.anthropic import MessagesBody, PromptBody
from baltoro.server.body import MAX_BODY_BYTES
from tests.server.conftest import Address
from tests.server.script import USAGE, Script
from tests.server.test_app import VALUES, open_request

PATH = "/v1/messages"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
GOOD: dict[str, Any] = {"model": "tiny", "max_tokens": 50, "messages": HI}
SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
WEATHER: Any = {"name": "get_weather", "description": "Weather of a city", "input_schema": SCHEMA}
TWO_CALLS = [
    TextDelta("Let me "),
    TextDelta("look."),
    CallBegun(0, "functions.get_weather:0", "get_weather"),
    ArgumentsDelta(0, '{"city": '),
    ArgumentsDelta(0, '"Beijing"}'),
    CallEnded(0),
    CallBegun(1, "functions.get_weather:1", "get_weather"),
    ArgumentsDelta(1, '{"city": "München 🥨\u2028\x85"}'),
    CallEnded(1),
    Finished("tool_calls", USAGE),
]


def asked(server: Address, script: Script, **body: Any) -> Any:
    """The ChatRequest that a body becomes."""
    response = server.http.post(PATH, json={**GOOD, **body})
    assert response.status_code == 200, response.text
    return script.requests[-1]


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


# ------------------------------------------------------------------------------------------------- answers


def test_a_plain_answer_has_text_reason_usage_and_a_request_id(server: Address, script: Script) -> None:
    message = server.anthropic.messages.create(**GOOD)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello"}]
    assert (message.role, message.model, message.stop_reason) == ("assistant", "tiny", "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (9, 4)
    assert (message.usage.cache_read_input_tokens, message.usage.cache_creation_input_tokens) == (2, 0)
    assert message.id.startswith("msg_")
    assert message._request_id and message._request_id.startswith("req_")


@pytest.mark.parametrize("deltas", [TWO_CALLS, TWO_CALLS[2:], [Finished("stop", USAGE)]])
def test_a_folded_stream_is_the_plain_answer(server: Address, script: Script, deltas: list[Any]) -> None:
    script.deltas = deltas
    plain = server.anthropic.messages.create(**GOOD).to_dict(exclude_unset=False)
    WireMessage.model_validate(plain, strict=True)
    with server.anthropic.messages.stream(**GOOD) as stream:
        streamed = stream.get_final_message().to_dict(exclude_unset=False, warnings=False)
    for message in (plain, streamed):
        del message["id"]
        for block in message["content"]:
            block.pop("id", None)
            block.pop("parsed_output", None)
    assert streamed == plain


def test_the_asynchronous_client_streams_too(server: Address, script: Script) -> None:
    async def read() -> str:
        client = anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
        async with client, client.messages.stream(**GOOD) as stream:
            return "".join([piece async for piece in stream.text_stream])

    assert asyncio.run(read()) == "Hello"


def test_the_tool_loop_ends_in_k2_s_own_ids(server: Address, script: Script) -> None:
    """The answer's own blocks go back into the history, as every client does it."""
    script.deltas = TWO_CALLS
    answer = server.anthropic.messages.create(**GOOD, tools=[WEATHER])
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [{"city": "Beijing"}, {"city": "München 🥨\u2028\x85"}]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", call.id) for call in calls)
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"{call.input['city']}: sunny"}
        for call in reversed(calls)
    ]
    history = [*HI, {"role": "assistant", "content": answer.content}, user(*results, text("And now?"))]
    script.deltas = [TextDelta("Sunny."), Finished("stop", USAGE)]
    server.anthropic.messages.create(**{**GOOD, "messages": history}, tools=[WEATHER])
    request = script.requests[-1]
    messages, next_index = canonicalize(request.messages)
    assert next_index == 2
    prompt = render(messages, request.tools).text
    assert '<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Beijing"}' in prompt
    munich, beijing, now = (
        prompt.index(part)
        for part in (
            "## Return of functions.get_weather:1\nMünchen",
            "## Return of functions.get_weather:0\nBeijing",
            "And now?",
        )
    )
    assert munich < beijing < now
    assert "toolu" not in prompt
    function = {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA}
    assert request.tools[0].declaration == {"type": "function", "function": function}


def test_a_stop_sequence_is_told(server: Address, script: Script) -> None:
    script.deltas = [TextDelta("One"), Finished("stop", USAGE, "\n")]
    message = server.anthropic.messages.create(**GOOD, stop_sequences=["\n", "##"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "\n")
    assert script.requests[0].stop == ("\n", "##")


def test_an_error_in_a_stream_is_an_event_that_anthropic_s_client_raises(server: Address, script: Script) -> None:
    script.deltas = [TextDelta("Hel"), EngineError("the engine has stopped")]
    with server.anthropic.messages.stream(**GOOD) as stream:
        pieces = stream.text_stream
        assert next(pieces) == "Hel"
        with pytest.raises(anthropic.APIError, match="the engine has stopped"):
            next(pieces)
    raw = server.http.post(PATH, json={**GOOD, "stream": True})
    last = json.loads(raw.text.rpartition("event: error\ndata: ")[2])
    assert last["error"] == {"type": "api_error", "message": "the engine has stopped"}
    assert last["request_id"] == raw.headers["request-id"]
    assert "message_stop" not in raw.text


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_client_that_leaves_cancels_its_request(server: Address, script: Script, stream: bool) -> None:
    script.deltas = [60.0]
    connection = open_request(server, {**GOOD, "stream": stream}, PATH)
    assert script.begun.wait(10)
    connection.close()
    assert script.closed.wait(20)


# ---------------------------------------------------------------------------------------------------- bodies


def test_the_system_prompt_is_text_or_blocks_and_may_come_again_later(server: Address, script: Script) -> None:
    later = {"role": "system", "content": "The date has changed."}
    request = asked(
        server, script, system=[text("Be "), text("brief.", cache_control={"type": "ephemeral"})], messages=[*HI, later]
    )
    assert request.messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hi"),
        Message(role="system", content="The date has changed."),
    )
    assert asked(server, script, system="Be brief.").messages[0] == Message(role="system", content="Be brief.")


@pytest.mark.parametrize(
    ("system", "left"),
    [
        ("x-anthropic-billing-header: cc_version=2.1; cch=12345;\nYou are kind.", "You are kind."),
        ("x-anthropic-billing-header: cch=1;\nx-anthropic-trace: 7\n\nYou are kind.", "You are kind."),
        ([text("x-anthropic-billing-header: cch=99;"), text("You are kind.")], "You are kind."),
        (
            "You are kind.\nx-anthropic-billing-header: is a header",
            "You are kind.\nx-anthropic-billing-header: is a header",
        ),
    ],
)
def test_billing_headers_do_not_reach_the_prompt(server: Address, script: Script, system: Any, left: str) -> None:
    assert asked(server, script, system=system).messages[0].content == left


def test_a_system_prompt_of_nothing_but_headers_is_none(server: Address, script: Script) -> None:
    assert [m.role for m in asked(server, script, system="x-anthropic-billing-header: cch=1;").messages] == ["user"]


CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}]}


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({}, ""),
        ({"content": "22 °C"}, "22 °C"),
        ({"content": [text("22 "), text("°C")]}, "22 °C"),
        ({"content": "no such city", "is_error": True}, "Error: no such city"),
        ({"content": "Error: no such city", "is_error": True}, "Error: no such city"),
        ({"content": "<tool_use_error>No</tool_use_error>", "is_error": True}, "<tool_use_error>No</tool_use_error>"),
        ({"content": "fine", "is_error": False, "cache_control": {"type": "ephemeral", "ttl": "1h"}}, "fine"),
    ],
)
def test_a_tool_s_result_is_text_or_blocks_and_says_when_it_failed(
    server: Address, script: Script, result: dict[str, Any], told: str
) -> None:
    history = [*HI, CALL, user({"type": "tool_result", "tool_use_id": "toolu_1", **result})]
    assert asked(server, script, messages=history).messages[-1] == Message(
        role="tool", tool_call_id="toolu_1", content=told
    )


def test_text_and_results_of_one_message_keep_their_order(server: Address, script: Script) -> None:
    calls = [{"type": "tool_use", "id": f"toolu_{i}", "name": "f", "input": {}} for i in range(2)]
    results = [{"type": "tool_result", "tool_use_id": f"toolu_{i}", "content": str(i)} for i in range(2)]
    history = [*HI, {"role": "assistant", "content": calls}, user(text("A"), results[1], results[0], text("B"))]
    said = [(m.role, m.content, m.tool_call_id) for m in asked(server, script, messages=history).messages[2:]]
    assert said == [("user", "A", None), ("tool", "1", "toolu_1"), ("tool", "0", "toolu_0"), ("user", "B", None)]


def test_thinking_in_the_history_is_dropped(server: Address, script: Script) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    history = [
        *HI,
        {"role": "assistant", "content": [thought, text("Yes?")]},
        *HI,
        {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "x"}]},
        *HI,
    ]
    said = [(m.role, m.content) for m in asked(server, script, messages=history).messages]
    assert said == [("user", "Hi"), ("assistant", "Yes?"), ("user", "Hi"), ("user", "Hi")]


def test_a_last_message_of_the_assistant_is_continued(server: Address, script: Script) -> None:
    request = asked(server, script, messages=[*HI, {"role": "assistant", "content": "My name is"}])
    assert request.messages[-1] == Message(role="assistant", content="My name is", partial=True)
    assert not any(
        m.partial for m in asked(server, script, messages=[*HI, {"role": "assistant", "content": "A"}, *HI]).messages
    )


@pytest.mark.parametrize(
    ("choice", "understood", "parallel"),
    [
        ({"type": "auto"}, ToolChoice(), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(), False),
        ({"type": "any"}, ToolChoice(mode="required"), True),
        ({"type": "tool", "name": "get_weather"}, ToolChoice(mode="named", name="get_weather"), True),
        ({"type": "none"}, ToolChoice(mode="none"), True),
        (None, ToolChoice(), True),
    ],
)
def test_every_tool_choice_reaches_the_model(
    server: Address, script: Script, choice: Any, understood: ToolChoice, parallel: bool
) -> None:
    request = asked(server, script, tools=[WEATHER], tool_choice=choice)
    assert (request.tool_choice, request.parallel_tool_calls) == (understood, parallel)


def test_sampling_reaches_the_model_and_temperature_is_moonshot_s_mapping(server: Address, script: Script) -> None:
    request = asked(server, script, temperature=0.5, top_p=0.9, top_k=5)
    assert (request.temperature, request.top_p, request.top_k) == (pytest.approx(0.3), 0.9, 5)
    assert (request.max_tokens, request.clip_max_tokens) == (50, True)
    assert asked(server, script).temperature == asked(server, script, temperature=1).temperature == 0.6
    assert asked(server, script, temperature=0).temperature == 0


def test_what_claude_code_sends_is_served(server: Address, script: Script) -> None:
    """The fields, headers and block forms of a recorded first turn of Claude Code 2.1."""
    ephemeral = {"type": "ephemeral"}
    body = {
        "model": "tiny",
        "messages": [
            user(
                text("<system-reminder>\nToday is Saturday.\n</system-reminder>\n"), text("Hi", cache_control=ephemeral)
            ),
            {"role": "system", "content": "Available agents: general"},
        ],
        "system": [
            text("x-anthropic-billing-header: cc_version=2.1.197.c40; cc_entrypoint=sdk-cli;"),
            text("You are a Claude agent.", cache_control=ephemeral),
            text("\nYou are interactive.", cache_control=ephemeral),
        ],
        "tools": [
            {
                "name": "Bash",
                "description": "Run",
                "input_schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMA},
            }
        ],
        "metadata": {"user_id": '{"device_id":"d"}'},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }
    assert server.http.head("/").status_code == 200
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,no-such-beta-2030-01-01"}
    response = server.http.post(f"{PATH}?beta=true", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.text.rstrip().endswith('{"type": "message_stop"}')
    request = script.requests[0]
    assert request.messages[0].content == "You are a Claude agent.\nYou are interactive."
    assert [message.role for message in request.messages] == ["system", "user", "system"]


def test_a_format_is_the_schema_of_the_answer(server: Address, script: Script) -> None:
    output_config: Any = {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}
    wanted = asked(server, script, output_config=output_config).answer_format
    assert wanted == AnswerFormat(schema=SCHEMA, name="output_config.format", param="output_config.format")
    assert asked(server, script, output_config={"effort": "low"}).answer_format is None


def test_what_a_loose_server_does_not_enforce_is_told(server: Address, script: Script) -> None:
    script.loose = [Loosened("get_weather", "/properties/a b/not"), Loosened("output_config.format", "/pattern")]
    output_config: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    for stream in (False, True):
        body = {**GOOD, "stream": stream, "tools": [WEATHER], "output_config": output_config}
        told = server.http.post(PATH, json=body).headers[loosened.HEADER]
        assert told == "get_weather /properties/a%20b/not, output_config.format /pattern"
    assert loosened.HEADER not in server.http.post(PATH, json=GOOD).headers  # nothing has a schema
    request = asked(server, script, tools=[{**WEATHER, "strict": True}, {**WEATHER, "name": "g"}])
    assert [tool.strict for tool in request.tools] == [True, False]


def test_tokens_are_counted_without_an_answer(server: Address, script: Script) -> None:
    """The script counts characters of the prompt."""
    counted = server.anthropic.messages.count_tokens(model="tiny", messages=HI, system="Be brief.", tools=[WEATHER])
    assert script.requests == []
    request = asked(server, script, system="Be brief.", tools=[WEATHER])
    assert counted.input_tokens == len(render(request.messages, request.tools).text)


def test_every_field_of_anthropic_s_api_is_known_here() -> None:
    """Honoured, or refused by name: never called unknown. `betas` is a header."""
    for params in (message_create_params, beta_message_create_params):
        fields = set(typing.get_type_hints(params.MessageCreateParamsStreaming)) - {"betas"}
        assert fields <= set(MessagesBody.model_fields)
    counted = set(typing.get_type_hints(message_count_tokens_params.MessageCountTokensParams))
    assert counted <= set(PromptBody.model_fields)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}}
REFUSED = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens is 0"),
    ({"temperature": 1.5}, "temperature is 1.5: expected less than or equal to 1"),
    ({"messages": []}, "messages is []"),
    ({"messages": [user()]}, "messages[0].content is empty"),
    ({"messages": [user(IMAGE)]}, "'image' blocks are not supported"),
    ({"messages": [user(DOCUMENT)]}, "'document' blocks are not supported"),
    ({"messages": [user({"type": "hologram"})]}, "'hologram' blocks are not supported"),
    ({"messages": [user("Hi")]}, "messages[0].content[0]"),
    ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text is required"),
    ({"messages": [user({"type": "text", "text": "x", "txt": 1})]}, "messages[0].content[0].txt"),
    ({"messages": [user(CALL["content"][0])]}, "a 'tool_use' block, which a user message cannot have"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [*HI, CALL]}, "expected its tool_result"),
    ({"messages": [*HI, {"role": "assistant", "content": "I am "}]}, "ends in white space"),
    ({"messages": [{"role": "system", "content": [IMAGE]}]}, "'image' blocks"),
    (
        {"messages": [*HI, CALL, user({"type": "tool_result", "tool_use_id": "toolu_1", "content": [IMAGE]})]},
        "messages[2].content[0].content[0]",
    ),
    (
        {"messages": [*HI, CALL, user(text("x"), {"type": "tool_result", "tool_use_id": "toolu_2"})]},
        "messages[2].content[1].tool_use_id is 'toolu_2'",
    ),
    ({"system": [IMAGE]}, "'image' blocks"),
    (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "'web_search_20250305' is a tool of Anthropic's",
    ),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124'"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "a"}]}, "tools[0].input_schema is required"),
    ({"tools": [WEATHER, WEATHER]}, "a second time"),
    ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tool_choice": {"type": "any"}}, "no tools are declared"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name is 'f'"),
    ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
    ({"tools": [WEATHER], "tool_choice": {"type": "any", "name": "get_weather"}}, "expected type 'tool'"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 1024}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 'thinking.type is "enabled"'),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
    ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is required"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {}, "strict": True}}}, "unknown field"),
    ({"output_format": {"type": "json_schema", "schema": {}}}, "send output_config.format"),
    ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"sytem": "x"}, "did you mean 'system'?"),
    ({"xyzzy": 1}, "unknown field 'xyzzy'"),
    ({"(text)": 1}, "unknown field '(text)'"),
    ({"messages": [user(text("x", list=1))]}, "unknown field 'messages[0].content[0].list'"),
]


@pytest.mark.parametrize(
    ("extra", "says"), REFUSED, ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None
)
def test_what_we_cannot_honour_is_refused_by_name(
    server: Address, script: Script, extra: dict[str, Any], says: str
) -> None:
    response = server.http.post(PATH, json={**GOOD, **extra})
    assert response.status_code == 400, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert says in body["error"]["message"]
    assert body["request_id"] == response.headers["request-id"]
    assert script.requests == []


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (ContextError("too much", param="messages", sizes=(9, 5)), 400, "invalid_request_error"),
        (QueueFull("1024 wait", retry_after_s=7), 429, "rate_limit_error"),
        (EngineError("stopped"), 503, "api_error"),
        (ZeroDivisionError("secret"), 500, "api_error"),
    ],
)
def test_every_error_of_the_model_has_anthropic_s_envelope(
    server: Address, script: Script, raised: Exception, status: int, kind: str
) -> None:
    script.refusal = raised
    with pytest.raises(anthropic.APIStatusError) as refused:
        server.anthropic.messages.create(**GOOD)
    assert refused.value.status_code == status
    body: Any = refused.value.body
    assert body["error"]["type"] == kind
    assert body["request_id"] == refused.value.request_id
    assert "secret" not in body["error"]["message"]
    assert refused.value.response.headers.get("retry-after") == ("7" if status == 429 else None)
    if isinstance(raised, ContextError):  # in Claude Code's own words for it: prompt is too long[^0-9]*(\d+)...
        assert body["error"]["message"] == "prompt is too long: 9 tokens > 5 maximum"


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "kind"),
    [
        ("POST", PATH, b"{bad", 400, "invalid_request_error"),
        ("POST", PATH, b'"' + b"x" * MAX_BODY_BYTES + b'"', 413, "request_too_large"),
        ("GET", PATH, b"", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", b"{}", 404, "not_found_error"),
        ("POST", "/v1/messages/count_tokens", b"{}", 400, "invalid_request_error"),
    ],
)
def test_every_error_below_messages_has_anthropic_s_envelope(
    server: Address, method: str, path: str, content: bytes, status: int, kind: str
) -> None:
    response = server.http.request(method, path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert response.json()["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]


def test_models_are_told_in_the_form_of_who_asks(server: Address) -> None:
    models = list(server.anthropic.models.list(limit=1))  # two pages
    assert [model.id for model in models] == ["tiny", "moonshotai/Kimi-K2-Instruct"]
    assert all(model.max_input_tokens == 4096 for model in models)
    ModelInfo.model_validate(server.anthropic.models.retrieve("tiny").to_dict())
    assert [m.id for m in server.anthropic.models.list(before_id="moonshotai/Kimi-K2-Instruct")] == ["tiny"]
    with pytest.raises(anthropic.NotFoundError) as unknown:
        server.anthropic.models.retrieve("claude")
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index,call-overload]
    with pytest.raises(anthropic.BadRequestError, match="after_id is 'x'"):
        server.anthropic.models.list(after_id="x")
    assert server.http.get("/v1/models").json()["object"] == "list"
    assert set(server.http.get("/v1/models/claude").json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(sorted(MessagesBody.model_fields)), value=VALUES)
def test_no_body_makes_a_500(server: Address, script: Script, field: str, value: Any) -> None:
    headers = {"content-type": "application/json"}
    response = server.http.post(PATH, content=json.dumps({**GOOD, field: value}), headers=headers)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
