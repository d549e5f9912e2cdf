"""Journals of real models in miniature, asked again: of the same weights, of others, of a server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from baltoro.chat.tokenizer import Tokenizer
from baltoro.cli.journaling import Writing
from baltoro.llm import LLM
from baltoro.server import journal, replay
from baltoro.server.app import Served, create_app
from baltoro.server.compare import Difference, Said, compare, schemas, summary
from baltoro.server.journal import Journal, Record
from baltoro.weights.save import write
from tests import tiny, vocabulary
from tests.server.conftest import Address, serving

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": SCHEMA}}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi there"}], "max_tokens": 20}
BOOKS = {"user": "u1", "metadata": {"who": "somebody"}}  # the client's own
CALL = CHAT | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60, "seed": 3}
COMPLETION = {"model": "tiny", "prompt": ["Hi", "there"], "n": 2, "max_tokens": 9, "temperature": 1, "stop": ["zz"]}
MESSAGE = CHAT | {"max_tokens": 10**6, "temperature": 0, "stream": True}  # these dialects have no seed
RESPONSE = {"model": "tiny", "input": "Hi there", "max_output_tokens": 20, "temperature": 0}
KEPT = {"x-request-id": "mine"}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Iterator[LLM]:
    with closing(LLM.open(tiny_checkpoint, threads=1, max_context=512, draw_seeds=True)) as llm:
        yield llm


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The same language, other weights."""
    directory = tmp_path_factory.mktemp("other")
    vocabulary.write_vocabulary(directory)
    tokenizer = Tokenizer.open(directory)
    config = tiny.config(
        vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.num_base, eos_token_id=tokenizer.num_base + 1
    )
    write(directory, tiny.weights(config, seed=1), config.to_dict())
    with closing(LLM.open(directory, threads=1, max_context=512)) as llm:
        yield llm


@contextmanager
def recording(llm: LLM, directory: Path, folder: Path, *, content: bool) -> Iterator[Address]:
    """A server that writes a journal, which is whole when it has left."""
    writing = Writing(Journal(folder), content)
    served = Served(llm=llm, names=("tiny",))
    with serving(create_app(served, record=writing.around(str(directory), llm))) as address:
        yield address
    writing.close()


@pytest.fixture(scope="module", params=[True, False], ids=["content", "ids"])
def recorded(
    request: pytest.FixtureRequest, model: LLM, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Record]:
    folder = tmp_path_factory.mktemp("journal")
    with recording(model, tiny_checkpoint, folder, content=request.param) as address:
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/chat/completions", CHAT | BOOKS | {"stream": True, "stream_options": {"include_usage": True}}),
            ("/v1/chat/completions", CALL),
            ("/v1/completions", COMPLETION),
            ("/v1/messages", MESSAGE),
            ("/v1/responses", RESPONSE),
        ):
            assert address.http.post(path, json=body, headers=KEPT).status_code == 200
        assert address.http.post("/v1/completions", json={"model": "nobody", "prompt": "Hi"}).status_code == 404
        assert address.http.get("/v1/models").status_code == 200
    return list(journal.read(folder))


def again(records: list[Record], llm: LLM) -> list[Difference]:
    async def ask() -> list[Difference]:
        async with replay.loaded(llm) as target:
            return list(await replay.run(target, records))

    return asyncio.run(ask())


def test_what_reached_the_model_is_recorded_and_nothing_else(recorded: list[Record]) -> None:
    paths = ["chat/completions"] * 3 + ["completions", "messages", "responses"]
    assert [each["path"].removeprefix("/v1/") for each in recorded] == paths
    assert {(each["status"], each["key"], each["id"]) for each in recorded} == {(200, None, "mine")}
    for record in recorded:
        assert len(record["weights"]) == len(record["template"]) == 64
        answers = [answer for prompt in record["prompts"] for answer in prompt["answers"]]
        assert len(answers) == (4 if record["path"] == "/v1/completions" else 1)
        for answer in answers:
            assert len(answer["token_ids"]) == answer["usage"]["completion_tokens"] > 0
            assert answer["finish"] in ("stop", "length", "tool_calls")
            assert 0 < answer["first_token_s"] <= record["seconds"]
            assert isinstance(answer["seed"], int)  # drawn where the client sent none
    assert recorded[2]["prompts"][0]["answers"][0]["seed"] == 3
    sampling = recorded[3]["prompts"][0]["sampling"]
    assert (sampling["max_tokens"], sampling["temperature"], sampling["stop"]) == (9, 1, ["zz"])


def test_content_is_there_when_it_was_asked_for_alone(recorded: list[Record], model: LLM) -> None:
    for record in recorded:
        answer = record["prompts"][0]["answers"][0]
        assert ("body" in record) == ("text" in answer) == ("calls" in answer)
    if "body" in recorded[0]:
        assert recorded[0]["body"] == CHAT and recorded[3]["body"] == COMPLETION
        (call,) = recorded[2]["prompts"][0]["answers"][0]["calls"]
        assert call["name"] == "weather"
        jsonschema.validate(json.loads(call["arguments"]), SCHEMA)
    assert ("u1" in json.dumps(recorded[1])) == ("somebody" in json.dumps(recorded[1])) == ("body" in recorded[1])
    ids = recorded[3]["prompts"][0]["prompt_ids"]
    assert model.tokenizer.decode(ids) == "Hi"


def test_the_same_weights_say_the_same_again(recorded: list[Record], model: LLM) -> None:
    found = again(recorded, model)
    assert len(found) == 6
    for record, each in zip(recorded, found, strict=True):
        # Random weights want to say control tokens, and only a chat that is known as one keeps them from it.
        constrained = "body" not in record and record["path"] != "/v1/completions"
        assert each.error is None
        assert each.same_tokens is True or constrained, each
        assert each.seconds[1] > 0
    if "body" in recorded[0]:
        assert all(each.same and each.same_prompt for each in found)
        assert (found[2].valid_calls, found[2].num_calls) == ((1, 1), (1, 1))
        assert summary(found)["same"] == 6


def test_other_weights_are_told_apart(recorded: list[Record], other: LLM) -> None:
    found = again(recorded, other)
    assert not any(each.same_tokens for each in found)
    assert all(each.first_difference is not None for each in found)
    if "body" in recorded[0]:
        assert found[2].valid_calls == (1, 1)  # the grammar holds whatever the weights
        assert all(each.same_prompt for each in found)


def test_a_server_is_asked_over_http(recorded: list[Record], model: LLM) -> None:
    async def ask(url: str) -> list[Difference]:
        async with replay.server(url, None, None) as target:
            return list(await replay.run(target, recorded))

    with serving(create_app(Served(llm=model, names=("another name",)))) as address:
        found = asyncio.run(ask(f"{address.url}/v1"))
    assert [each.error for each in found] == [None] * 6
    if "body" in recorded[0]:
        assert [each.same_tokens for each in found[:4]] == [None, None, None, True]  # chats are answered without ids
        assert [each.same_text for each in found[:4]] == [True, True, True, None]
        assert found[2].same_calls and found[2].valid_calls == (1, 1)
    else:
        assert found[3].same_tokens is True


def test_a_client_that_leaves_is_recorded_with_what_there_was(
    model: LLM, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    raw = json.dumps(CHAT | {"stream": True, "max_tokens": 300, "ignore_eos": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with (
        recording(model, tiny_checkpoint, tmp_path, content=False) as address,
        socket.create_connection(("127.0.0.1", address.port), timeout=20) as connection,
    ):
        connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        received = b""
        while received.count(b"data:") < 3:
            piece = connection.recv(4096)
            assert piece, received
            received += piece
    (record,) = journal.read(tmp_path)
    (answer,) = record["prompts"][0]["answers"]
    assert answer["finish"] is None
    assert 0 < len(answer["token_ids"]) < 300


# -------------------------------------------------------------------------------------------- comparing


def record(*answers: dict[str, Any]) -> Record:
    told = [{"finish": "stop", "token_ids": [1, 2, 3], "text": None, "calls": []} | each for each in answers]
    return {"id": "a", "seconds": 1.0, "prompts": [{"prompt_ids": [1], "answers": told}]}


def spoken(**changes: Any) -> Said:
    return Said(**({"token_ids": [1, 2, 3], "text": None, "calls": [], "finish": "stop"} | changes))


def test_each_kind_of_difference_is_told_by_its_name() -> None:
    beside = partial(compare, seconds=2.0)
    assert beside(record({}), [spoken()]).same
    assert beside(record({}), [spoken(token_ids=[1, 2, 4])]).first_difference == 2
    assert beside(record({}), [spoken(token_ids=[1, 2])]).first_difference == 2
    assert beside(record({}), [spoken(token_ids=None)]).same_tokens is None
    assert beside(record({"text": "a"}), [spoken(text="b")]).same_text is False
    assert beside(record({}, {}), [spoken()]).same_tokens is False  # an answer is missing
    assert beside(record({}), [spoken()], prompts=[[2]]).same_prompt is False
    loose, tight = ({"name": "f", "arguments": text} for text in ('{"a": 1, "b": 2}', '{"b":2,"a":1}'))
    assert beside(record({"calls": [loose]}), [spoken(calls=[tight])]).same_calls is True  # the same values
    assert beside(record({"calls": [loose]}), [spoken(calls=[loose, loose])]).same_calls is False


@pytest.mark.parametrize(
    ("arguments", "name", "valid"),
    [('{"city": "Rom"}', "weather", 1), ('{"city": 3}', "weather", 0), ("{", "weather", 0), ("{}", "other", 0)],
)
def test_calls_are_valid_where_their_schema_says_so(arguments: str, name: str, valid: int) -> None:
    answer = {"calls": [{"name": name, "arguments": arguments}]}
    found = compare(record(answer), [spoken()], seconds=1.0, schemas=schemas({"tools": [TOOL]}))
    assert found.valid_calls == (valid, 0)
    assert schemas({"tools": [{"name": "weather", "input_schema": SCHEMA}]}) == schemas({"tools": [TOOL]})


def test_a_refusal_is_a_difference(recorded: list[Record], model: LLM) -> None:
    broken = json.loads(json.dumps(recorded[0]))
    if "body" in broken:
        broken["body"]["temperature"] = "hot"
    else:
        broken["prompts"][0]["prompt_ids"] = [10**6]
    (found,) = again([broken], model)
    assert found.error is not None and found.error.startswith("400") and not found.same
    assert summary([found])["failed"] == 1
