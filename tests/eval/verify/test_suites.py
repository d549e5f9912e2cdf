"""Every suite passes on our server with random weights, and sees an endpoint that is wrong in the way it asks about."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from baltoro.chat.tokenizer import Tokenizer
from baltoro.eval.endpoint import Endpoint
from baltoro.eval.ledger import Ledger
from baltoro.eval.verify import ids, parameters, prompts, stream
from baltoro.eval.verify.check import Check, Suite
from baltoro.llm import LLM
from baltoro.server.app import Served, create_app

Spoil = Callable[[str, dict[str, Any]], dict[str, Any]]  # path, a body -> the body that the server gets
Break = Callable[[dict[str, Any], Any], Any]  # the body, the answer's document or events -> what the client gets


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Path) -> Iterator[LLM]:
    with closing(LLM.open(tiny_checkpoint, threads=1, max_context=2048)) as opened:
        yield opened


class Wrong(httpx2.AsyncBaseTransport):
    """Our server behind somebody who changes what is asked or answered."""

    def __init__(self, llm: LLM, asked: Spoil | None, answered: Break | None) -> None:
        self._inner = httpx2.ASGITransport(app=create_app(Served(llm=llm, names=("tiny",))))
        self._asked, self._answered = asked, answered

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(await request.aread() or b"{}")
        sent = self._asked(request.url.path, dict(body)) if self._asked else body
        again = httpx2.Request(request.method, request.url, json=sent)
        response = await self._inner.handle_async_request(again)
        text = (await response.aread()).decode()
        if response.status_code != 200 or self._answered is None:
            return httpx2.Response(response.status_code, text=text)
        if not body.get("stream"):
            return httpx2.Response(200, json=self._answered(body, json.loads(text)))
        lines = [line[5:] for line in text.splitlines() if line.startswith("data:") and "[DONE]" not in line]
        events = self._answered(body, [json.loads(line) for line in lines])
        return httpx2.Response(200, text="".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n")


def run(
    llm: LLM, folder: Path, suite: Suite, *, asked: Spoil | None = None, answered: Break | None = None
) -> dict[str, Check]:
    async def go() -> list[Check]:
        async with httpx2.AsyncClient(
            transport=Wrong(llm, asked, answered), base_url="http://m", timeout=None
        ) as client:
            with Ledger(folder / "ledger.jsonl", {}) as ledger:
                return list(await suite(Endpoint(client, "tiny", ledger=ledger)))

    checks = asyncio.run(go())
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


@pytest.mark.parametrize("name", ["stream", "parameters", "tokens", "template", "ids"])
def test_our_own_server_fails_nothing(llm: LLM, tmp_path: Path, name: str) -> None:
    suites = {"stream": stream.suite, "parameters": parameters.suite, "ids": ids.suite,
              "tokens": prompts.tokens(llm.tokenizer), "template": prompts.template(llm.tokenizer)}  # fmt: skip
    checks = run(llm, tmp_path, suites[name])
    assert not [check for check in checks.values() if check.verdict not in ("pass", "unknown")]
    assert sum(check.verdict == "pass" for check in checks.values()) >= 0.8 * len(checks), [
        check for check in checks.values() if check.verdict == "unknown"
    ]


def without(*names: str) -> Spoil:
    return lambda _, body: {name: value for name, value in body.items() if name not in names}


def choosing(old: Any, new: Any) -> Spoil:
    """Another tool_choice than the one that was asked for."""

    def spoil(_: str, body: dict[str, Any]) -> dict[str, Any]:
        kind = body.get("tool_choice")
        return {**body, "tool_choice": new} if (kind if isinstance(kind, str) else "named") == old and kind else body

    return spoil


def deaf(_: str, body: dict[str, Any]) -> dict[str, Any]:
    """Sampling as the server likes it."""
    body = without("stop", "n", "seed", "logprobs", "top_logprobs")(_, body)
    return {**body, "max_tokens": 2 * body["max_tokens"]}


def test_parameters_that_are_ignored_are_seen(llm: LLM, tmp_path: Path) -> None:
    checks = run(llm, tmp_path, parameters.suite, asked=deaf)
    for name in ("max_tokens", "stop", "n", "seed repeats", "logprobs"):
        assert checks[name].verdict == "fail", checks[name]


def test_choices_of_tools_that_are_ignored_are_seen(llm: LLM, tmp_path: Path) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    spoils = (choosing("none", "required"), choosing("required", "none"), choosing("named", named))

    def asked(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return next((new for spoil in spoils if (new := spoil(path, body)) != body), body)

    checks = run(llm, tmp_path, parameters.suite, asked=asked)
    for name in ("tool_choice none", "tool_choice required", "tool_choice named"):
        assert checks[name].verdict == "fail", checks[name]


def test_a_parameter_that_is_refused_is_told_as_refused(llm: LLM, tmp_path: Path) -> None:
    checks = run(llm, tmp_path, parameters.suite, asked=lambda _, body: {**body, "no_such_field": 1})
    assert {check.verdict for check in checks.values()} == {"refused"}
    assert "no_such_field" in checks["n"].detail


def lossy(body: dict[str, Any], answer: Any) -> Any:
    """The last piece of text, or of arguments, is lost."""
    if not body.get("stream"):
        return answer
    said = [e for e in answer if e["choices"] and (e["choices"][0]["delta"].get("content") or
            (e["choices"][0]["delta"].get("tool_calls") or [{}])[0].get("function", {}).get("arguments"))]  # fmt: skip
    return [event for event in answer if event is not said[-1]] if said else answer


def leaking(body: dict[str, Any], answer: Any) -> Any:
    if body.get("stream"):
        answer[1]["choices"][0]["delta"]["content"] = "<|tool_calls_section_begin|>"
    return answer


def uncounted(body: dict[str, Any], answer: Any) -> Any:
    return [event for event in answer if event["choices"]] if body.get("stream") else answer


def nameless(body: dict[str, Any], answer: Any) -> Any:
    for event in answer if body.get("stream") else []:
        for choice in event["choices"]:
            for call in choice["delta"].get("tool_calls") or []:
                call.pop("id", None)
    return answer


def test_streams_that_are_not_their_answers_are_seen(llm: LLM, tmp_path: Path) -> None:
    cases = {
        "text: equals whole": lossy,
        "one call: form of the events": nameless,
        "text: no control tokens in the text": leaking,
        "text: equal usage": uncounted,
    }
    for place, (case, answered) in enumerate(cases.items()):
        checks = run(llm, tmp_path / str(place), stream.suite, answered=answered)
        assert checks[case].verdict == "fail", checks[case]


def test_an_endpoint_that_never_says_the_same_twice_is_not_blamed_for_its_streams(llm: LLM, tmp_path: Path) -> None:
    seeds = iter(range(1000))
    checks = run(llm, tmp_path, stream.suite, asked=lambda _, body: {**body, "temperature": 1, "seed": next(seeds)})
    assert checks["text: equals whole"].verdict == "unknown"


def with_system(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A server that puts a prompt of its own before the client's."""
    if not path.endswith("chat/completions") or body["messages"][0]["role"] == "system":
        return body
    return {**body, "messages": [{"role": "system", "content": "Hm."}, *body["messages"]]}


def test_another_prompt_is_seen_by_its_tokens_and_by_what_follows_it(llm: LLM, tmp_path: Path) -> None:
    tokenizer: Tokenizer = llm.tokenizer
    for name, suite in (("tokens", prompts.tokens(tokenizer)), ("template", prompts.template(tokenizer))):
        checks = run(llm, tmp_path / name, suite, asked=with_system)
        assert checks["a question"].verdict == "fail", checks
        assert checks["a system prompt"].verdict == "pass", checks


def test_ids_that_reach_the_prompt_are_seen(llm: LLM, tmp_path: Path) -> None:
    def answered(body: dict[str, Any], answer: Any) -> Any:
        answer["usage"]["prompt_tokens"] += len(json.dumps(body["messages"]))
        return answer

    checks = run(llm, tmp_path, ids.suite, answered=answered)
    assert checks["OpenAI's in the history"].verdict == "fail"


def test_ids_that_are_refused_are_seen(llm: LLM, tmp_path: Path) -> None:
    def asked(_: str, body: dict[str, Any]) -> dict[str, Any]:
        foreign = any("call_a" in json.dumps(message) for message in body["messages"])
        return {**body, "no_such_field": 1} if foreign else body

    assert run(llm, tmp_path, ids.suite, asked=asked)["results in another order than calls"].verdict == "refused"
