"""The sample format of K2-Vendor-Verifier, and our own samples in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baltoro.chat.call_ids import canonicalize
from baltoro.errors import BaltoroError
from baltoro.eval.verify import samples
from baltoro.server import openai

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BODY = {
    "messages": [
        {"role": "_input", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "g:7"}]},
        {"role": "tool", "tool_call_id": "g:7", "content": "1"},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ],
    "model": "theirs",
    "stream": True,
}


def test_a_line_is_a_request_and_its_index_is_its_line(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(["", json.dumps(BODY), "", json.dumps({"messages": []})]))
    first, second = samples.read(path, {"temperature": 0.5})
    assert (first.index, second.index) == (2, 4)
    assert first.body["messages"][0]["role"] == "system"
    assert "model" not in first.body
    assert first.body["stream_options"] == {"include_usage": True}
    assert (first.body["temperature"], second.body["temperature"]) == (0.5, 0.5)
    assert first.raw == BODY, "calls are judged by what the file says"


def test_foreign_ids_are_counted_and_renamed_as_the_server_would(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(BODY))
    assert samples.foreign_ids(samples.read(path)[0].body) == 2
    (renamed,) = samples.read(path, canonical_ids=True)
    assert samples.foreign_ids(renamed.body) == 0
    body = {**{k: v for k, v in BODY.items() if k != "stream"}, "model": "m"}
    body["messages"] = [{**BODY["messages"][0], "role": "system"}, *BODY["messages"][1:]]  # type: ignore[dict-item, index]
    truth, _ = canonicalize(openai.chat_request(openai.ChatBody.model_validate(body)).messages)
    ids = [[call["id"] for call in m.get("tool_calls", [])] for m in renamed.body["messages"]]
    assert ids == [[call.id for call in message.tool_calls] for message in truth]
    assert [m.get("tool_call_id") for m in renamed.body["messages"]] == [message.tool_call_id for message in truth]


@pytest.mark.parametrize(
    ("text", "told"), [("{", "line 1"), ("[]", "no list of messages"), ('{"messages": 1}', "no list"), ("\n", "empty")]
)
def test_what_is_no_sample_is_told_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(text)
    with pytest.raises(BaltoroError, match=told):
        samples.read(path)


def test_our_own_samples_are_sixty_requests_that_our_server_takes() -> None:
    own = samples.own()
    assert len(own) == 60
    for sample in own:
        assert samples.foreign_ids(sample.body) == 0
        request = openai.chat_request(openai.ChatBody.model_validate({**sample.body, "model": "m"}))
        assert request.tools
    assert {bool(sample.body.get("stream")) for sample in own} == {False, True}
