"""Plain completions: text or ids in, text and ids out."""

from __future__ import annotations

import json
import re
import socket
import typing

import openai
import pytest
from openai.types import Completion, completion_create_params

from baltoro.chat.messages import Finished, TokenDelta
from baltoro.errors import EngineError
from tests.server.conftest import Address
from tests.server.script import USAGE, Script

PATH = "/v1/completions"
SAID = [TokenDelta(7, "Hel"), TokenDelta(8, ""), TokenDelta(9, "lo"), TokenDelta(None, "!"), Finished("stop", USAGE)]


@pytest.fixture(autouse=True)
def _says_hello(script: Script) -> None:
    script.deltas = SAID


def test_text_goes_on(server: Address, script: Script) -> None:
    completion = server.openai.completions.create(
        model="tiny", prompt="Once", max_tokens=5, temperature=0, top_p=0.9, seed=3, stop=["\n"]
    )
    assert completion.choices[0].text == "Hello!"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 15
    (request,) = script.completions
    assert request.prompt == "Once"
    assert (request.max_tokens, request.temperature, request.top_p, request.seed, request.stop) == (
        5,
        0,
        0.9,
        3,
        ("\n",),
    )


def test_defaults_are_openai_s(server: Address, script: Script) -> None:
    server.openai.completions.create(model="tiny", prompt="Once")
    assert (script.completions[0].max_tokens, script.completions[0].temperature) == (16, 1.0)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
def test_every_form_of_prompt_is_understood(server: Address, script: Script, prompt: list, prompts: list) -> None:
    completion = server.openai.completions.create(model="tiny", prompt=prompt)
    assert sorted((request.prompt for request in script.completions), key=prompts.index) == prompts
    assert [choice.index for choice in completion.choices] == list(range(len(prompts)))
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 11 * len(prompts)


def test_token_ids_come_back_when_asked_for(server: Address) -> None:
    body = {"model": "tiny", "prompt": [[5, 6], [7]], "return_token_ids": True}
    choices = server.http.post(PATH, json=body).json()["choices"]
    assert [choice["token_ids"] for choice in choices] == [[7, 8, 9]] * 2
    assert [choice["prompt_token_ids"] for choice in choices] == [[5, 6], [7]]
    choices = server.http.post(PATH, json={**body, "prompt": "AB"}).json()["choices"]
    assert choices[0]["prompt_token_ids"] == [65, 66]
    assert "token_ids" not in server.http.post(PATH, json={**body, "return_token_ids": False}).text


def stream_of(server: Address, **body: object) -> list[dict]:
    response = server.http.post(PATH, json={"model": "tiny", "prompt": "x", "stream": True, **body})
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_a_folded_stream_is_the_plain_answer(server: Address) -> None:
    body = {"prompt": [[5, 6], [7]], "return_token_ids": True, "stream_options": {"include_usage": True}}
    chunks = stream_of(server, **body)
    plain = server.http.post(PATH, json={"model": "tiny", **body, "stream_options": None}).json()
    for choice in plain["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [token for part in parts for token in part["token_ids"]] == choice["token_ids"]
        assert [part["prompt_token_ids"] for part in parts if part["prompt_token_ids"]] == [choice["prompt_token_ids"]]
        assert [part["finish_reason"] for part in parts][-1] == choice["finish_reason"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == plain["usage"]
    for chunk in chunks:
        assert chunk["object"] == "text_completion"


def test_openai_s_client_reads_the_stream(server: Address) -> None:
    stream = server.openai.completions.create(model="tiny", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello!"


def test_a_plain_answer_is_valid_for_openai_s_own_types(server: Address) -> None:
    Completion.model_validate(server.http.post(PATH, json={"model": "tiny", "prompt": "x"}).json(), strict=True)


# Every documented field at a value that asks for something, and the company it needs.
ASKING: dict[str, tuple[typing.Any, dict]] = {
    "model": ("moonshotai/Kimi-K2-Instruct", {}),
    "prompt": ("Twice", {}),
    "best_of": (3, {}),
    "echo": (True, {}),
    "frequency_penalty": (1, {}),
    "logit_bias": ({"5": 1}, {}),
    "logprobs": (2, {}),
    "max_tokens": (7, {}),
    "n": (2, {}),
    "presence_penalty": (1, {}),
    "seed": (3, {}),
    "stop": (["x"], {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "suffix": ("the end", {}),
    "temperature": (0.1, {}),
    "top_p": (0.5, {}),
    "user": ("ada", {}),
}


@pytest.mark.parametrize("name", typing.get_type_hints(completion_create_params.CompletionCreateParamsStreaming))
def test_every_field_of_openai_s_api_is_honoured_or_refused_by_name(server: Address, script: Script, name: str) -> None:
    def heard(body: dict) -> tuple[list, str]:
        script.completions.clear()
        response = server.http.post(PATH, json={"model": "tiny", "prompt": "Once"} | body)
        assert response.status_code == 200, response.text
        return list(script.completions), re.sub(r'"id":\s*"[^"]*"|"created":\s*[0-9]+', "", response.text)

    value, company = ASKING[name]
    response = server.http.post(PATH, json={"model": "tiny", "prompt": "Once"} | company | {name: value})
    if response.status_code == 400:
        assert response.json()["error"]["param"] == name
    else:
        assert heard(company | {name: value}) != heard(company), "ignored"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"echo": 1}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"prompt": ["x"] * 9, "n": 128}, "n"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"logit_bias": {"": 1}}, "logit_bias"),
        ({"suffix": "end"}, "suffix"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
    ],
    ids=lambda value: json.dumps(value)[:30] if isinstance(value, dict) else None,
)
def test_what_we_cannot_honour_is_refused_by_name(server: Address, script: Script, extra: dict, param: str) -> None:
    response = server.http.post(PATH, json={"model": "tiny", "prompt": "x", **extra})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert script.completions == []


def test_a_refused_prompt_closes_those_before_it(server: Address, script: Script) -> None:
    script.deltas = [60.0]
    with pytest.raises(openai.BadRequestError, match="too long"):
        server.openai.completions.create(model="tiny", prompt=[[5], [0]])


def test_an_engine_that_fails_is_503_plain_and_an_error_event_in_a_stream(server: Address, script: Script) -> None:
    script.deltas = [SAID[0], EngineError("the engine has stopped")]
    assert server.http.post(PATH, json={"model": "tiny", "prompt": ["x", "y"]}).status_code == 503
    text = server.http.post(PATH, json={"model": "tiny", "prompt": ["x", "y"], "stream": True}).text
    assert "event: error\ndata: " in text
    assert "[DONE]" not in text


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_client_that_leaves_cancels_all_its_prompts(server: Address, script: Script, stream: bool) -> None:
    script.deltas = [SAID[0], 60.0]
    raw = json.dumps({"model": "tiny", "prompt": ["x", "y", "z"], "stream": stream}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(head.encode() + raw)
    assert script.begun.wait(10)
    while stream and b"Hel" not in connection.recv(4096):
        pass
    connection.close()
    assert script.all_closed(3)
