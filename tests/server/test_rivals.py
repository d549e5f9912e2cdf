"""What other servers get wrong with K2's calls (docs/clients.md lists it), asked of ours in every dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from baltoro.llm import LLM
from baltoro.server.app import Served, create_app
from tests.server.conftest import Address, serving
from tests.test_llm import Model, fake_llm
from tests.vocabulary import tokenizer

T = tokenizer()
HI: list[Any] = [{"role": "user", "content": "Hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 4}}, "required": ["city"]}
NAMES = ("weather", "time")
CHAT_TOOLS = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in NAMES]
MESSAGE_TOOLS = [{"name": name, "input_schema": CITY} for name in NAMES]
RESPONSE_TOOLS = [{"type": "function", "name": name, "parameters": CITY} for name in NAMES]
CALL = (
    "Sure. <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "北京"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)
SPELLED = "Like <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_end|> so. "


@pytest.fixture(scope="module")
def _speaking() -> Iterator[tuple[Model, Address]]:
    """A model that says what a test wrote down, token by token, with engine, grammar and parser."""
    model = Model()
    with (
        closing(fake_llm(model, prefix_cache=False)) as llm,
        serving(create_app(Served(llm=llm, names=("tiny",)))) as at,
    ):
        yield model, at


@pytest.fixture
def speaking(_speaking: tuple[Model, Address]) -> tuple[Model, Address]:
    _speaking[0].say("")
    return _speaking


@pytest.fixture(scope="module")
def noise(tiny_checkpoint: Path) -> Iterator[Address]:
    """A model with random weights."""
    llm = LLM.open(tiny_checkpoint, max_context=512, threads=1)
    with serving(create_app(Served(llm=llm, names=("tiny",)))) as address:
        yield address
    llm.close()


def said(server: Address, dialect: str, stream: bool, **more: Any) -> tuple[str, list[tuple[str, str]], str]:
    """Text, calls (name, arguments) and why it ended, by the vendor's own client."""
    if dialect == "chat":
        wishes: Any = {"model": "tiny", "messages": HI, "tools": CHAT_TOOLS, "temperature": 0, **more}
        if stream:
            with server.openai.chat.completions.stream(**wishes) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = server.openai.chat.completions.create(**wishes).choices[0]
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
        return choice.message.content or "", calls, choice.finish_reason
    if dialect == "responses":
        wishes = {"model": "tiny", "input": "Hi", "tools": RESPONSE_TOOLS, "temperature": 0, **more}
        if stream:
            with server.openai.responses.stream(**wishes) as events:
                response = events.get_final_response()
        else:
            response = server.openai.responses.create(**wishes)
        calls = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
        return response.output_text, calls, response.status
    wishes = {"model": "tiny", "messages": HI, "tools": MESSAGE_TOOLS, "extra_body": {"temperature": 0}, **more}
    if stream:
        with server.anthropic.messages.stream(**wishes) as events:
            message = events.get_final_message()
    else:
        message = server.anthropic.messages.create(**wishes)
    text = "".join(block.text for block in message.content if block.type == "text")
    calls = [(block.name, json.dumps(block.input)) for block in message.content if block.type == "tool_use"]
    return text, calls, str(message.stop_reason)


BOUND = {"chat": "max_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}
DIALECTS = pytest.mark.parametrize("dialect", BOUND)
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@DIALECTS
@STREAMS
def test_markers_spelled_with_ordinary_tokens_are_text_streamed_and_whole(
    speaking: tuple[Model, Address], dialect: str, stream: bool
) -> None:
    """vLLM parses them in whole answers and leaks them into streamed ones."""
    model, server = speaking
    model.script = [*T.encode(SPELLED), *T.encode_with_specials(CALL)]
    text, calls, _ = said(server, dialect, stream, **{BOUND[dialect]: 200})
    assert text == SPELLED + "Sure. "
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("weather", {"city": "北京"})]


@STREAMS
@pytest.mark.parametrize("left", range(2, 22, 3))
def test_a_call_that_max_tokens_cuts_is_an_answer_in_anthropic_s_api_too(
    speaking: tuple[Model, Address], left: int, stream: bool
) -> None:
    """vLLM answers 400."""
    model, server = speaking
    model.say(CALL)
    body = {"model": "tiny", "messages": HI, "tools": MESSAGE_TOOLS, "max_tokens": left, "stream": stream}
    response = server.http.post("/v1/messages", json={**body, "temperature": 0})
    assert response.status_code == 200, response.text
    assert '"max_tokens"' in response.text and '"error"' not in response.text
    model.say(CALL)
    text, calls, why = said(server, "messages", False, max_tokens=left)
    assert (why, text or "Sure. ") == ("max_tokens", "Sure. "[: len(text)] or "Sure. ")
    assert calls in ([], [("weather", "{}")], [("weather", '{"city": "\\u5317\\u4eac"}')])


@DIALECTS
@STREAMS
@pytest.mark.parametrize("name", NAMES)
def test_a_named_tool_choice_is_that_call(noise: Address, dialect: str, stream: bool, name: str) -> None:
    """llama-server ignores it."""
    choice: Any = {"type": "function", "function": {"name": name}}
    if dialect != "chat":
        choice = {"type": "tool" if dialect == "messages" else "function", "name": name}
    _, calls, _ = said(noise, dialect, stream, **{BOUND[dialect]: 200}, tool_choice=choice)
    assert [called for called, _ in calls] == [name]
    jsonschema.validate(json.loads(calls[0][1]), CITY)


@pytest.mark.parametrize("seed", range(3))
def test_a_format_is_enforced_without_tools(noise: Address, seed: int) -> None:
    """llama-server does not."""
    schema = {"type": "object", "properties": {"sky": {"enum": ["grey", "blue"]}}, "required": ["sky"],
              "additionalProperties": False}  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema}}
    answer = noise.openai.chat.completions.create(
        model="tiny", messages=HI, response_format=form, seed=seed, temperature=2, max_tokens=50
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)
    told = noise.anthropic.messages.create(
        model="tiny", messages=HI, max_tokens=50, output_config={"format": {"type": "json_schema", "schema": schema}}
    )
    jsonschema.validate(json.loads(told.content[0].text), schema)  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize(("field", "value"), [("temperature", -3), ("max_tokens", 1_000_000), ("top_p", 7)])
def test_impossible_wishes_are_refused_by_name(noise: Address, path: str, field: str, value: float) -> None:
    """llama-server takes them. Anthropic's max_tokens is a bound that the context cuts, as its own server has it."""
    said = {"prompt": "Hi"} if path == "/v1/completions" else {"input": "Hi"} if "resp" in path else {"messages": HI}
    field = "max_output_tokens" if (path, field) == ("/v1/responses", "max_tokens") else field
    body = {"model": "tiny", **said, **({"max_tokens": 5} if path == "/v1/messages" else {}), field: value}
    response = noise.http.post(path, json=body)
    if (path, field) == ("/v1/messages", "max_tokens"):
        assert response.json()["stop_reason"] in ("model_context_window_exceeded", "end_turn")
        return
    assert response.status_code == 400
    assert f"{field} is {value}" in response.json()["error"]["message"]
