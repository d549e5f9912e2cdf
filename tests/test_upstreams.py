"""The whole way, `LLM.connect` and `baltoro serve --upstream`: the same answers as from an engine in this process.

Against real servers where their addresses are given: `BALTORO_TEST_VLLM_URL`, `BALTORO_TEST_LLAMA_SERVER_URL`, each
serving nano as `bench/peers/nano_hf.py` writes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from baltoro.chat.messages import AnswerFormat, ChatRequest, CompletionRequest, Message, Tool, ToolChoice
from baltoro.cli import app
from baltoro.config import resolve
from baltoro.engine.engine import Engine, EngineConfig
from baltoro.engine.remote import RemoteEngine
from baltoro.errors import EngineError, TokenizerError
from baltoro.llm import LLM
from baltoro.model.load import load
from tests.engine.upstream.faulty import FaultyUpstream

DIALECTS = ["vllm", "sglang", "llama-server"]
REAL = {"vllm": "BALTORO_TEST_VLLM_URL", "llama-server": "BALTORO_TEST_LLAMA_SERVER_URL"}
QUESTIONS = [
    "Who are you?",
    "What is the weather in Paris?",
    "你好",
    "Hello! 😀 Wake me at 7:30.",
    "北京 and Rome, please.",
]
CHOICES = [
    ToolChoice(mode="none"),
    ToolChoice(),
    ToolChoice(mode="required"),
    ToolChoice(mode="named", name="get_weather"),
]


def tool(name: str, properties: dict[str, object]) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    function = {"name": name, "description": name.replace("_", " "), "parameters": parameters}
    return Tool(name=name, parameters=parameters, declaration={"type": "function", "function": function})  # type: ignore[arg-type]


TOOLS = (
    tool("get_weather", {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}}),
    tool("set_alarm", {"time": {"type": "string"}, "day": {"type": "integer"}}),
)


def nano() -> Engine:
    model = load(resolve("nano"), dtype=torch.float32)
    return Engine(model, EngineConfig(cache_bytes=2**24, cache_dtype=torch.float32, max_context=1024))


@pytest.fixture(scope="module")
def own() -> Iterator[LLM]:
    with closing(LLM.open("nano", max_context=1024, dtype="float32", prefix_cache=False)) as llm:
        yield llm


def requests(temperature: float = 0.0, questions: int = len(QUESTIONS)) -> Iterator[ChatRequest]:
    for question in QUESTIONS[-questions:]:
        for choice in CHOICES:
            yield ChatRequest(
                messages=(Message(role="user", content=question),), tools=TOOLS, tool_choice=choice,
                temperature=temperature, max_tokens=40,
            )  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_upstream_that_knows_no_grammar_gives_the_calls_that_our_engine_gives(own: LLM, dialect: str) -> None:
    upstream = FaultyUpstream(nano(), dialect)
    try:
        if dialect == "llama-server":  # it streams whole characters
            upstream.partial = {
                token for token in range(own.tokenizer.num_base) if broken(own.tokenizer.token_bytes(token))
            }
        with closing(LLM.connect("nano", [upstream.url])) as llm:
            for request in requests(questions=2):
                assert llm.complete(request) == own.complete(request)
            assert isinstance(llm.engine, RemoteEngine)
            statistics = llm.engine.statistics()
            assert statistics.corrections > 0, "nano never says what its grammar forbids: this shows nothing"
            assert llm.statistics()["store"] is None
    finally:
        upstream.close()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_formatted_text_of_an_upstream_that_knows_no_grammar_is_what_our_engine_says(
    own: LLM, dialect: str, tools: tuple[Tool, ...]
) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 22]}}}
    upstream = FaultyUpstream(nano(), dialect)
    try:
        with closing(LLM.connect("nano", [upstream.url])) as llm:
            for wanted in (AnswerFormat(schema=schema | {"required": ["city", "days"]}), AnswerFormat()):
                request = ChatRequest(
                    messages=(Message(role="user", content="What is the weather in Paris?"),), tools=tools,
                    answer_format=wanted, temperature=0.0, max_tokens=40,
                )  # fmt: skip
                ours = own.complete(request)
                assert llm.complete(request) == ours
                assert ours.tool_calls or (ours.content or "").startswith("{")
    finally:
        upstream.close()


def broken(token: bytes) -> bool:
    return token.decode(errors="ignore").encode() != token


def test_a_model_of_another_vocabulary_and_a_directory_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no upstream answers"):
        LLM.connect("nano", ["http://127.0.0.1:9"])
    with pytest.raises(TokenizerError, match=r"tiktoken\.model"):
        LLM.connect("kimi-k2-instruct", ["http://127.0.0.1:9"])


def test_more_context_than_the_upstreams_have_is_refused() -> None:
    upstream = FaultyUpstream(nano(), "vllm")
    try:
        with pytest.raises(EngineError, match="expected at most 1024"):
            LLM.connect("nano", [upstream.url], max_context=1025)
        with closing(LLM.connect("nano", [f"{upstream.url}/v1/"], max_context=1000)) as llm:
            assert llm.max_context == 1000
    finally:
        upstream.close()


@pytest.mark.parametrize(
    "option", [["--stuck-after", "9"], ["--format", "int4"], ["--threads", "2"], ["--max-running", "3"]]
)
def test_options_of_a_local_model_are_refused_behind_an_upstream(option: list[str]) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--upstream", "http://127.0.0.1:9", *option])
    assert result.exit_code == 2
    assert option[0] in result.output and "--upstream" in result.output


# ── real servers ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=list(REAL))
def real(request: pytest.FixtureRequest) -> Iterator[LLM]:
    url = os.environ.get(REAL[request.param])
    if not url:
        pytest.skip(f"{REAL[request.param]} is not set")
    with closing(LLM.connect("nano", [url])) as llm:
        yield llm


def test_a_real_server_gives_the_greedy_tokens_that_our_engine_gives(own: LLM, real: LLM) -> None:
    for request in requests():
        assert real.complete(request) == own.complete(request)


def test_what_a_real_server_draws_are_whole_calls_all_the_same(real: LLM) -> None:
    for request in requests(temperature=1.5):
        answer = real.complete(request)
        if answer.reason == "tool_calls":
            assert answer.tool_calls and not answer.incomplete
        if request.tool_choice.mode == "none":
            assert not answer.tool_calls


def test_log_probabilities_of_a_real_server_are_ours(own: LLM, real: LLM) -> None:
    request = CompletionRequest(prompt="The weather", max_tokens=5, logprobs=4, temperature=0.0)
    for ours, theirs in zip(own.stream_completion(request), real.stream_completion(request), strict=True):
        if getattr(ours, "likelihoods", None) is not None:
            assert [each.token for each in theirs.likelihoods.top] == [each.token for each in ours.likelihoods.top]
            for mine, other in zip(ours.likelihoods.top, theirs.likelihoods.top, strict=True):
                assert other.logprob == pytest.approx(mine.logprob, abs=2e-3)  # measured: vLLM 7e-4, llama.cpp 2e-5


def test_a_real_server_stops_when_nobody_listens(real: LLM) -> None:
    request = CompletionRequest(prompt="Once upon a time", max_tokens=500, temperature=1.0, ignore_eos=True)
    pieces = real.stream_completion(request)
    next(pieces)
    pieces.close()
    assert isinstance(real.engine, RemoteEngine)
    assert real.complete(next(requests())).content is not None
    real.engine.stop()
    assert [each.running for each in real.engine.statistics().upstreams] == [0]
