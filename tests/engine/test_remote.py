from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from baltoro.engine.engine import Engine
from baltoro.engine.remote import RemoteEngine
from baltoro.engine.request import FinishReason, Request, SamplingParams, Step
from baltoro.engine.upstream.connection import Patience
from baltoro.errors import ContextError, EngineError, RequestError
from baltoro.structure import Document
from tests.engine import fake
from tests.engine.fake import HashModel, Listener, expected
from tests.engine.upstream.faulty import Fault, FaultyUpstream

DIALECTS = ["vllm", "sglang", "llama-server"]
QUICK = Patience(connect_s=5, first_token_s=10, silence_s=10, health_s=5, probe_s=0.05)
PROMPT = [3, 1, 4, 1, 5, 9]
Open = Callable[..., tuple[RemoteEngine, list[FaultyUpstream]]]


@pytest.fixture
def connect() -> Iterator[Open]:
    """Upstreams of the named dialects, and an engine in front of them."""
    opened: list[Any] = []

    def make(*dialects: str, patience: Patience = QUICK, **given: Any) -> tuple[RemoteEngine, list[FaultyUpstream]]:
        upstreams = [FaultyUpstream(Engine(HashModel(), fake.engine_config()), dialect) for dialect in dialects]
        opened.extend(upstreams)
        given = {"vocab_size": fake.VOCAB, "max_context": 200, "patience": patience} | given
        engine = RemoteEngine([each.url for each in upstreams], **given)
        opened.insert(0, engine)
        return engine, upstreams

    yield make
    for each in opened:
        each.stop(drain=False) if isinstance(each, RemoteEngine) else each.close()


def ask(engine: RemoteEngine, prompt: list[int] | None = None, **given: Any) -> Listener:
    request, listener = fake.request(PROMPT if prompt is None else prompt, **({"max_tokens": 12} | given))
    engine.submit(request)
    return listener


def truth(prompt: list[int] | None = None, **sampling: Any) -> list[int]:
    return expected(PROMPT if prompt is None else prompt, SamplingParams(**({"max_tokens": 12} | sampling)))


# ── what comes back ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_upstream_says_what_our_own_engine_says(connect: Open, dialect: str) -> None:
    engine, (upstream,) = connect(dialect)
    tokens = truth()
    stop = tokens[7]
    assert ask(engine).wait().tokens == tokens
    stopped = ask(engine, stop_token_ids=frozenset({stop})).wait()
    assert (stopped.tokens, stopped.finish) == (tokens[: tokens.index(stop) + 1], FinishReason.STOP)
    late = ask(engine, stop_token_ids=frozenset({stop}), min_tokens=10).wait()
    assert late.tokens == truth(stop_token_ids=frozenset({stop}), min_tokens=10)
    assert ask(engine, [7] * 195, max_tokens=50).wait().finish is FinishReason.LENGTH  # the context ends first
    assert upstream.engine.healthy


@pytest.mark.parametrize("dialect", DIALECTS)
def test_many_requests_at_once_hear_what_each_hears_alone(connect: Open, dialect: str) -> None:
    engine, _ = connect(dialect, dialect)
    prompts = [[number, *PROMPT] for number in range(20)]
    listeners = [ask(engine, prompt) for prompt in prompts]
    for prompt, listener in zip(prompts, listeners, strict=True):
        assert listener.wait().tokens == truth(prompt)
    engine.stop()
    statistics = engine.statistics()
    assert (statistics.running, statistics.generated_tokens) == (0, 240)
    assert all(each.requests >= 5 for each in statistics.upstreams), "one of them got nearly nothing"


class Even:
    """Even ids only, and never the same twice; describes itself as what no upstream here honours."""

    def __init__(self) -> None:
        self.left = np.arange(fake.VOCAB) % 2 == 0

    def mask(self) -> np.ndarray:
        return self.left

    def advance(self, token: int) -> None:
        assert self.left[token]
        self.left = self.left.copy()
        self.left[token] = False

    def describe(self) -> Document:
        return Document(schema={"type": "object"})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_constraint_holds_in_front_of_an_upstream_that_knows_none(connect: Open, dialect: str) -> None:
    engine, (upstream,) = connect(dialect)
    with Engine(HashModel(), fake.engine_config()) as own:
        request, there = fake.request(PROMPT, max_tokens=30, constraint=Even())
        own.submit(request)
        own_tokens = there.wait().tokens
    listener = ask(engine, max_tokens=30, constraint=Even())
    listener.ended.wait(20)
    # The 26th even id does not exist: both end with an error of the empty mask, after the same 25.
    assert listener.tokens == own_tokens == list(dict.fromkeys(own_tokens))
    assert len(own_tokens) == 25
    assert engine.statistics().corrections > 5
    names = {
        "vllm": ("structured_outputs",),
        "sglang": ("sampling_params", "json_schema"),
        "llama-server": ("json_schema",),
    }
    first: Any = upstream.bodies[0]
    for name in names[dialect]:
        first = first[name]
    assert "object" in str(first)


def test_a_structure_that_an_upstream_cannot_compile_is_left_out(connect: Open) -> None:
    engine, (upstream,) = connect("vllm")
    upstream.faults = [Fault(status=400)]
    assert len(ask(engine, max_tokens=8, constraint=Even()).wait().tokens) == 8
    assert "structured_outputs" in upstream.bodies[0]
    assert all("structured_outputs" not in body for body in upstream.bodies[1:])


def test_tokens_inside_of_a_character_which_llama_server_does_not_stream_are_asked_for_again(connect: Open) -> None:
    engine, (upstream,) = connect("llama-server")
    tokens = truth()
    upstream.partial = {tokens[0], tokens[3], tokens[11]}
    assert ask(engine).wait().tokens == tokens
    assert len(upstream.bodies) >= 3


# ── faults ───────────────────────────────────────────────────────────────────────────────────────

BEFORE = [
    Fault(reset=True),
    Fault(status=500),
    Fault(status=429, headers={"Retry-After": "1"}),
    Fault(status=503),
    Fault(after=0, then="close"),
    Fault(after=0, then="garble"),
    Fault(after=0, then="error"),
    Fault(after=0, then="end"),
]


@pytest.mark.parametrize("fault", BEFORE, ids=str)
def test_what_fails_before_the_first_token_is_told_by_another(connect: Open, fault: Fault) -> None:
    engine, upstreams = connect("vllm", "vllm")
    for each in upstreams:
        each.faults = [fault]
    upstreams[1].faults = []
    assert ask(engine).wait().tokens == truth()
    assert [len(each.bodies) for each in upstreams] == [1, 1]
    assert engine.statistics().retries == 1


@pytest.mark.parametrize("then", ["close", "garble", "error", "end"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_fails_in_the_middle_ends_with_an_error_and_nobody_else_notices(
    connect: Open, dialect: str, then: str
) -> None:
    engine, (broken, other) = connect(dialect, dialect)
    broken.faults = [Fault(after=5, then=then)]
    first, second = ask(engine), ask(engine, [8, 8, 8])
    assert first.wait().finish is FinishReason.ERROR
    assert first.tokens == truth()[:5]
    error = first.steps[-1].error
    assert isinstance(error, EngineError)
    assert broken.url in str(error) and "after 5 tokens" in str(error)
    assert second.wait().tokens == truth([8, 8, 8])
    assert len(other.bodies) == 1, "a request that has failed is not carried on"
    engine.stop()
    assert [each.running for each in engine.statistics().upstreams] == [0, 0]


def test_silence_before_the_first_token_sends_a_request_elsewhere(connect: Open) -> None:
    engine, (silent, other) = connect("vllm", "vllm", patience=replace(QUICK, first_token_s=1.0))
    silent.faults = [Fault(after=0, then="hang")]
    assert ask(engine).wait().tokens == truth()
    assert len(other.bodies) == 1
    assert silent.left.wait(10), "its connection stays open"


def test_silence_behind_the_first_token_ends_it(connect: Open) -> None:
    engine, (silent,) = connect("vllm", patience=replace(QUICK, silence_s=1.0))
    silent.faults = [Fault(after=4, then="hang")]
    listener = ask(engine).wait()
    assert (listener.finish, listener.tokens) == (FinishReason.ERROR, truth()[:4])
    assert "no token for 1 s" in str(listener.steps[-1].error)
    assert silent.left.wait(10), "its connection stays open"
    assert ask_until_answered(engine) == truth()


def test_when_all_fail_the_error_names_each_and_they_come_back(connect: Open) -> None:
    engine, upstreams = connect("vllm", "llama-server")
    for each in upstreams:
        each.ill = True
        each.faults = [Fault(status=500)] * 3
    listener = ask(engine).wait()
    assert listener.finish is FinishReason.ERROR
    assert all(each.url in str(listener.steps[-1].error) for each in upstreams)
    assert engine.fault is not None and "no upstream" in engine.fault
    for each in upstreams:
        each.ill, each.faults = False, []
    assert ask_until_answered(engine) == truth()
    assert engine.healthy


def ask_until_answered(engine: RemoteEngine) -> list[int]:
    for _ in range(20):  # each waits a moment for an upstream that comes back
        listener = ask(engine).wait()
        if listener.finish is not FinishReason.ERROR:
            return listener.tokens
    raise AssertionError("nobody came back")


def test_a_server_whose_engine_died_is_not_taken_for_well(connect: Open) -> None:
    engine, (ill, well) = connect("vllm", "vllm")
    ill.ill, ill.faults = True, [Fault(status=500)]
    assert ask(engine).wait().tokens == truth()
    for number in range(6):
        assert ask(engine, [number]).wait().tokens == truth([number])
    assert len(ill.bodies) == 1 and len(well.bodies) == 7, "its /health answers, it got requests all the same"
    assert engine.statistics().upstreams[0].fault is not None
    assert engine.healthy


def test_an_answer_about_health_does_not_make_up_for_a_failure_since_the_question(connect: Open) -> None:
    engine, (upstream,) = connect("vllm")
    upstream.patient.clear()
    upstream.asked.clear()
    assert upstream.asked.wait(10), "nobody asks"
    upstream.ill, upstream.faults = True, [Fault(status=500)]
    upstream.probed.clear()
    failing = ask(engine)
    while not engine.statistics().upstreams[0].failures:
        failing.ended.wait(0.01)
    upstream.patient.set()
    assert upstream.probed.wait(10), "it is taken for well, without a token"
    assert failing.wait().finish is FinishReason.ERROR
    assert len(upstream.bodies) == 1


def test_one_may_be_away_at_the_start_but_not_all(connect: Open) -> None:
    engine, _ = connect("vllm")
    away = "http://127.0.0.1:9"  # the port of discard: nobody listens
    with pytest.raises(EngineError, match="no upstream answers"):
        RemoteEngine([away], vocab_size=fake.VOCAB, max_context=100, patience=QUICK)
    here = engine.statistics().upstreams[0].url
    both = RemoteEngine([away, here], vocab_size=fake.VOCAB, max_context=100, patience=QUICK)
    try:
        assert ask(both).wait().tokens == truth()
        assert both.healthy and both.statistics().upstreams[0].fault is not None
    finally:
        both.stop()


def test_an_upstream_that_comes_later_with_less_context_gets_nothing(connect: Open) -> None:
    _, (small, large) = connect("vllm", "vllm")
    small.context, small.down = 20, True
    late = RemoteEngine([small.url, large.url], vocab_size=fake.VOCAB, max_context=200, patience=QUICK)
    try:
        small.down = False
        assert small.named.wait(10), "nobody looks whether it is there"
        for number in range(6):
            assert ask(late, [number]).wait().tokens == truth([number])
        assert not small.bodies
    finally:
        late.stop()


def test_an_upstream_with_another_vocabulary_or_of_another_kind_is_refused(connect: Open) -> None:
    with pytest.raises(EngineError, match="its model has 50 tokens, the tokenizer here 51"):
        connect("llama-server", vocab_size=51)
    for url in ("10.0.0.7:8000", "ftp://host", "http://", "http://[::1", "http://h:x"):
        with pytest.raises(EngineError, match="is no address"):
            RemoteEngine([url], vocab_size=fake.VOCAB, max_context=100)


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_cancelling_closes_the_connection(connect: Open, dialect: str, after: int) -> None:
    engine, (upstream,) = connect(dialect)
    upstream.faults = [Fault(after=after, then="hang")]
    heard = threading.Semaphore(0)
    listener = Listener()

    def sink(step: Step) -> None:
        listener(step)
        heard.release()

    request = Request(prompt=PROMPT, sampling=SamplingParams(max_tokens=12), sink=sink)
    engine.submit(request)
    assert upstream.holding.wait(10)
    assert all(heard.acquire(timeout=10) for _ in range(after))
    engine.cancel(request)
    assert listener.wait().finish is FinishReason.CANCELLED
    assert listener.tokens == truth()[:after]
    assert upstream.left.wait(10), "the upstream goes on for nobody"
    engine.cancel(request)  # it has ended: nothing happens
    assert ask(engine).wait().tokens == truth()
    assert engine.healthy


def test_cancelled_at_once_it_still_ends_once(connect: Open) -> None:
    engine, _ = connect("vllm")
    for _ in range(20):
        request, listener = fake.request(PROMPT)
        engine.submit(request)
        engine.cancel(request)
        assert listener.wait().finish in (FinishReason.CANCELLED, FinishReason.LENGTH)


def test_a_sink_that_raises_ends_its_own_request_only(connect: Open) -> None:
    engine, (upstream,) = connect("vllm")
    upstream.faults = [Fault(after=2, then="hang")]

    def deaf(step: object) -> None:
        raise ZeroDivisionError

    engine.submit(Request(prompt=PROMPT, sampling=SamplingParams(max_tokens=4), sink=deaf))
    assert upstream.left.wait(10)
    assert ask(engine).wait().tokens == truth()


@pytest.mark.parametrize("drain", [True, False])
def test_stopping_ends_everything_that_is_under_way(connect: Open, drain: bool) -> None:
    engine, (upstream,) = connect("vllm")
    upstream.faults = [Fault(after=2, then="hang")]
    hanging = ask(engine)
    assert upstream.holding.wait(10)
    whole = ask(engine, [5])
    whole.wait()
    engine.stop(drain=drain, timeout_s=0.2)
    assert hanging.wait().finish is FinishReason.ERROR
    assert "stopped" in str(hanging.steps[-1].error)
    assert not engine.healthy
    with pytest.raises(EngineError, match="stopped"):
        ask(engine)
    engine.stop()  # a second time: nothing happens


def test_a_sink_may_stop_the_engine(connect: Open) -> None:
    engine, _ = connect("vllm")
    steps: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = threading.Event()

    def sink(step: Any) -> None:
        steps.put(step)
        if not stopped.is_set():
            stopped.set()
            engine.stop(drain=False)

    engine.submit(Request(prompt=PROMPT, sampling=SamplingParams(max_tokens=100), sink=sink))
    while steps.get(timeout=10).finish is None:
        pass
    engine.stop()
    assert not engine.healthy


# ── requests that are refused ────────────────────────────────────────────────────────────────────


def test_what_cannot_be_honoured_is_refused_before_anything_is_sent(connect: Open) -> None:
    engine, upstreams = connect("vllm", "sglang", "llama-server")
    for given, word in [
        ({"logit_bias": {3: 200.0}}, "logit_bias"),
        ({"logit_bias": {50: 1.0}}, "logit_bias"),
        ({"logprobs": 2}, "logprobs"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"repetition_penalty": 3.0}, "repetition_penalty"),
        ({"temperature": 1.0, "logprobs": 0, "tempered_logprobs": True}, "tempered"),
    ]:
        with pytest.raises(RequestError, match=word):
            ask(engine, **given)
    with pytest.raises(RequestError, match="empty"):
        ask(engine, [])
    with pytest.raises(RequestError, match="prompt has id 50"):
        ask(engine, [1, 50])
    with pytest.raises(ContextError):
        ask(engine, [1] * 200)
    request = Request(prompt=PROMPT, sampling=SamplingParams(max_tokens=1), sink=print, prompt_logprobs=1)
    with pytest.raises(RequestError, match="of a prompt"):
        engine.submit(request)
    assert not any(each.bodies for each in upstreams)


def test_an_upstream_that_refuses_a_request_is_quoted(connect: Open) -> None:
    engine, (upstream,) = connect("vllm")
    upstream.faults = [Fault(status=400)]
    listener = ask(engine).wait()
    assert "refuses the request: HTTP 400: fault 400" in str(listener.steps[-1].error)
    assert engine.healthy, "it was the request's fault"
