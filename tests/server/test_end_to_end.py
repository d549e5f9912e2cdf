"""`baltoro serve DIR` as a user starts it, heard by real clients: K2's architecture in miniature, random weights."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import anthropic
import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from baltoro.doctor import live
from baltoro.llm import LLM
from baltoro.server import loosened
from baltoro.server.app import Served, create_app
from baltoro.server.openai import ChatBody, chat_request

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": SCHEMA}}
HI = [{"role": "user", "content": "Hi"}]
CONTEXT = 512


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[openai.OpenAI]:
    command = [sys.executable, "-m", "baltoro", "serve", str(tiny_checkpoint), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--max-context", str(CONTEXT)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("serving"):
            break
    url = line.split(" on ")[1].split()[0]
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(url.removesuffix("/v1") + "/health").status_code == 200
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err


def test_http_says_what_the_library_says(server: openai.OpenAI, tiny_checkpoint: Path) -> None:
    body = {"model": "baltoro", "messages": HI, "max_tokens": 20, "seed": 5, "temperature": 1}
    llm = LLM.open(tiny_checkpoint, max_context=CONTEXT)
    answer = llm.complete(chat_request(ChatBody.model_validate(body)))
    llm.close()
    choice = server.chat.completions.create(**body).choices[0]
    assert (choice.message.content or None, choice.finish_reason) == (answer.content, answer.reason)


def test_stats_count_what_was_computed_and_doctor_reads_them(server: openai.OpenAI) -> None:
    url = str(server.base_url)
    before = live.fetch(url)
    usage = server.completions.create(model="baltoro", prompt=[1, 2, 3], max_tokens=8, seed=1).usage
    after = live.fetch(url)
    assert usage is not None
    assert after["engine"]["generated_tokens"] - before["engine"]["generated_tokens"] == usage.completion_tokens
    assert after["engine"]["prefilled_tokens"] - before["engine"]["prefilled_tokens"] == 3
    assert after["store"] is None and after["max_context"] == CONTEXT
    assert "experts   all in memory" in list(live.lines(live.between(url, before, after)))


@pytest.mark.parametrize("seed", range(3))
def test_required_calls_are_valid_and_go_back_into_the_history(server: openai.OpenAI, seed: int) -> None:
    """Even of a model that knows nothing: names, indices and arguments hold by construction."""
    messages: list = list(HI)
    for turn in range(2):
        choice = server.chat.completions.create(
            model="baltoro", messages=messages, tools=[WEATHER], tool_choice="required", seed=seed, max_tokens=80
        ).choices[0]
        if choice.finish_reason == "length":
            return
        messages.append(choice.message)
        for call in choice.message.tool_calls or []:
            assert call.function.name == "get_weather"
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "{}"})
        ids = [
            message["tool_call_id"] for message in messages if isinstance(message, dict) and message["role"] == "tool"
        ]
        assert ids == [f"functions.get_weather:{index}" for index in range(len(ids))]
        assert len(ids) > turn


def test_tool_choice_none_never_calls(server: openai.OpenAI) -> None:
    for seed in range(5):
        message = (
            server.chat.completions.create(
                model="baltoro", messages=HI, tools=[WEATHER], tool_choice="none", seed=seed, max_tokens=30
            )
            .choices[0]
            .message
        )
        assert message.tool_calls is None


def test_a_client_that_never_reads_holds_nobody_up_and_leaves_nothing_behind(server: openai.OpenAI) -> None:
    """Its answer, some megabytes of log-probabilities, has no room in any buffer on the way."""
    url = httpx.URL(str(server.base_url))
    body = {
        "model": "baltoro", "messages": HI, "stream": True, "n": 4, "logprobs": True, "top_logprobs": 20,
        "max_tokens": 450, "ignore_eos": True,
    }  # fmt: skip
    payload = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((url.host, url.port))
        deaf.sendall(f"{head}{len(payload)}\r\n\r\n".encode() + payload)
        deaf.recv(1)  # it has begun
        for _ in range(3):
            answer = server.chat.completions.create(model="baltoro", messages=HI, max_tokens=4)
            assert answer.choices[0].finish_reason in ("stop", "length")
    deadline = time.monotonic() + 30
    stats = str(server.base_url).removesuffix("/v1/") + "/stats"
    while (told := httpx.get(stats).json()["engine"])["running"] or told["free_pages"] < told["num_pages"]:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


class Weather(BaseModel):
    city: Annotated[str, Field(max_length=8)]
    unit: Literal["C", "F"]
    days: Annotated[list[Annotated[int, Field(ge=0, le=9)]], Field(max_length=3)]


@pytest.mark.parametrize("seed", range(3))
def test_parse_gives_a_model_s_object_even_of_a_model_that_knows_nothing(server: openai.OpenAI, seed: int) -> None:
    completion = server.chat.completions.parse(
        model="baltoro", messages=HI, response_format=Weather, seed=seed, max_tokens=200
    )
    parsed = completion.choices[0].message.parsed
    assert isinstance(parsed, Weather), completion
    assert json.loads(completion.choices[0].message.content or "") == parsed.model_dump()


def test_with_tools_and_a_format_an_answer_calls_or_is_json(server: openai.OpenAI) -> None:
    seen: set[str] = set()
    wishes = {"model": "baltoro", "messages": HI, "max_tokens": 100, "temperature": 2, "parallel_tool_calls": False}
    for seed in range(40):
        message = server.chat.completions.parse(
            **wishes, response_format=Weather, tools=[openai.pydantic_function_tool(Weather, name="w")], seed=seed
        ).choices[0].message  # fmt: skip
        if message.tool_calls:
            assert all(isinstance(call.function.parsed_arguments, Weather) for call in message.tool_calls)
            assert message.content is None
        else:
            assert isinstance(message.parsed, Weather)
        seen.add("calls" if message.tool_calls else "json")
        if len(seen) == 2:
            return
    raise AssertionError(f"only {seen} in 40 answers")


def test_streamed_json_folded_is_the_whole_and_compact(server: openai.OpenAI) -> None:
    wishes: dict = {"model": "baltoro", "messages": HI, "seed": 4, "max_tokens": 200}
    wishes["response_format"] = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}
    whole = server.chat.completions.create(**wishes).choices[0]
    chunks = list(server.chat.completions.create(**wishes, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    jsonschema.validate(json.loads(whole.message.content or ""), SCHEMA)
    assert whole.finish_reason == chunks[-1].choices[0].finish_reason == "stop"


def test_responses_say_the_same_streamed_and_whole_and_parse(server: openai.OpenAI) -> None:
    wishes: dict = {"model": "baltoro", "input": "Hi", "temperature": 0, "max_output_tokens": 150}
    whole = server.responses.parse(**wishes, text_format=Weather)
    assert isinstance(whole.output_parsed, Weather) and whole.status == "completed"
    with server.responses.stream(**wishes, text_format=Weather) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == whole.output_text == final.output_text
    assert final.output_parsed == whole.output_parsed
    assert final.usage is not None and whole.usage is not None
    assert final.usage.output_tokens == whole.usage.output_tokens
    cut = server.responses.create(**wishes | {"max_output_tokens": 2}, text={"format": {"type": "json_object"}})
    assert (cut.status, cut.output_text[:1]) == ("incomplete", "{")


def test_required_calls_of_a_response_go_back_into_its_input(server: openai.OpenAI) -> None:
    tool = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
    items: list = [{"role": "user", "content": "Hi"}]
    for turn in range(2):
        response = server.responses.create(
            model="baltoro", input=items, tools=[tool], tool_choice="required", parallel_tool_calls=False,
            temperature=0, max_output_tokens=80,
        )  # fmt: skip
        (call,) = response.output
        assert response.status == "completed" and call.call_id == f"functions.get_weather:{turn}"
        jsonschema.validate(json.loads(call.arguments), SCHEMA)
        items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "{}"}]


def test_a_loose_server_drops_what_it_cannot_enforce_and_says_so(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In this process, without a socket."""

    async def ask(function: dict) -> httpx.Response:
        tools = [{"type": "function", "function": {"name": "f", **function}}]
        body = {"model": "tiny", "messages": HI, "tools": tools, "max_tokens": 2}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny") as client:
            return await client.post("/v1/chat/completions", json=body)

    schema = SCHEMA | {"properties": SCHEMA["properties"] | {"city": {"type": "string", "pattern": "^(?!x)"}}}
    with closing(LLM.open(tiny_checkpoint, max_context=CONTEXT, loose_schemas=True)) as llm:
        app = create_app(Served(llm=llm, names=("tiny",)))
        answer = asyncio.run(ask({"parameters": schema}))
        assert answer.status_code == 200, answer.text
        assert answer.headers[loosened.HEADER] == "f /properties/city/pattern"
        assert any("'f': /properties/city/pattern" in line for line in caplog.messages)
        assert loosened.HEADER not in asyncio.run(ask({"parameters": SCHEMA})).headers
        refused = asyncio.run(ask({"parameters": schema, "strict": True}))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools[0].function.parameters"
    assert "/properties/city/pattern" in refused.json()["error"]["message"]


def test_json_that_is_cut_says_so(server: openai.OpenAI) -> None:
    wishes: dict = {"model": "baltoro", "messages": HI, "max_tokens": 3, "response_format": {"type": "json_object"}}
    choice = server.chat.completions.create(**wishes).choices[0]
    assert choice.finish_reason == "length" and (choice.message.content or "").startswith("{")
    with pytest.raises(openai.LengthFinishReasonError):
        server.chat.completions.parse(model="baltoro", messages=HI, max_tokens=3, response_format=Weather)


def test_completions_give_the_same_ids_streamed_and_whole(server: openai.OpenAI) -> None:
    wishes = {
        "model": "baltoro",
        "prompt": [1, 2, 3],
        "max_tokens": 8,
        "seed": 1,
        "extra_body": {"return_token_ids": True},
    }
    whole = server.completions.create(**wishes).choices[0].model_dump()
    pieces = [chunk.choices[0].model_dump() for chunk in server.completions.create(stream=True, **wishes)]
    assert [token for piece in pieces for token in piece["token_ids"]] == whole["token_ids"]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert whole["prompt_token_ids"] == [1, 2, 3]
    assert len(whole["token_ids"]) == 8


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def declared(parameters: object) -> list:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"tools": declared({"type": "strin"})}, "tools[0].function.parameters"),
        ({"tools": declared({"type": "array"})}, "tools[0].function.parameters"),
        ({"tools": declared({"properties": 3})}, "tools[0].function.parameters"),
        (
            {"tools": declared({"type": "object", "properties": {"a": {"pattern": "("}}})},
            "tools[0].function.parameters",
        ),
        ({"tools": declared({"$ref": "#/nowhere"})}, "tools[0].function.parameters"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c1"}]}, "messages[0].tool_call_id"),
        ({"messages": [ASSISTANT, {"role": "tool", "content": "x", "tool_call_id": "c2"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c1"}]}, "messages[0].tool_call_id"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else None,
)
def test_what_only_the_model_can_refuse_is_400_too(server: openai.OpenAI, extra: dict, param: str) -> None:
    wishes = {"model": "baltoro", "messages": HI, "max_tokens": 5, **extra}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            server.post("/chat/completions", body={**wishes, "stream": stream}, cast_to=dict)
        assert refused.value.param == param
    assert server.chat.completions.create(model="baltoro", messages=HI, max_tokens=2).choices  # the server lives on


def test_ids_outside_the_vocabulary_are_refused(server: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="99999"):
        server.completions.create(model="baltoro", prompt=[1, 99999], max_tokens=2)


@pytest.fixture
def claude(server: openai.OpenAI) -> Iterator[anthropic.Anthropic]:
    url = str(server.base_url).rstrip("/").removesuffix("/v1")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


CUSTOM: Any = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
GREEDY: Any = {"model": "baltoro", "max_tokens": 40, "extra_body": {"temperature": 0}}


def test_anthropic_s_client_hears_the_same_streamed_and_whole(claude: anthropic.Anthropic) -> None:
    for extra in ({}, {"tools": [CUSTOM], "tool_choice": {"type": "any"}}):
        wishes: Any = {**GREEDY, "messages": HI, **extra}
        plain = claude.messages.create(**wishes)
        with claude.messages.stream(**wishes) as stream:
            streamed = stream.get_final_message()
        told = [
            (message.stop_reason, [{**block.to_dict(), "id": None} for block in message.content])
            for message in (plain, streamed)
        ]
        for _, blocks in told:
            for block in blocks:
                block.pop("parsed_output", None)
        assert told[0] == told[1]


class Sky(BaseModel):
    """Without lengths: Anthropic's client leaves them out of the schema that it sends, and checks them afterwards."""

    colour: Literal["grey", "blue"]
    rainy: bool


def test_anthropic_s_client_parses_its_model_out_of_every_answer(claude: anthropic.Anthropic) -> None:
    wishes: Any = {"model": "baltoro", "max_tokens": 150, "messages": HI, "output_format": Sky}
    whole = claude.messages.parse(**wishes)
    assert isinstance(whole.parsed_output, Sky) and whole.stop_reason == "end_turn"
    with claude.messages.stream(**wishes) as stream:
        assert isinstance(stream.get_final_message().parsed_output, Sky)
    opened: Any = [*HI, {"role": "assistant", "content": '{"city":'}]
    with pytest.raises(anthropic.BadRequestError, match=r"output_config.format asks .* messages is partial"):
        claude.messages.parse(**{**wishes, "messages": opened})


def test_anthropic_s_count_is_what_an_answer_then_costs(claude: anthropic.Anthropic) -> None:
    prompt: Any = {"messages": HI, "system": "Be brief. " * 20, "tools": [CUSTOM]}
    counted = claude.messages.count_tokens(model="baltoro", **prompt)
    for _ in range(2):  # the second reads the first one's pages
        usage = claude.messages.create(**GREEDY, **prompt).usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens
    assert (usage.cache_read_input_tokens or 0) > 0


def test_a_new_billing_header_leaves_the_prompt_as_it_was(claude: anthropic.Anthropic) -> None:
    read = []
    for hashed in ("1a2b", "ffff"):
        system: Any = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={hashed};"},
            {"type": "text", "text": "You write programs. " * 15},
        ]
        with claude.messages.stream(**GREEDY, messages=HI, system=system) as stream:
            started = next(event for event in stream if event.type == "message_start").message.usage
            read.append(started.cache_read_input_tokens)
            ended = stream.get_final_message().usage
            assert (started.input_tokens, read[-1]) == (ended.input_tokens, ended.cache_read_input_tokens)
    assert read[0] == 0 and read[1] >= 64


@pytest.mark.parametrize("system", ["Be brief.", "Be kind."])
def test_anthropic_s_tool_loop_goes_on_with_a_model_that_knows_nothing(
    claude: anthropic.Anthropic, system: str
) -> None:
    messages: list[Any] = list(HI)
    for _ in range(2):
        answer = claude.messages.create(
            model="baltoro",
            max_tokens=90,
            messages=messages,
            system=system,
            tools=[CUSTOM],
            tool_choice={"type": "any"},
        )
        if answer.stop_reason == "max_tokens":
            return
        assert answer.stop_reason == "tool_use"
        results = []
        for call in answer.content:
            assert call.type == "tool_use"
            jsonschema.validate(call.input, SCHEMA)
            results.append({"type": "tool_result", "tool_use_id": call.id, "content": "no", "is_error": True})
        messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]


def test_more_tokens_than_the_context_has_fill_it_for_anthropic_s_client(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="baltoro", max_tokens=32000, messages=HI, extra_body={"temperature": 0})
    if answer.stop_reason != "end_turn":
        assert answer.stop_reason == "model_context_window_exceeded"
        assert (
            answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) + answer.usage.output_tokens
            == CONTEXT
        )
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 512 maximum"):
        claude.messages.create(model="baltoro", max_tokens=5, messages=[{"role": "user", "content": "word " * 5000}])
    bad = {**CUSTOM, "input_schema": {"type": "array"}}
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].input_schema: tool"):
        claude.messages.create(model="baltoro", max_tokens=5, messages=HI, tools=[bad])


def test_max_completion_tokens_of_the_context_s_size_is_what_the_prompt_leaves(server: openai.OpenAI) -> None:
    body: Any = {"model": "baltoro", "messages": HI, "extra_body": {"temperature": 0, "ignore_eos": True}}
    usage = server.chat.completions.create(**body, max_completion_tokens=CONTEXT).usage
    assert usage is not None and usage.total_tokens == CONTEXT
    with pytest.raises(openai.BadRequestError, match=f"max_tokens is {CONTEXT}"):
        server.chat.completions.create(**body, max_tokens=CONTEXT)


def test_the_token_count_of_moonshot_and_a_partial_message(server: openai.OpenAI) -> None:
    opened: Any = {"role": "assistant", "content": "I", "partial": True}
    for messages in (HI, [*HI, opened]):
        body = {"model": "baltoro", "messages": messages}
        url = str(server.base_url).rstrip("/") + "/tokenizers/estimate-token-count"
        counted = httpx.post(url, json=body).json()["data"]["total_tokens"]
        usage = server.chat.completions.create(**body, max_tokens=2).usage
        assert usage is not None and usage.prompt_tokens == counted
    with pytest.raises(openai.BadRequestError) as refused:
        server.chat.completions.create(model="baltoro", messages=[opened, *HI])
    assert refused.value.param == "messages[0].partial"
    with pytest.raises(openai.BadRequestError, match=r"response_format asks .* messages is partial") as refused:
        server.chat.completions.create(model="baltoro", messages=[*HI, opened], response_format={"type": "json_object"})
    assert refused.value.param == "response_format"
