"""OpenAI's dialect, heard by OpenAI's own client and its types."""

from __future__ import annotations

import json
import re
import typing
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params

from baltoro.chat.compiler import Loosened
from baltoro.chat.messages import AnswerFormat, ArgumentsDelta, CallBegun, CallEnded, Finished, TextDelta, ToolChoice
from baltoro.errors import ContextError, EngineError
from baltoro.server import loosened
from tests.server.conftest import Address
from tests.server.script import USAGE, Script

HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}},
    },
}
ALLOWED: dict[str, Any] = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_weather"}}]},
}
TWO_CALLS = [
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


def fold(chunks: list[ChatCompletionChunk]) -> dict[str, typing.Any]:
    """What a client makes of a stream: pieces joined by index."""
    content, calls, finish = None, {}, None
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.delta.content is not None:
                content = (content or "") + choice.delta.content
            for piece in choice.delta.tool_calls or []:
                call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.function.name, "arguments": ""})
                call["arguments"] += piece.function.arguments or ""
            finish = choice.finish_reason or finish
    return {"content": content, "calls": [calls[index] for index in sorted(calls)], "finish": finish}


def whole(completion: ChatCompletion) -> dict[str, typing.Any]:
    message = completion.choices[0].message
    calls = [
        {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
        for call in message.tool_calls or []
    ]
    return {"content": message.content, "calls": calls, "finish": completion.choices[0].finish_reason}


def test_a_plain_answer_has_text_reason_and_usage(server: Address, script: Script) -> None:
    completion = server.openai.chat.completions.create(model="tiny", messages=HI)
    assert completion.choices[0].message.content == "Hello"
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "tiny"
    assert completion.id.startswith("chatcmpl-")
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (
        11,
        4,
        15,
    )
    assert completion.usage.prompt_tokens_details.cached_tokens == 2


@pytest.mark.parametrize(
    "deltas",
    [
        [TextDelta("Hel"), TextDelta("lo"), Finished("stop", USAGE)],
        [Finished("stop", USAGE)],
        [TextDelta("cut"), Finished("length", USAGE)],
        TWO_CALLS,
        TWO_CALLS[2:],
        [*TWO_CALLS[:4], Finished("length", USAGE)],  # a call that is never whole
        [CallBegun(0, "functions.now:0", "now"), CallEnded(0), Finished("tool_calls", USAGE)],
        [TextDelta("line\u2028sep\u2029\x85\r\n\0 \\ data: [DONE]\n\n"), Finished("stop", USAGE)],
    ],
    ids=["text", "nothing", "cut text", "text and calls", "calls", "cut call", "no arguments", "line separators"],
)
def test_a_folded_stream_is_the_plain_answer(server: Address, script: Script, deltas: list) -> None:
    script.deltas = deltas
    plain = server.openai.chat.completions.create(model="tiny", messages=HI)
    chunks = list(server.openai.chat.completions.create(model="tiny", messages=HI, stream=True))
    assert fold(chunks) == whole(plain)


def test_a_stream_starts_with_the_role_and_ends_with_reason_usage_and_done(server: Address, script: Script) -> None:
    body = {"model": "tiny", "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 15
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_without_include_usage_no_chunk_speaks_of_it(server: Address, script: Script) -> None:
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, "stream": True})
    assert "usage" not in response.text


def test_a_plain_answer_is_valid_for_openai_s_own_types(server: Address, script: Script) -> None:
    script.deltas = TWO_CALLS
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI})
    ChatCompletion.model_validate(response.json(), strict=True)


def test_the_simple_chat_of_kimi_k2_s_model_card(server: Address, script: Script) -> None:
    completion = server.openai.chat.completions.create(
        model="moonshotai/Kimi-K2-Instruct",
        messages=[
            {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."},
            {"role": "user", "content": [{"type": "text", "text": "Please give a brief self-introduction."}]},
        ],
        stream=False,
        temperature=0.6,
        max_tokens=256,
    )
    assert completion.choices[0].message.content == "Hello"
    (request,) = script.requests
    assert [message.role for message in request.messages] == ["system", "user"]
    assert (request.temperature, request.max_tokens, request.tools) == (0.6, 256, ())


def test_the_tool_loop_of_kimi_k2_s_model_card(server: Address, script: Script) -> None:
    """The answer's own message object goes back into the history, as the card's program does it."""
    messages: list = [{"role": "user", "content": "What's the weather like in Beijing today? Use the tool to check."}]
    script.deltas = TWO_CALLS
    finish_reason = None
    while finish_reason is None or finish_reason == "tool_calls":
        completion = server.openai.chat.completions.create(
            model="tiny", messages=messages, temperature=0.6, tools=[WEATHER], tool_choice="auto"
        )
        choice = completion.choices[0]
        finish_reason = choice.finish_reason
        if finish_reason == "tool_calls":
            messages.append(choice.message)
            for call in choice.message.tool_calls or []:
                arguments = json.loads(call.function.arguments)
                result = {"city": arguments["city"], "weather": "Sunny"}
                name = call.function.name
                messages.append({"role": "tool", "tool_call_id": call.id, "name": name, "content": json.dumps(result)})
            script.deltas = [TextDelta("Sunny."), Finished("stop", USAGE)]
    assert choice.message.content == "Sunny."
    first, second = script.requests
    assert first.tools[0].name == "get_weather"
    assert first.tools[0].declaration == WEATHER
    assert list(first.tools[0].declaration["function"]) == ["name", "description", "parameters"]  # the client's order
    assert first.tools[0].parameters == WEATHER["function"]["parameters"]
    assistant, beijing, munich = second.messages[1:]
    assert assistant.content == "Let me look."
    assert [(call.id, call.name, call.arguments) for call in assistant.tool_calls] == [
        ("functions.get_weather:0", "get_weather", '{"city": "Beijing"}'),
        ("functions.get_weather:1", "get_weather", '{"city": "München 🥨"}'),
    ]
    assert (beijing.role, beijing.name, beijing.tool_call_id) == ("tool", "get_weather", "functions.get_weather:0")
    assert json.loads(str(munich.content))["city"] == "München 🥨"


@pytest.mark.parametrize(
    ("choice", "understood"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice(mode="none")),
        ("required", ToolChoice(mode="required")),
        ({"type": "function", "function": {"name": "get_weather"}}, ToolChoice(mode="named", name="get_weather")),
        (ALLOWED, ToolChoice(allowed=("get_weather",))),
        ({**ALLOWED, "allowed_tools": {**ALLOWED["allowed_tools"], "mode": "required"}},
         ToolChoice(mode="required", allowed=("get_weather",))),
    ],
)  # fmt: skip
def test_every_tool_choice_reaches_the_model(
    server: Address, script: Script, choice: object, understood: ToolChoice
) -> None:
    body = {"model": "tiny", "messages": HI, "tools": [WEATHER], "tool_choice": choice}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    assert script.requests[0].tool_choice == understood


def test_what_sampling_asks_for_reaches_the_model(server: Address, script: Script) -> None:
    body = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 20,
        "seed": -7,
        "stop": "\n",
        "max_completion_tokens": 9,
        "parallel_tool_calls": False,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": -100, "0": 1.5},
        "stop_token_ids": [3, 4],
        "min_tokens": 2,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 7,
    }
    assert server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, **body}).status_code == 200
    (request,) = script.requests
    assert (request.temperature, request.top_p, request.top_k, request.seed) == (0, 0.5, 20, -7)
    assert (request.stop, request.max_tokens, request.parallel_tool_calls) == (("\n",), 9, False)
    assert (request.min_p, request.repetition_penalty, request.min_tokens) == (0.1, 1.1, 2)
    assert (request.presence_penalty, request.frequency_penalty) == (-1, 0.5)
    assert (request.logit_bias, request.stop_token_ids) == ({5: -100, 0: 1.5}, {3, 4})
    assert (request.ignore_eos, request.logprobs) == (True, 7)


def test_a_developer_speaks_as_system_and_objects_may_be_arguments(server: Address, script: Script) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, None]}}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "ok"}]},
        {"role": "user", "content": "So?", "name": "ada"},
    ]
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert response.status_code == 200, response.text
    system, assistant, tool, user = script.requests[0].messages
    assert system.role == "system"
    assert assistant.content is None
    assert assistant.tool_calls[0].arguments == {"x": [1, None]}
    assert tool.content == [{"type": "text", "text": "ok"}]
    assert user.name == "ada"


NEUTRAL = {
    "n": 1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "service_tier": "auto",
    "store": False,
    "user": "ada",
    "metadata": {"a": "b"},
    "parallel_tool_calls": True,
    "stop": None,
    "reasoning_effort": None,
    "prompt_cache_key": "k",
    "safety_identifier": "s",
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_value_is_accepted(server: Address, script: Script, name: str) -> None:
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, name: NEUTRAL[name]})
    assert response.status_code == 200, response.text


def test_a_strict_tool_and_one_without_parameters_are_accepted(server: Address, script: Script) -> None:
    tools = [
        {"type": "function", "function": {"name": "a.b-c_1"}},
        {**WEATHER, "function": {**WEATHER["function"], "strict": True}},
    ]
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, "tools": tools})
    assert response.status_code == 200, response.text
    assert script.requests[0].tools[0].parameters == {}


CITY = WEATHER["function"]["parameters"]
STREAM = {"stream": True}
# Every documented field at a value that asks for something, and the company it needs.
ASKING: dict[str, tuple[typing.Any, dict]] = {
    "messages": ([{"role": "user", "content": "Ho"}], {}),
    "model": ("moonshotai/Kimi-K2-Instruct", {}),
    "audio": ({"voice": "alloy", "format": "wav"}, {}),
    "frequency_penalty": (1, {}),
    "function_call": ("none", {}),
    "functions": ([{"name": "f"}], {}),
    "logit_bias": ({"5": 1}, {}),
    "logprobs": (True, {}),
    "max_completion_tokens": (7, {}),
    "max_tokens": (7, {}),
    "metadata": ({"a": "b"}, {}),
    "modalities": (["audio"], {}),
    "moderation": ({"model": "omni"}, {}),
    "n": (2, {}),
    "parallel_tool_calls": (False, {}),
    "prediction": ({"type": "content", "content": "Hello"}, {}),
    "presence_penalty": (1, {}),
    "prompt_cache_key": ("k", {}),
    "prompt_cache_options": ({"mode": "implicit"}, {}),
    "prompt_cache_retention": ("24h", {}),
    "reasoning_effort": ("high", {}),
    "response_format": ({"type": "json_object"}, {}),
    "safety_identifier": ("s", {}),
    "seed": (3, {}),
    "service_tier": ("flex", {}),
    "stop": (["x"], {}),
    "store": (True, {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, STREAM),
    "temperature": (0.1, {}),
    "tool_choice": ("required", {"tools": [WEATHER]}),
    "tools": ([WEATHER], {}),
    "top_logprobs": (2, {"logprobs": True}),
    "top_p": (0.5, {}),
    "user": ("ada", {}),
    "verbosity": ("low", {}),
    "web_search_options": ({}, {}),
}


def heard(server: Address, script: Script, body: dict) -> tuple[list, str]:
    """What of a body reaches the model, and what comes back but for names and times."""
    script.reset()
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI} | body)
    assert response.status_code == 200, response.text
    return script.requests, re.sub(r'"id":\s*"[^"]*"|"created":\s*[0-9]+', "", response.text)


@pytest.mark.parametrize("name", typing.get_type_hints(completion_create_params.CompletionCreateParamsStreaming))
def test_every_field_of_openai_s_api_is_honoured_or_refused_by_name(server: Address, script: Script, name: str) -> None:
    value, company = ASKING[name]
    response = server.http.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": HI} | company | {name: value}
    )
    if response.status_code == 400:
        assert response.json()["error"]["param"].startswith(name), response.text
    else:
        assert heard(server, script, company | {name: value}) != heard(server, script, company), "ignored"


def test_the_client_s_own_books_are_kept_with_the_request(server: Address, script: Script) -> None:
    books = {"user": "ada", "metadata": {"job": "7"}, "store": True, "safety_identifier": "s", "prompt_cache_key": "k"}
    server.openai.chat.completions.create(model="tiny", messages=HI, **books)
    assert script.requests[0].noted == books


def test_three_hundred_tools_with_the_longest_names_reach_the_model(server: Address, script: Script) -> None:
    """OpenAI and Moonshot stop at 128; agents with many MCP servers do not."""
    names = [f"mcp__server-{i:03}.{'x' * 48}" for i in range(300)]
    assert {len(name) for name in names} == {64}
    description = "Über Städte 北京 🥨. " * 20
    tools = [
        {"type": "function", "function": {"name": name, "description": description, "parameters": CITY}}
        for name in names
    ]
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, "tools": tools})
    assert response.status_code == 200, response.text
    assert [tool.declaration for tool in script.requests[0].tools] == tools


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, AnswerFormat()),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY, "strict": True, "description": "d"}},
            AnswerFormat(schema=CITY, strict=True, param="response_format.json_schema.schema"),
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            AnswerFormat(schema={}, param="response_format.json_schema.schema"),
        ),
    ],
)
def test_every_answer_format_reaches_the_model(
    server: Address, script: Script, form: dict, wanted: AnswerFormat | None
) -> None:
    body = {"model": "tiny", "messages": HI, "response_format": form}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    (request,) = script.requests
    assert request.answer_format == wanted
    assert [message.content for message in request.messages] == ["Hi"], "the prompt is the client's alone"


def test_what_is_not_enforced_is_told_in_a_header(server: Address, script: Script) -> None:
    body = {"model": "tiny", "messages": HI, "tools": [WEATHER]}
    assert loosened.HEADER not in server.http.post("/v1/chat/completions", json=body).headers
    script.loose = [Loosened("get_weather", "/properties/a b/not"), Loosened("response_format", "#/$defs/ü/pattern")]
    for stream in (False, True):
        response = server.http.post("/v1/chat/completions", json=body | {"stream": stream})
        told = "get_weather /properties/a%20b/not, response_format #/$defs/%C3%BC/pattern"
        assert response.headers[loosened.HEADER] == told
    script.loose = [Loosened(f"tool_{i}", "/properties/a/pattern") for i in range(1000)]
    told = server.http.post("/v1/chat/completions", json=body).headers[loosened.HEADER]
    assert len(told) < loosened.LONGEST + 20 and told.endswith(" more")
    assert told.count(", ") + int(told.rpartition(", ")[2].split()[0]) == 1000


USER = {"role": "user", "content": "Hi"}
NAMELESS = {"type": "function", "function": {"name": "not a name"}}
REFUSED = [
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 129}, "n", "less than or equal to 128"),
    ({"n": True}, "n", "integer"),
    ({"temperature": 9}, "temperature", "less than or equal to 2"),
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"temperature": "1"}, "temperature", '"1"'),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 2}, "top_p", "less than or equal to 1"),
    ({"top_k": -1}, "top_k", "greater than or equal to 0"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": -5}, "max_tokens", "-5"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "send one of them"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "4 items"),
    ({"stop": ""}, "stop", "1 character"),
    ({"stop": ["a", ""]}, "stop[1]", "1 character"),
    ({"stop": 3}, "stop", "expected a string or a list"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"seed": -(2**63) - 1}, "seed", "greater than"),
    ({"logprobs": 2}, "logprobs", "boolean"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
    ({"presence_penalty": -3}, "presence_penalty", "greater than or equal to -2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than or equal to 0.01"),
    ({"min_p": 1.5}, "min_p", "less than or equal to 1"),
    ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "at most max_tokens, 8"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is no token id"),
    ({"logit_bias": {"05": 1}}, "logit_bias", "'05' is no token id"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "token 5: expected a number from -100 to 100"),
    ({"logit_bias": {"5": True}}, "logit_bias", "token 5: expected a number"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "at most 300"),
    ({"logit_bias": [1]}, "logit_bias", "dictionary"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "greater than or equal to 0"),
    ({"ignore_eos": 1}, "ignore_eos", "boolean"),
    ({"include_stop_str_in_output": True}, "include_stop_str_in_output", "not supported"),
    ({"echo": True}, "echo", "unknown field"),
    ({"response_format": {"type": "grammar"}}, "response_format.type", "'json_schema'"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "expected json_schema with type 'json_schema'"),
    ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, "response_format", "expected no json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "ö", "schema": {}}}},
        "response_format.json_schema.name",
        "pattern",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "shema": {}}}},
        "response_format.json_schema.shema",
        "did you mean 'schema'?",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
        "response_format.json_schema.schema",
        "dictionary",
    ),
    ({"function_call": "auto"}, "function_call", "send tool_choice"),
    ({"web_search_options": {}}, "web_search_options", "declare a tool"),
    ({"tools": [{"type": "function", "function": {"name": "天气"}}]}, "tools[0].function.name", "pattern"),
    ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio", "not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({"functions": []}, "functions", "send tools"),
    ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
    ({"xyzzy": 1}, "xyzzy", "unknown field 'xyzzy'"),
    ({"model": None}, "model", "string"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "Hi"}, "messages", "list"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "no content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "required"),
    ({"messages": [USER, {"role": "user", "content": "x", "conten": "y"}]}, "messages[1].conten", "'content'"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a string or a list of text parts"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages[0].content[0].type",
        "expected 'text'",
    ),
    ({"tools": [NAMELESS]}, "tools[0].function.name", "not a name"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name", "64"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "a second time"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "'function'"),
    (
        {"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]},
        "tools[0].function.parameters",
        "[]",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "x", "paramters": {}}}]},
        "tools[0].function.paramters",
        "'parameters'",
    ),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice", "'nope'"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tool_choice": "any"}, "tool_choice", "'required'"),
    ({"tool_choice": 1}, "tool_choice", "a named function"),
    ({"tool_choice": ALLOWED}, "tool_choice", "'get_weather'"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        "tool_choice.allowed_tools.tools",
        "at least 1",
    ),
]


@pytest.mark.parametrize(
    ("extra", "param", "says"), REFUSED, ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None
)
def test_what_we_cannot_honour_is_refused_by_name(
    server: Address, script: Script, extra: dict, param: str, says: str
) -> None:
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, **extra})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]
    assert script.requests == []


def test_openai_s_client_raises_its_own_exceptions(server: Address, script: Script) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        server.openai.chat.completions.create(model="gpt-4", messages=HI)
    assert not_found.value.code == "model_not_found"
    assert "tiny" in not_found.value.message
    with pytest.raises(openai.BadRequestError) as bad:
        server.openai.chat.completions.create(model="tiny", messages=HI, verbosity="low")
    assert (bad.value.param, bad.value.code) == ("verbosity", "unsupported_value")
    script.refusal = ContextError("5000 tokens", param="messages", code="context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as long:
        server.openai.chat.completions.create(model="tiny", messages=HI, stream=True)
    assert long.value.code == "context_length_exceeded"


def test_an_engine_that_fails_is_503_plain_and_an_error_event_in_a_stream(server: Address, script: Script) -> None:
    script.deltas = [TextDelta("Hel"), EngineError("the engine has stopped")]
    with pytest.raises(openai.InternalServerError) as plain:
        server.openai.chat.completions.create(model="tiny", messages=HI)
    assert plain.value.status_code == 503
    stream = server.openai.chat.completions.create(model="tiny", messages=HI, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "Hel"]
    with pytest.raises(openai.APIError, match="the engine has stopped"):
        next(stream)
    raw = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, "stream": True}).text
    assert "event: error\ndata: " in raw
    assert "[DONE]" not in raw
