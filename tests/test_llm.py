from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baltoro.chat.messages import (
    AnswerFormat,
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    ChatRequest,
    CompletionRequest,
    Delta,
    Finished,
    Message,
    PromptRead,
    TextDelta,
    TokenDelta,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)
from baltoro.chat.parser import fold
from baltoro.chat.template import render
from baltoro.config import ModelConfig
from baltoro.engine.config import EngineConfig
from baltoro.engine.engine import Engine
from baltoro.errors import ContextError, EngineError, RequestError, SchemaError, TokenizerError
from baltoro.kernels.formats import Format
from baltoro.llm import LLM
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.linear import Linear
from baltoro.model.moe import StackedLinear
from baltoro.scripted import ScriptedLLM
from baltoro.weights.save import write
from tests import tiny, vocabulary
from tests.engine import fake

T = vocabulary.tokenizer()
CONTEXT = 600
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
UNIT = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "day": {"type": "integer"}},
    "required": ["unit"],
}
HELLO = ChatRequest(messages=(Message(role="user", content="Hello"),), temperature=0.0)
CALL = (
    "Sure. <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "北京"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)


def tool(name: str = "weather", parameters: Any = CITY) -> Tool:
    function = {"name": name, "parameters": parameters}
    return Tool(name=name, parameters=parameters, declaration={"type": "function", "function": function})


class Model:
    """Says `script`, one request at a time; where the script is over, or no script is given, noise."""

    def __init__(self) -> None:
        self.config = replace(fake.CONFIG, vocab_size=T.vocab_size, max_position_embeddings=CONTEXT)
        self.store = None
        self.script: list[int] = []
        self.failure: Exception | None = None
        self.pause_s = 0.0
        self.said = 0
        self.first = 0
        self.asked = 0

    def __call__(self, batch: Batch, cache: LatentCache, **more: object) -> Tensor:
        if self.failure:
            raise self.failure
        time.sleep(self.pause_s)
        rows = range(len(batch.ids)) if batch.logit_rows is None else batch.logit_rows.tolist()
        logits: list[Tensor] = []
        for row in rows:
            seed = int(batch.positions[row]) * 100_003 + int(batch.ids[row])
            logits.append(torch.randn(T.vocab_size, generator=torch.Generator().manual_seed(seed)))
            position = int(batch.positions[row])
            if not self.said or position < self.first:
                self.first = position  # the prompt's last token
            place = position - self.first  # of what is said: guesses are asked several at once
            if place < len(self.script):
                logits[-1][self.script[place]] = 100.0
            self.said = place + 1
        return torch.stack(logits) if logits else torch.empty(0, T.vocab_size)

    def say(self, text: str) -> None:
        self.script, self.said = T.encode_with_specials(text), 0


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def llm(model: Model) -> Iterator[LLM]:
    """Without a prefix cache: many tests ask the same twice, and compare usage too."""
    with closing(fake_llm(model, prefix_cache=False)) as llm:
        yield llm


def fake_llm(model: Model, *, prefix_cache: bool) -> LLM:
    config = EngineConfig(
        cache_bytes=4 * CONTEXT * 16, cache_dtype=torch.float32, page_tokens=4, prefix_cache=prefix_cache
    )
    return LLM(Engine(model, config), T, "fake")  # type: ignore[arg-type]


def settle(llm: LLM) -> None:
    """Wait until the engine has nothing left to do."""
    for _ in range(1000):
        statistics = llm.engine.statistics()
        if statistics.running == statistics.waiting == 0:
            return
        time.sleep(0.005)
    raise AssertionError("a request is still running")


def read_all(llm: LLM, request: ChatRequest) -> list[Delta]:
    async def read() -> list[Delta]:
        return [delta async for delta in llm.astream(request)]

    return asyncio.run(read())


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_answer_is_its_text_and_counts_its_tokens(llm: LLM, model: Model) -> None:
    model.say("Grüße, 北京!<|im_end|>")
    answer = llm.complete(HELLO)
    prompt = render(HELLO.messages).ids(T)
    assert (answer.content, answer.tool_calls, answer.reason) == ("Grüße, 北京!", (), "stop")
    assert answer.prompt_ids == tuple(prompt)
    assert answer.token_ids == tuple(model.script)
    assert answer.usage == Usage(prompt_tokens=len(prompt), completion_tokens=len(model.script))


def test_a_call_comes_as_deltas_with_canonical_ids_and_finishes_as_tool_calls(llm: LLM, model: Model) -> None:
    model.say(CALL)
    deltas = list(llm.stream(replace(HELLO, tools=(tool(),))))
    assert text_of(deltas) == "Sure. "
    assert [delta for delta in deltas if isinstance(delta, CallBegun)] == [
        CallBegun(0, "functions.weather:0", "weather")
    ]
    assert "".join(delta.text for delta in deltas if isinstance(delta, ArgumentsDelta)) == '{"city": "北京"}'
    assert isinstance(deltas[-2], CallEnded)
    assert isinstance(deltas[-1], Finished) and deltas[-1].reason == "tool_calls"


def test_foreign_ids_of_the_history_are_renamed_and_counted(llm: LLM, model: Model) -> None:
    """The model wants index 0 again; by construction it writes the next one."""
    call = ToolCall(id="call_x9", name="weather", arguments='{"city": "Bonn"}')
    history = (
        *HELLO.messages,
        Message(role="assistant", tool_calls=(call, replace(call, id="call_y"))),
        Message(role="tool", tool_call_id="call_y", content="rain"),
        Message(role="tool", tool_call_id="call_x9", content="sun"),
    )
    model.say(CALL)
    answer = llm.complete(replace(HELLO, messages=history, tools=(tool(),)))
    assert [call.id for call in answer.tool_calls] == ["functions.weather:2"]
    prompt = T.decode(answer.prompt_ids)
    assert "functions.weather:0" in prompt and "## Return of functions.weather:1\nrain" in prompt
    assert "call_x9" not in prompt and "call_y" not in prompt


@pytest.mark.parametrize("seed", range(6))
def test_streamed_asynchronous_and_whole_answers_are_the_same(llm: LLM, seed: int) -> None:
    request = ChatRequest(
        messages=HELLO.messages,
        tools=(tool("a", UNIT), tool("b", UNIT), tool("a_b", UNIT)),
        tool_choice=ToolChoice(mode="required" if seed % 2 else "auto"),
        temperature=1.5,
        seed=seed,
        stop=("x", "yz"),
        max_tokens=150,
    )
    streamed = list(llm.stream(request))
    answer = llm.complete(request)
    content, calls, incomplete = fold(streamed)
    assert (content, calls, incomplete) == (answer.content, answer.tool_calls, answer.incomplete)
    last = streamed[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.usage) == (answer.reason, answer.usage)
    assert last.stop in (None, *request.stop)
    assert read_all(llm, request) == streamed


@pytest.mark.parametrize("seed", range(4))
def test_noise_under_a_required_choice_is_a_valid_call(llm: LLM, seed: int) -> None:
    schema = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}
    request = replace(HELLO, tools=(tool("f", schema),), tool_choice=ToolChoice(mode="named", name="f"))
    answer = llm.complete(replace(request, temperature=1.0, seed=seed, parallel_tool_calls=False))
    assert (answer.content, answer.reason, len(answer.tool_calls)) == (None, "tool_calls", 1)
    assert json.loads(str(answer.tool_calls[0].arguments))["unit"] in ("C", "F")


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        (("the",), "Hello "),
        (("lo t", "zz"), "Hel"),
        (("ö",), "Hello the f"),
        (("nowhere", "system!"), None),
        (("H",), ""),
    ],
)
def test_a_stop_string_cuts_the_text_exactly_and_ends_the_request(
    llm: LLM, model: Model, stop: tuple[str, ...], content: str | None
) -> None:
    text = "Hello the föol, system"
    model.say(text + "<|im_end|>")
    deltas = list(llm.stream(replace(HELLO, stop=stop)))
    assert text_of(deltas) == (text if content is None else content)
    assert isinstance(deltas[-1], Finished) and deltas[-1].reason == "stop"
    settle(llm)
    model.say(text + "<|im_end|>")
    assert read_all(llm, replace(HELLO, stop=stop)) == deltas


def test_stop_strings_leave_arguments_alone_and_hold_no_text_back_over_a_call(llm: LLM, model: Model) -> None:
    model.say(CALL)
    deltas = list(llm.stream(replace(HELLO, tools=(tool(),), stop=("city", ". !"))))
    content, calls, _ = fold(deltas)
    assert (content, calls[0].arguments) == ("Sure. ", '{"city": "北京"}')
    assert isinstance(deltas[0], TextDelta)


@pytest.mark.parametrize("missing", range(1, 8))
def test_a_call_cut_by_max_tokens_finishes_as_length_unless_only_the_end_of_the_turn_is_missing(
    llm: LLM, model: Model, missing: int
) -> None:
    model.say(CALL)
    answer = llm.complete(replace(HELLO, tools=(tool(),), max_tokens=len(model.script) - missing))
    assert answer.reason == ("tool_calls" if missing == 1 else "length")
    assert answer.usage.completion_tokens == len(model.script) - missing
    if missing > 3:
        assert answer.tool_calls == () and answer.incomplete[0].name == "weather"


def test_without_max_tokens_an_answer_may_fill_the_context(llm: LLM, model: Model) -> None:
    model.say("fun" * 2 * CONTEXT)
    answer = llm.complete(HELLO)
    assert answer.reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == CONTEXT == llm.max_context


def test_closing_an_answer_cancels_its_request_even_if_nobody_has_read_it(llm: LLM, model: Model) -> None:
    model.pause_s = 0.01
    llm.stream(HELLO).close()
    settle(llm)
    with closing(llm.stream(HELLO)) as deltas:
        assert isinstance(next(deltas), TextDelta)
    settle(llm)
    assert model.said < CONTEXT

    async def leave() -> None:
        await llm.astream(HELLO).aclose()
        settle(llm)
        deltas = llm.astream(HELLO)
        await anext(deltas)
        await deltas.aclose()
        settle(llm)
        task = asyncio.create_task(anext_forever(llm))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        settle(llm)

    async def anext_forever(llm: LLM) -> None:
        async for _ in llm.astream(HELLO):
            pass

    asyncio.run(leave())


def test_a_failing_engine_is_an_engine_error_and_the_next_request_is_answered(llm: LLM, model: Model) -> None:
    model.failure = ValueError("overheated")
    with pytest.raises(EngineError, match="overheated"):
        list(llm.stream(HELLO))
    with pytest.raises(EngineError, match="overheated"):
        read_all(llm, HELLO)
    model.failure = None
    model.say("Hello<|im_end|>")
    assert llm.complete(HELLO).content == "Hello"
    assert llm.unhealthy() is None
    llm.close()
    assert llm.unhealthy() is not None
    with pytest.raises(EngineError, match="stopped"):
        llm.stream(HELLO)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "kind", "param"),
    [
        ({"messages": ()}, RequestError, "messages"),
        ({"messages": (Message(role="user", content="x" * CONTEXT),)}, ContextError, "messages"),
        ({"max_tokens": CONTEXT}, ContextError, "max_tokens"),
        ({"max_tokens": 0}, RequestError, "max_tokens"),
        ({"temperature": -1.0}, RequestError, "temperature"),
        ({"top_p": 0.0}, RequestError, "top_p"),
        ({"stop": ("",)}, RequestError, "stop"),
        ({"tools": (tool(parameters={"type": 1}),)}, SchemaError, "tools[0].function.parameters"),
        ({"tool_choice": ToolChoice(mode="required")}, RequestError, "tool_choice"),
        ({"messages": (Message(role="tool", content="", tool_call_id="x"),)}, RequestError, "messages[0].tool_call_id"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_the_call_itself(
    llm: LLM, changes: dict[str, Any], kind: type[RequestError], param: str
) -> None:
    request = replace(HELLO, **changes)

    async def ask() -> None:
        llm.astream(request)

    for refused in (lambda: llm.stream(request), lambda: llm.complete(request), lambda: asyncio.run(ask())):
        with pytest.raises(kind) as caught:
            refused()
        assert caught.value.param == param
    assert llm.engine.statistics().steps == 0


def test_a_prompt_that_is_too_long_is_told_with_its_numbers(llm: LLM) -> None:
    prompt = [0] * (CONTEXT - 10)
    with pytest.raises(ContextError, match=f"{CONTEXT - 10} tokens and max_tokens is 11.*{CONTEXT} in all"):
        llm.stream_completion(CompletionRequest(prompt=prompt, max_tokens=11))
    assert len(list(llm.stream_completion(CompletionRequest(prompt=prompt, max_tokens=10, temperature=0.0)))) >= 2


# ── completions ──────────────────────────────────────────────────────────────────────────────────


def completion(llm: LLM, request: CompletionRequest) -> tuple[str, list[int | None], Finished]:
    *pieces, last = llm.stream_completion(replace(request, temperature=0.0))
    settle(llm)  # the engine runs ahead of a stop string

    async def read() -> list[Any]:
        return [piece async for piece in llm.astream_completions(replace(request, temperature=0.0), 1)[0]]

    model: Any = llm.engine._model
    model.said = 0
    assert asyncio.run(read()) == [*pieces, last]
    assert isinstance(last, Finished)
    tokens = [piece for piece in pieces if isinstance(piece, TokenDelta)]
    assert tokens == pieces
    return "".join(piece.text for piece in tokens), [piece.token for piece in tokens], last


def test_a_completion_gives_every_token_and_the_text_that_it_completes(llm: LLM, model: Model) -> None:
    text = " the 北京 üser"
    model.say(text + "<|im_end|>")
    for prompt in ("<|im_user|>user", T.encode_with_specials("<|im_user|>user")):
        model.said = 0
        told, tokens, last = completion(llm, CompletionRequest(prompt=prompt))
        assert (told, tokens) == (text, model.script)
        assert last == Finished("stop", Usage(prompt_tokens=2, completion_tokens=len(model.script)))


def test_a_completion_prints_tool_markers_and_no_other_control_tokens(llm: LLM, model: Model) -> None:
    model.say("a<|im_user|>b<|tool_call_begin|>c<|im_end|>")
    assert completion(llm, CompletionRequest(prompt="x"))[0] == "ab<|tool_call_begin|>c"


def test_a_completion_stops_at_strings_and_at_length_with_nothing_left_behind(llm: LLM, model: Model) -> None:
    model.say("Hello the 北<|im_end|>")
    told, _, last = completion(llm, CompletionRequest(prompt="x", stop=("o th",)))
    assert (told, last.reason) == ("Hell", "stop")
    settle(llm)
    model.say("Hello the 北<|im_end|>")
    told, tokens, last = completion(llm, CompletionRequest(prompt="x", stop=("e 北!",), max_tokens=4))
    assert (told, last.reason) == (T.decode(model.script[:4]), "length")
    assert [token for token in tokens if token is not None] == model.script[:4]


@pytest.mark.parametrize("prompt", [[], "", [-1], [T.vocab_size]])
def test_prompts_that_are_no_ids_of_this_vocabulary_are_refused(llm: LLM, prompt: str | list[int]) -> None:
    with pytest.raises(RequestError) as caught:
        llm.stream_completion(CompletionRequest(prompt=prompt))
    assert caught.value.param == "prompt"


def test_usage_says_how_much_of_the_prompt_was_not_computed(model: Model) -> None:
    with closing(fake_llm(model, prefix_cache=True)) as llm:
        stopped = replace(HELLO, stop=("the",))  # the answer ends before the engine has said so
        for request in (HELLO, HELLO, stopped):
            model.say("Hello the föol<|im_end|>")
            answer = llm.complete(request)
            settle(llm)
            whole = (answer.usage.prompt_tokens - 1) // 4 * 4
            assert whole > 0
            assert answer.usage.cached_tokens == (0 if not model.asked else whole)
            model.asked += 1
        *_, last = llm.stream_completion(CompletionRequest(prompt=list(answer.prompt_ids)[:9], max_tokens=1))
        assert isinstance(last, Finished) and last.usage.cached_tokens == 8


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


def checkpoint(directory: Path, config: ModelConfig) -> Path:
    directory.mkdir(exist_ok=True)
    vocabulary.write_vocabulary(directory)
    write(directory, tiny.weights(config), config.to_dict())
    return directory


def test_a_checkpoint_directory_opens_and_answers(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, tiny.config(vocab_size=T.vocab_size))
    with closing(LLM.open(directory, max_context=256, max_running=2, threads=1)) as llm:
        assert llm.max_context == 256
        answer = llm.complete(replace(HELLO, max_tokens=5))
        assert answer.token_ids == llm.complete(replace(HELLO, max_tokens=5)).token_ids
    with closing(LLM.open(directory, threads=1)) as llm:
        assert llm.max_context == 2048


@pytest.mark.parametrize(("asked", "expected"), [(None, "fp8"), ("int4", "int4"), ("bf16", "bf16")])
def test_a_large_block_fp8_checkpoint_is_kept_as_shipped_or_as_asked(
    asked: Format | None, expected: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = tiny.config(vocab_size=T.vocab_size, weight_block_size=(128, 128), v_head_dim=16)
    monkeypatch.setattr("baltoro.start.SMALL_PARAMETERS", 0)
    with closing(LLM.open(checkpoint(tmp_path, shape), format=asked, threads=1)) as llm:
        modules = llm.engine._model.model.modules()  # without the head, which has a format of its own
        packed = [m.packed for m in modules if isinstance(m, (Linear, StackedLinear)) and m.packed]
        assert len(packed) > 10
        assert {p.format for p in packed} == {expected}
        assert len(llm.complete(replace(HELLO, max_tokens=5)).token_ids) == 5


def test_prefixes_on_disk_serve_the_next_start_of_the_same_weights_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = tiny.config(vocab_size=T.vocab_size, v_head_dim=16)
    first = checkpoint(tmp_path / "first", shape)
    other = checkpoint(tmp_path / "other", replace(shape, rope_theta=10000.0))
    request = CompletionRequest(prompt=[i % 200 for i in range(200)], max_tokens=4, temperature=0.0)

    def ask(directory: Path, **changes: Any) -> tuple[list[Any], int]:
        with closing(LLM.open(directory, max_context=512, threads=1, prefix_dir=tmp_path / "kept", **changes)) as llm:
            *pieces, last = llm.stream_completion(request)
            assert isinstance(last, Finished)
            if not changes:
                with pytest.raises(EngineError, match="another prefix cache"):
                    LLM.open(directory, threads=1, prefix_dir=tmp_path / "kept")
            return pieces, last.usage.cached_tokens

    told, cached = ask(first)
    assert cached == 0
    assert ask(first) == (told, 192)
    assert [ask(other)[1], ask(other)[1], ask(first)[1]] == [0, 192, 0]
    assert "3 files are discarded: of another model, or of other settings" in caplog.text
    assert [ask(first, format="fp8")[1], ask(first, format="fp8")[1], ask(first)[1]] == [0, 192, 0]


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, tiny.config(vocab_size=T.vocab_size + 8))
    with pytest.raises(TokenizerError, match=f"{T.vocab_size} tokens, the model {T.vocab_size + 8}"):
        LLM.open(directory)


# ── scripts ──────────────────────────────────────────────────────────────────────────────────────


def test_a_script_plays_texts_and_deltas_and_raises_its_exceptions() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    script = ScriptedLLM([CALL, "Hello you", [TextDelta("a"), Finished("length", usage)], [EngineError("down")]])
    answer = script.complete(HELLO)
    assert (answer.content, answer.reason) == ("Sure. ", "tool_calls")
    assert answer.tool_calls == (ToolCall(id="functions.weather:0", name="weather", arguments='{"city": "北京"}'),)
    assert (
        "".join(p.text for p in script.stream_completion(CompletionRequest(prompt="")) if isinstance(p, TokenDelta))
        == "Hello you"
    )
    assert list(script.stream(HELLO)) == [TextDelta("a"), Finished("length", usage)]

    async def fail() -> None:
        async for _ in script.astream_choices(HELLO, 1)[0]:
            pass

    with pytest.raises(EngineError, match="down"):
        asyncio.run(fail())
    with pytest.raises(EngineError, match="request 5"):
        script.stream(HELLO)
    assert len(script.requests) == 5


def opened_by(text: str, **extra: Any) -> ChatRequest:
    partial = Message(role="assistant", content=text, partial=True)
    return replace(HELLO, messages=(*HELLO.messages, partial), **extra)


def test_a_partial_message_is_continued_and_calls_may_follow(llm: LLM, model: Model) -> None:
    model.say(CALL.removeprefix("Sure. "))
    answer = llm.complete(opened_by("Sure. ", tools=(tool(),)))
    assert T.decode(answer.prompt_ids).endswith("<|im_assistant|>assistant<|im_middle|>Sure. ")
    assert answer.content is None
    assert [call.arguments for call in answer.tool_calls] == ['{"city": "北京"}']
    model.say(" the rest<|im_end|>")
    assert llm.complete(opened_by("Here is")).content == " the rest"
    with pytest.raises(RequestError, match="partial"):
        llm.stream(replace(HELLO, messages=(replace(HELLO.messages[0], partial=True),)))


def test_a_required_call_begins_at_once_behind_a_partial_message(llm: LLM, model: Model) -> None:
    answer = llm.complete(opened_by("Sure. ", tools=(tool(parameters=UNIT),), tool_choice=ToolChoice(mode="required")))
    assert answer.content is None
    assert answer.token_ids[0] == T.tool_calls_section_begin


def test_a_partial_message_and_a_format_of_the_answer_contradict_each_other(llm: LLM) -> None:
    for name in ("response_format", "output_config.format"):
        with pytest.raises(RequestError, match=rf"^{name} .* partial") as refused:
            llm.stream(opened_by('{"a":', answer_format=AnswerFormat(name=name, param=f"{name}.x")))
        assert refused.value.param == f"{name}.x"


def test_the_prompt_s_usage_is_told_first_where_it_was_asked_for(llm: LLM, model: Model) -> None:
    model.say("Hello<|im_end|>")
    first, *_, last = llm.stream(replace(HELLO, tell_prompt=True))
    assert isinstance(last, Finished)
    assert first == PromptRead(replace(last.usage, completion_tokens=0))
    model.say("Hello<|im_end|>")
    assert not any(isinstance(delta, PromptRead) for delta in llm.stream(HELLO))


def test_counted_tokens_are_those_of_the_prompt(llm: LLM, model: Model) -> None:
    model.say("Hello<|im_end|>")
    for request in (replace(HELLO, tools=(tool(),)), opened_by("It")):
        assert llm.count_tokens(request) == llm.complete(request).usage.prompt_tokens


def test_max_tokens_may_be_clipped_to_what_the_context_leaves(llm: LLM, model: Model) -> None:
    model.say("the " * CONTEXT)
    with pytest.raises(ContextError):
        llm.complete(replace(HELLO, max_tokens=CONTEXT))
    usage = llm.complete(replace(HELLO, max_tokens=CONTEXT, clip_max_tokens=True)).usage
    assert usage.prompt_tokens + usage.completion_tokens == CONTEXT
    admitted: list[int | None] = []  # what is held for it is what it may use, and a journal has what can be asked again

    async def ask() -> None:
        request = replace(HELLO, max_tokens=10**9, clip_max_tokens=True)
        for answer in llm.astream_choices(request, 1, lambda told: admitted.extend(each.max_tokens for each in told)):
            await answer.aclose()

    asyncio.run(ask())
    assert admitted == [CONTEXT - usage.prompt_tokens]
    model.say("the " * CONTEXT)
    assert llm.complete(replace(HELLO, max_tokens=3, clip_max_tokens=True)).usage.completion_tokens == 3
    with pytest.raises(ContextError) as refused:
        long = (Message(role="user", content="x " * CONTEXT),)
        llm.stream(ChatRequest(messages=long, max_tokens=5, clip_max_tokens=True))
    assert refused.value.param == "messages"
    assert "max_tokens" not in refused.value.message  # whatever it was, the prompt is to blame


def test_the_stop_string_that_ended_the_text_is_told(llm: LLM, model: Model) -> None:
    model.say("Hello the user<|im_end|>")
    last = list(llm.stream(replace(HELLO, stop=("zz", " the"))))[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.stop) == ("stop", " the")


def test_a_script_that_ends_in_the_middle_of_an_answer_ends_in_order() -> None:
    """A thread in a native call used to take the process down with SIGABRT, now and then."""
    script = """
from baltoro.chat.messages import ChatRequest, Message
from baltoro.llm import LLM
hello = ChatRequest(messages=(Message(role="user", content="Hello"),), max_tokens=4000, ignore_eos=True)
answer = LLM.open("nano").stream(hello)
next(answer)
print("over")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "over\n", "")
