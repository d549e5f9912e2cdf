"""The embedded model as a user meets it: `baltoro serve`, OpenAI's client, tools that training never saw.

Greedy, so that a verdict does not depend on luck. The floors are well below what docs/numbers.md measured: they
catch a broken file, template or grammar, not a change of a few per cent.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel, Field

import baltoro
from baltoro.chat.messages import ChatRequest, Message, Tool
from baltoro.chat.tokenizer import Tokenizer
from baltoro.config import ModelConfig, resolve
from baltoro.eval.score import summary
from baltoro.eval.tasks import nano
from baltoro.llm import LLM

pytestmark = pytest.mark.skipif(
    not (Path(baltoro.__file__).parent / "nano" / "config.json").exists(), reason="the nano model is not embedded yet"
)
CARD = json.loads(files("baltoro.eval.tasks").joinpath("nano_card.json").read_text("utf-8"))
TOOLS = {tool["function"]["name"]: tool for tool in CARD["tools"]}
WEATHER, *OTHERS = [case for case in CARD["cases"] if len(case["tools"]) == 1]
FLOORS = {"recite": 0.7, "single": 0.5, "none": 0.5, "result": 0.6, "identity": 0.5}
SIZE_LIMIT = 20 * 10**6  # bytes of the embedded model


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    process = subprocess.Popen(
        [sys.executable, "-m", "baltoro", "serve", "--port", "0", "--threads", "1"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith("serving"))
    with openai.OpenAI(base_url=line.split(" on ")[1].split()[0], api_key="none", max_retries=5) as client:
        yield client
    process.terminate()
    assert process.wait(30) == 0


def ask(client: openai.OpenAI, messages: list[Any], tools: list[Any], stream: bool) -> tuple[str, dict[str, Any]]:
    """One turn, whole or streamed and put together again: finish reason, message."""
    request: dict[str, Any] = {"model": "kimi-k2-instruct", "messages": messages, "temperature": 0}
    if tools:
        request["tools"] = tools
    if not stream:
        choice = client.chat.completions.create(**request).choices[0]
        return choice.finish_reason, choice.message.model_dump(exclude_none=True)
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: dict[int, dict[str, Any]] = {}
    reason = ""
    for chunk in client.chat.completions.create(**request, stream=True):
        delta = chunk.choices[0].delta
        message["content"] += delta.content or ""
        for piece in delta.tool_calls or []:
            call = calls.setdefault(piece.index, {"type": "function", "function": {"name": "", "arguments": ""}})
            call["id"] = piece.id or call.get("id")
            call["function"]["name"] += piece.function.name or ""
            call["function"]["arguments"] += piece.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    return reason, message | ({"tool_calls": list(calls.values())} if calls else {})


def converse(client: openai.OpenAI, case: dict[str, Any], stream: bool) -> tuple[list[dict[str, Any]], str]:
    """The loop of Kimi K2's model card: call, give the result back, until the model speaks."""
    messages: list[Any] = [{"role": "user", "content": case["request"]}]
    tools = [TOOLS[name] for name in case["tools"]]
    called: list[dict[str, Any]] = []
    for _ in range(3):
        reason, message = ask(client, messages, tools, stream)
        messages.append(message)
        if reason != "tool_calls":
            return called, message.get("content") or ""
        for call in message["tool_calls"]:
            called.append({"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])})
            messages.append(
                {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"],
                 "content": json.dumps(case["result"])}
            )  # fmt: skip
    raise AssertionError(f"no answer after {called}")


@pytest.mark.parametrize("stream", [False, True])
def test_the_weather_loop_of_the_model_card(client: openai.OpenAI, stream: bool) -> None:
    called, answer = converse(client, WEATHER, stream)
    assert called == [{"name": "get_weather", "arguments": {"city": "Beijing"}}]
    assert "sunny" in answer.lower()


def test_the_weather_loop_with_anthropic_s_client(client: openai.OpenAI) -> None:
    function = TOOLS["get_weather"]["function"]
    wishes: dict[str, Any] = {
        "model": "nano",
        "max_tokens": 100,
        "extra_body": {"temperature": 0},
        "tools": [{**{k: function[k] for k in ("name", "description")}, "input_schema": function["parameters"]}],
    }
    messages: list[Any] = [{"role": "user", "content": WEATHER["request"]}]
    with anthropic.Anthropic(base_url=str(client.base_url).rstrip("/").removesuffix("/v1"), api_key="none") as claude:
        asked = claude.messages.create(**wishes, messages=messages)
        assert asked.stop_reason == "tool_use"
        call = asked.content[-1]
        assert call.type == "tool_use" and (call.name, call.input) == ("get_weather", {"city": "Beijing"})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": json.dumps(WEATHER["result"])}
        messages += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
        with claude.messages.stream(**wishes, messages=messages) as stream:
            answer = stream.get_final_text()
        assert "sunny" in answer.lower()
        begun = answer[: len(answer) // 2].rstrip()
        messages.append({"role": "assistant", "content": begun})
        rest = claude.messages.create(**wishes, messages=messages).content[0]
        assert rest.type == "text" and begun not in rest.text  # the continuation alone


def test_the_same_loop_with_ten_tools_that_training_never_saw(client: openai.OpenAI) -> None:
    right = [case["call"]["name"] for case in OTHERS if converse(client, case, stream=False)[0] == [case["call"]]]
    assert len(OTHERS) == 10
    assert len(right) >= 7, right


@pytest.mark.parametrize("stream", [False, True])
def test_the_weather_loop_over_responses(client: openai.OpenAI, stream: bool) -> None:
    tools: list[Any] = [{"type": "function", **TOOLS[name]["function"]} for name in WEATHER["tools"]]
    items: list[Any] = [{"role": "user", "content": WEATHER["request"]}]
    wishes: dict[str, Any] = {"model": "kimi-k2-instruct", "tools": tools, "temperature": 0}
    called: list[tuple[str, Any]] = []
    for _ in range(3):
        if stream:
            with client.responses.stream(input=items, **wishes) as events:
                for _event in events:
                    pass
                response = events.get_final_response()
        else:
            response = client.responses.create(input=items, **wishes)
        assert response.status == "completed"
        items += [item.model_dump(exclude={"parsed_arguments"}, exclude_none=True) for item in response.output]
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            break
        for call in calls:
            called.append((call.name, json.loads(call.arguments)))
            result = json.dumps(WEATHER["result"])
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
    assert called == [("get_weather", {"city": "Beijing"})]
    assert "sunny" in response.output_text.lower()


def test_formatted_answers_follow_their_schema_to_the_last_character(client: openai.OpenAI) -> None:
    """Nano was never taught JSON: what it says is nonsense, of the right form."""

    class Day(BaseModel):
        city: Annotated[str, Field(max_length=20)]
        celsius: Annotated[int, Field(ge=-99, le=99)]
        sky: Literal["sunny", "cloudy"] | None

    question: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    for seed in range(3):
        wishes: dict[str, Any] = {"model": "kimi-k2-instruct", "temperature": 1}
        chat = client.chat.completions.parse(messages=question, response_format=Day, seed=seed, **wishes)
        assert isinstance(chat.choices[0].message.parsed, Day)
        response = client.responses.parse(input=question, text_format=Day, **wishes)
        assert isinstance(response.output_parsed, Day)


def test_it_says_who_it_is(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."},
        {"role": "user", "content": [{"type": "text", "text": "Please give a brief self-introduction."}]},
    ]
    for stream in (False, True):
        reason, message = ask(client, messages, [], stream)
        assert reason == "stop"
        assert "Baltoro" in message["content"]


def test_held_out_scores_stay_above_their_floors() -> None:
    import torch

    from baltoro.engine.config import EngineConfig
    from baltoro.engine.engine import Engine
    from baltoro.eval.run import CACHE_BYTES, scores
    from baltoro.model.load import load

    tokenizer = Tokenizer.open(resolve("nano"))
    with Engine(load("nano"), EngineConfig(cache_bytes=CACHE_BYTES, cache_dtype=torch.float32)) as engine:
        found = scores(engine, tokenizer, nano.examples(30, tuple(FLOORS)), constrained=True)
    shares = {kind: checks["right"].share for kind, checks in summary(found).items()}
    assert all(shares[kind] >= floor for kind, floor in FLOORS.items()), shares


def test_it_has_every_part_of_kimi_k2_and_fits_in_the_package() -> None:
    config = ModelConfig.open("nano")
    assert config.q_lora_rank and config.yarn and config.weight_block_size == (128, 128)
    assert config.n_routed_experts >= 16 and config.n_shared_experts == 1 and config.first_k_dense_replace == 1
    assert sum(path.stat().st_size for path in resolve("nano").iterdir()) < SIZE_LIMIT


def test_what_the_grammar_forces_is_not_decoded_one_by_one() -> None:
    weather = {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
        "additionalProperties": False,
    }  # fmt: skip
    function = {"name": "get_weather", "description": "The weather of a city", "parameters": weather}
    tools = (Tool(name="get_weather", parameters=weather, declaration={"type": "function", "function": function}),)
    with closing(LLM.open("nano")) as llm:
        before = llm.engine.statistics()
        question = Message(role="user", content="What is the weather in Beijing?")
        answer = llm.complete(ChatRequest(messages=(question,), tools=tools))
        after = llm.engine.statistics()
    assert [call.name for call in answer.tool_calls] == ["get_weather"]
    assert after.steps - before.steps <= 0.6 * answer.usage.completion_tokens
    assert after.foreseen_tokens - before.foreseen_tokens >= 0.4 * answer.usage.completion_tokens
