"""OpenAI's responses, heard by OpenAI's own client and its types."""

from __future__ import annotations

import copy
import json
import logging
import re
import typing
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent, response_create_params
from pydantic import BaseModel, TypeAdapter

from baltoro.chat.compiler import Loosened
from baltoro.chat.messages import (
    AnswerFormat,
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    Delta,
    Finished,
    Likelihood,
    Likelihoods,
    TextDelta,
    ToolChoice,
)
from baltoro.errors import ContextError, EngineError, RequestError, SchemaError
from baltoro.server import loosened
from baltoro.server.responses_items import DROPPED
from tests.server.conftest import Address
from tests.server.script import HELLO, USAGE, Script

PATH = "/v1/responses"
CITY = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "name": "get_weather", "description": "Weather", "parameters": CITY, "strict": False}
TWO_CALLS: list[Delta] = [
    TextDelta("Let me "),
    TextDelta("look."),
    CallBegun(0, "functions.get_weather:0", "get_weather"),
    ArgumentsDelta(0, '{"city": '),
    ArgumentsDelta(0, '"Beijing"}'),
    CallEnded(0),
    CallBegun(1, "functions.get_weather:1", "get_weather"),
    ArgumentsDelta(1, '{"city": "München 🥨"}'),
    CallEnded(1),
    Finished("tool_calls", USAGE),
]
ANY_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def post(server: Address, **body: Any) -> Any:
    return server.http.post(PATH, json={"model": "tiny", "input": "Hi"} | body)


def events(server: Address, **body: Any) -> list[dict[str, Any]]:
    response = post(server, stream=True, **body)
    assert response.status_code == 200, response.text
    told: list[dict[str, Any]] = []
    for block in response.text.rstrip("\n").split("\n\n"):
        name, data = block.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


def nameless(value: Any) -> Any:
    """Without ids and times, which differ from answer to answer."""
    if isinstance(value, dict):
        return {k: nameless(v) for k, v in value.items() if k not in ("id", "item_id", "created_at", "completed_at")}
    return [nameless(each) for each in value] if isinstance(value, list) else value


def fold(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a client makes of the pieces alone, never looking at whole items."""
    items: list[dict[str, Any]] = []
    for each in told:
        match each["type"]:
            case "response.output_item.added":
                assert each["output_index"] == len(items)
                items.append(copy.deepcopy(each["item"]))
            case "response.content_part.added":
                items[each["output_index"]]["content"].append(copy.deepcopy(each["part"]))
            case "response.output_text.delta":
                items[each["output_index"]]["content"][each["content_index"]]["text"] += each["delta"]
                items[each["output_index"]]["content"][each["content_index"]]["logprobs"] += each["logprobs"]
            case "response.function_call_arguments.delta":
                items[each["output_index"]]["arguments"] += each["delta"]
            case "response.output_item.done":
                items[each["output_index"]]["status"] = each["item"]["status"]
                assert items[each["output_index"]] == each["item"]
            case _:
                pass
        if "item_id" in each:
            assert each["item_id"] == items[each["output_index"]]["id"]
    return items


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_response_has_text_and_usage(server: Address) -> None:
    response = server.openai.responses.create(
        model="tiny", input="Hi", metadata={"a": "b"}, temperature=0.5, top_p=0.25, max_output_tokens=9, user="ada"
    )
    assert (response.output_text, response.status, response.model) == ("Hello", "completed", "tiny")
    assert (response.metadata, response.temperature, response.top_p) == ({"a": "b"}, 0.5, 0.25)
    assert (response.max_output_tokens, response.user, response.error) == (9, "ada", None)
    assert response.usage is not None
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (11, 4, 15)
    assert usage.input_tokens_details.cached_tokens == 2
    assert response.output[0].type == "message" and response.output[0].status == "completed"


@pytest.mark.parametrize("deltas", [HELLO, TWO_CALLS, TWO_CALLS[2:], [TextDelta("cut"), Finished("length", USAGE)]])
def test_responses_and_events_are_valid_for_openai_s_own_types(
    server: Address, script: Script, deltas: list[Delta]
) -> None:
    script.deltas = deltas
    body = {"tools": [WEATHER], "instructions": "Be brief.", "text": {"format": {"type": "json_object"}}}
    Response.model_validate(post(server, **body).json(), strict=True)
    for number, each in enumerate(events(server, **body)):
        ANY_EVENT.validate_python(each, strict=True)
        assert each["sequence_number"] == number


TEXTS = st.text(min_size=1, max_size=4)


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """Whatever a parser may tell: text and calls in any order, each in pieces; perhaps cut in the middle."""
    said: list[Delta] = []
    num_calls = 0
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            said += [TextDelta(text) for text in draw(st.lists(TEXTS, min_size=1, max_size=3))]
        else:
            said.append(CallBegun(num_calls, f"functions.get_weather:{num_calls}", "get_weather"))
            said += [ArgumentsDelta(num_calls, text) for text in draw(st.lists(TEXTS, max_size=3))]
            said.append(CallEnded(num_calls))
            num_calls += 1
    if draw(st.booleans()):
        return [*said[: draw(st.integers(0, len(said)))], Finished("length", USAGE)]
    return [*said, Finished("tool_calls" if num_calls else "stop", USAGE)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deltas=answers())
def test_a_folded_stream_is_the_plain_response(server: Address, script: Script, deltas: list[Delta]) -> None:
    script.deltas = deltas
    told = events(server, tools=[WEATHER])
    assert [each["type"] for each in told[:2]] == ["response.created", "response.in_progress"]
    assert told[-1]["type"] == ("response.incomplete" if deltas[-1].reason == "length" else "response.completed")
    items = fold(told)
    assert items == told[-1]["response"]["output"]
    plain = post(server, tools=[WEATHER]).json()
    assert nameless(plain) == nameless(told[-1]["response"])
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "".join(
        part["text"] for item in items for part in item.get("content", [])
    )
    begun = {delta.index for delta in deltas if isinstance(delta, CallBegun)}
    ended = {delta.index for delta in deltas if isinstance(delta, CallEnded)}
    calls = [item["status"] for item in items if item["type"] == "function_call"]
    assert calls == ["completed" if index in ended else "incomplete" for index in sorted(begun)]


def test_the_client_s_own_stream_gives_text_calls_and_the_final_response(server: Address, script: Script) -> None:
    script.deltas = TWO_CALLS
    with server.openai.responses.stream(model="tiny", input="Hi", tools=[WEATHER]) as stream:  # type: ignore[list-item]
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "Let me look."
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]
    assert kinds.count("response.function_call_arguments.done") == 2 and kinds.count("response.output_text.done") == 1


def test_an_answer_that_was_cut_is_incomplete(server: Address, script: Script) -> None:
    script.deltas = [*TWO_CALLS[:4], Finished("length", USAGE)]
    response = server.openai.responses.create(model="tiny", input="Hi", tools=[WEATHER])  # type: ignore[list-item]
    assert response.status == "incomplete"
    assert response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in response.output] == ["completed", "incomplete"]  # type: ignore[union-attr]


def test_text_s_log_probabilities_are_told_with_it(server: Address, script: Script) -> None:
    def scored(text: str) -> Likelihoods:
        chosen = Likelihood(1, text.encode(), -0.5)
        return Likelihoods(chosen, (chosen, Likelihood(2, b"\xe5", -1.5)))

    script.deltas = [
        scored("Hel"),
        TextDelta("Hel"),
        scored("lo"),
        TextDelta("lo"),
        scored(""),
        Finished("stop", USAGE),
    ]
    include = ["message.output_text.logprobs"]
    told = events(server, include=include, top_logprobs=2)
    assert script.requests[0].logprobs == 2
    (part,) = fold(told)[0]["content"]
    assert [each["token"] for each in part["logprobs"]] == ["Hel", "lo"]
    assert part["logprobs"][0]["top_logprobs"][1]["token"] == r"bytes:\xe5"
    assert post(server, include=include).json()["output"][0]["content"][0]["logprobs"][0]["top_logprobs"] == []
    assert post(server).json()["output"][0]["content"][0]["logprobs"] == []


class Weather(BaseModel):
    city: str
    celsius: int


def test_parse_reads_a_model_s_object(server: Address, script: Script) -> None:
    script.deltas = [TextDelta('{"city": "Rome", '), TextDelta('"celsius": 21}'), Finished("stop", USAGE)]
    response = server.openai.responses.parse(model="tiny", input="Hi", text_format=Weather)
    assert response.output_parsed == Weather(city="Rome", celsius=21)
    wanted = script.requests[0].answer_format
    assert wanted is not None and wanted.strict and set(wanted.schema["properties"]) == {"city", "celsius"}


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, AnswerFormat(name="text.format", param="text.format")),
        (
            {"type": "json_schema", "name": "x", "schema": CITY, "strict": True},
            AnswerFormat(schema=CITY, strict=True, name="text.format", param="text.format.schema"),
        ),
    ],
)
def test_every_format_reaches_the_model_and_is_echoed(
    server: Address, script: Script, form: dict[str, Any], wanted: AnswerFormat | None
) -> None:
    assert post(server, text={"format": form}).json()["text"] == {"format": form, "verbosity": "medium"}
    assert script.requests[0].answer_format == wanted


# ── input ────────────────────────────────────────────────────────────────────────────────────────


def test_the_tool_loop_with_the_response_s_own_items(server: Address, script: Script) -> None:
    items: list[Any] = [{"role": "user", "content": "Weather in Beijing and München?"}]
    script.deltas = TWO_CALLS
    first = server.openai.responses.create(model="tiny", input=items, tools=[WEATHER])  # type: ignore[list-item]
    items += first.output
    for item in first.output:
        if item.type == "function_call":
            city = json.loads(item.arguments)["city"]
            items.append({"type": "function_call_output", "call_id": item.call_id, "output": f"{city}: sunny"})
    script.deltas = [TextDelta("Sunny."), Finished("stop", USAGE)]
    second = server.openai.responses.create(model="tiny", input=items, tools=[WEATHER])  # type: ignore[list-item]
    assert second.output_text == "Sunny."
    user, assistant, beijing, munich = script.requests[1].messages
    assert user.role == "user"
    assert assistant.content == [{"type": "text", "text": "Let me look."}]
    assert [(call.id, call.arguments) for call in assistant.tool_calls] == [
        ("functions.get_weather:0", '{"city": "Beijing"}'),
        ("functions.get_weather:1", '{"city": "München 🥨"}'),
    ]
    assert (beijing.role, beijing.tool_call_id, beijing.content) == (
        "tool",
        "functions.get_weather:0",
        "Beijing: sunny",
    )
    assert munich.tool_call_id == "functions.get_weather:1"
    (tool,) = script.requests[0].tools
    assert tool.declaration == {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather", "parameters": CITY},
    }


def test_items_become_turns(server: Address, script: Script) -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be "}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": '*** "x"'},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "2"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "phase": "final_answer",
         "content": [{"type": "output_text", "text": "Done.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "c3", "namespace": "mcp", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c3", "output": "3"},
    ]  # fmt: skip
    assert post(server, input=items, instructions="Short.").status_code == 200
    turns = script.requests[0].messages
    assert [turn.role for turn in turns] == [
        "system", "system", "user", "assistant", "tool", "tool", "assistant", "tool",
    ]  # fmt: skip
    assert turns[0].content == "Short."
    assert [(call.id, call.name, call.arguments) for call in turns[3].tool_calls] == [
        ("c1", "f", "{}"),
        ("c2", "apply_patch", '{"input": "*** \\"x\\""}'),
    ]
    assert turns[3].content is None
    assert turns[6].content == [{"type": "text", "text": "Done."}]
    assert [(call.id, call.name) for call in turns[6].tool_calls] == [("c3", "mcp.g")]


def test_tools_as_codex_sends_them(server: Address, script: Script, caplog: pytest.LogCaptureFixture) -> None:
    """Its own tools, a namespace of an MCP server's, and what runs elsewhere; the fields are those of its requests."""
    tools = [
        WEATHER | {"name": "exec_command"},
        {"type": "namespace", "name": "mcp__docs", "description": "Docs", "tools": [
            {"type": "function", "name": "search", "parameters": CITY, "strict": False, "defer_loading": True},
            {"type": "custom", "name": "freeform"},
        ]},
        {"type": "web_search", "external_web_access": False},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "local_shell"},
    ]  # fmt: skip
    script.deltas = [
        CallBegun(0, "functions.mcp__docs.search:0", "mcp__docs.search"),
        ArgumentsDelta(0, "{}"),
        CallEnded(0),
        Finished("tool_calls", USAGE),
    ]
    body = {
        "tools": tools, "tool_choice": "auto", "parallel_tool_calls": True, "reasoning": {"summary": "auto"},
        "store": False, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "01a2",
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        told = events(server, **body)
        events(server, **body)
    (request, _) = script.requests
    assert [tool.name for tool in request.tools] == ["exec_command", "mcp__docs.search"]
    assert request.tools[1].declaration["function"]["name"] == "mcp__docs.search"
    (call,) = told[-1]["response"]["output"]
    assert (call["namespace"], call["name"], call["call_id"]) == (
        "mcp__docs",
        "search",
        "functions.mcp__docs.search:0",
    )
    assert told[-1]["response"]["tools"] == tools
    for name in ("'custom' 'freeform'", "'web_search'", "'custom' 'apply_patch'", "'local_shell'"):
        assert sum(f"type {name} are not offered" in line for line in caplog.messages) <= 1
    assert any("'local_shell' are not" in line for line in caplog.messages)
    choice = {"type": "function", "namespace": "mcp__docs", "name": "search"}
    assert post(server, tools=tools, tool_choice=choice).json()["tool_choice"] == choice
    assert script.requests[-1].tool_choice == ToolChoice(mode="named", name="mcp__docs.search")
    choice = {"type": "allowed_tools", "mode": "required", "tools": [choice, {"type": "web_search"}]}
    assert post(server, tools=tools, tool_choice=choice).json()["tool_choice"] == choice
    assert script.requests[-1].tool_choice == ToolChoice(mode="required", allowed=("mcp__docs.search",))


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────

# Every documented field at a value that asks for something, and the company it needs.
ASKING: dict[str, tuple[Any, dict[str, Any]]] = {
    "access_programs": ({"cyber": "standard"}, {}),
    "background": (True, {}),
    "background_options": ({"completion_window": "2h"}, {}),
    "context_management": ([{"type": "compaction"}], {}),
    "conversation": ("conv_1", {}),
    "image": ({"context_compression": "auto"}, {}),
    "include": (["message.output_text.logprobs"], {}),
    "input": ("Ho", {}),
    "instructions": ("Be brief.", {}),
    "max_output_tokens": (7, {}),
    "max_tool_calls": (7, {}),
    "metadata": ({"a": "b"}, {}),
    "model": ("moonshotai/Kimi-K2-Instruct", {}),
    "moderation": ({"model": "omni"}, {}),
    "parallel_tool_calls": (False, {}),
    "previous_response_id": ("resp_1", {}),
    "prompt": ({"id": "pmpt_1"}, {}),
    "prompt_cache_key": ("k", {}),
    "prompt_cache_options": ({"mode": "implicit"}, {}),
    "prompt_cache_retention": ("24h", {}),
    "reasoning": ({"effort": "high"}, {}),
    "safety_identifier": ("s", {}),
    "service_tier": ("flex", {}),
    "store": (True, {}),
    "stream": (True, {}),
    "stream_options": ({"include_obfuscation": True}, {"stream": True}),
    "temperature": (0.1, {}),
    "text": ({"format": {"type": "json_object"}}, {}),
    "tool_choice": ("required", {"tools": [WEATHER]}),
    "tools": ([WEATHER], {}),
    "top_logprobs": (2, {"include": ["message.output_text.logprobs"]}),
    "top_p": (0.5, {}),
    "truncation": ("auto", {}),
    "user": ("ada", {}),
}


@pytest.mark.parametrize("name", typing.get_type_hints(response_create_params.ResponseCreateParamsStreaming))
def test_every_field_of_openai_s_api_is_honoured_or_refused_by_name(server: Address, script: Script, name: str) -> None:
    def heard(body: dict[str, Any]) -> tuple[list[Any], str]:
        script.requests.clear()
        text = post(server, **body).text
        return list(script.requests), re.sub(r'"(id|item_id)": ?"[^"]*"|"(created|completed)_at": ?[0-9]+', "", text)

    value, company = ASKING[name]
    response = post(server, **company, **{name: value})
    if response.status_code == 400:
        assert response.json()["error"]["param"].startswith(name), response.text
    else:
        assert heard(company | {name: value}) != heard(company), "ignored"


CUSTOM = {"type": "custom", "name": "x"}


@pytest.mark.parametrize(
    ("extra", "param", "says"),
    [
        ({"input": []}, "input", "no message"),
        ({"input": 5}, "input", "a string or a list of items"),
        ({"input": ["Hi"]}, "input[0]", "dictionary"),
        ({"input": [{"role": "user"}]}, "input[0].content", "required"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "'user'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
            "input[0].content[0].type",
            "'input_text'",
        ),
        ({"input": [{"role": "user", "content": "x", "contents": "y"}]}, "input[0].contents", "'content'"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "expected message"),
        ({"input": [{"type": ["x"]}]}, "input[0].type", "expected message"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id", "required"),
        ({"input": [{"type": kind} for kind in DROPPED]}, "input", "no message"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "pattern"),
        ({"tools": [{"type": "function", "name": "x", "async": True}]}, "tools[0].async", "false"),
        ({"tools": [{"name": "x"}]}, "tools[0].type", "required"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "a second time"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [CUSTOM, {"type": "function", "nam": "x"}]}]},
            "tools[0].tools[1].nam",
            "'name'",
        ),
        ({"tools": [CUSTOM], "tool_choice": "required"}, "tool_choice", "no tools are declared"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]},
            },
            "tool_choice.tools[0].name",
            "required",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [CUSTOM]}},
            "tool_choice",
            "no function is allowed",
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "get_weather"),
        ({"tools": [CUSTOM], "tool_choice": CUSTOM}, "tool_choice.type", "'function'"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "expected schema"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format", "expected no schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "medium"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "none"),
        ({"store": True}, "store", "only false"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"top_logprobs": 2}, "top_logprobs", "needs include"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than"),
        ({"stream_options": {}}, "stream_options", "needs stream"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"inptu": 1}, "inptu", "did you mean 'input'?"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_what_we_cannot_honour_is_refused_by_name(
    server: Address, script: Script, extra: dict[str, Any], param: str, says: str
) -> None:
    response = post(server, **extra)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]
    assert script.requests == []


def test_the_client_raises_its_own_exceptions(server: Address, script: Script) -> None:
    with pytest.raises(openai.NotFoundError):
        server.openai.responses.create(model="gpt-4", input="Hi")
    with pytest.raises(openai.NotFoundError):
        server.openai.responses.retrieve("resp_1")
    script.refusal = ContextError("5000 tokens", param="messages", code="context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as long:
        server.openai.responses.create(model="tiny", input="Hi", stream=True)
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("refusal", "param", "says"),
    [
        (ContextError("max_tokens is 9", hint="leave max_tokens out", param="max_tokens"), "max_output_tokens",
         "max_output_tokens is 9 (leave max_output_tokens out)"),
        (ContextError("5000 tokens", param="messages"), "input", "5000"),
        (RequestError("messages[2].tool_call_id is 'tools[9]'", param="messages[2].tool_call_id"), "input[1].call_id",
         "input[1].call_id is 'tools[9]'"),
        (SchemaError("tool 'n.g': x", param="tools[1].function.parameters"), "tools[2].tools[1].parameters", "'n.g'"),
        (SchemaError("x", param="text.format.schema"), "text.format.schema", "x"),
    ],
)  # fmt: skip
def test_what_the_model_refuses_has_the_names_of_this_api(
    server: Address, script: Script, refusal: RequestError, param: str, says: str
) -> None:
    script.refusal = refusal
    inner = [{"type": "custom", "name": "c"}, {"type": "function", "name": "g"}]
    response = post(
        server,
        instructions="Short.",
        input=[{"role": "user", "content": "Hi"}, {"role": "user", "content": "So?"}],
        tools=[WEATHER, {"type": "web_search"}, {"type": "namespace", "name": "n", "tools": inner}],
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert says in response.json()["error"]["message"]


def test_an_engine_that_fails_is_503_plain_and_a_failed_response_in_a_stream(server: Address, script: Script) -> None:
    script.deltas = [TextDelta("Hel"), EngineError("the engine has stopped")]
    with pytest.raises(openai.InternalServerError) as plain:
        server.openai.responses.create(model="tiny", input="Hi")
    assert plain.value.status_code == 503
    last = events(server)[-1]
    ANY_EVENT.validate_python(last, strict=True)
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine has stopped"}
    script.deltas = [Finished("cancelled", USAGE)]
    assert events(server)[-1]["type"] == "response.failed"


def test_what_is_not_enforced_is_told_in_a_header(server: Address, script: Script) -> None:
    script.loose = [Loosened("get_weather", "/not")]
    assert post(server, tools=[WEATHER]).headers[loosened.HEADER] == "get_weather /not"
    assert post(server, tools=[WEATHER], stream=True).headers[loosened.HEADER] == "get_weather /not"


def test_a_client_that_leaves_cancels_its_response(server: Address, script: Script) -> None:
    script.deltas = [TextDelta("Hel"), 30.0, TextDelta("lo"), Finished("stop", USAGE)]
    with server.openai.responses.create(model="tiny", input="Hi", stream=True) as stream:
        next(iter(stream))
        assert script.begun.wait(20)
    assert script.closed.wait(20)
