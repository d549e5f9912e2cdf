"""Spans as OpenTelemetry's own SDK receives them, against what the engine and the client know."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="pip install 'baltoro[otel]'")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import client_attributes, error_attributes, http_attributes, url_attributes
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from starlette.types import ASGIApp

from baltoro.chat.messages import TextDelta
from baltoro.errors import EngineError, QueueFull
from baltoro.llm import LLM
from baltoro.server import otlp
from baltoro.server.access import AccessLog
from baltoro.server.app import Served, create_app
from baltoro.server.tracing import Tracing
from tests.engine.upstream.faulty import FaultyUpstream
from tests.server.script import Script
from tests.test_upstreams import nano

SECRET = "my-secret-prompt"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}]}
CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # trace, span: the example of the W3C's document


class Collector:
    """Everything that was sent, in the order in which it ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = otlp.provider(SimpleSpanProcessor(self.exporter))

    @property
    def tracer(self) -> Tracer:
        return self.provider.get_tracer("test")

    def spans(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """The one request's, and its children by when they began."""
        *children, request = self.exporter.get_finished_spans()
        assert request.kind is SpanKind.SERVER
        assert all(each.parent and each.parent.span_id == request.context.span_id for each in children)
        return request, sorted(children, key=lambda each: (each.attributes["baltoro.choice"], each.start_time))

    def everything(self) -> str:
        return "".join(span.to_json() for span in self.exporter.get_finished_spans())


@pytest.fixture
def collector() -> Collector:
    return Collector()


def app(llm: object, collector: Collector) -> ASGIApp:
    served = Served(llm=llm, names=("tiny",))  # type: ignore[arg-type]
    return create_app(served, watch=[AccessLog, lambda inner: Tracing(inner, collector.tracer)])


def post(app: ASGIApp, body: dict, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            return await client.post(path, json=body, headers=headers)

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Path) -> Iterator[LLM]:
    with closing(LLM.open(tiny_checkpoint, max_context=512)) as llm:
        yield llm


def test_a_chat_is_a_span_with_what_was_asked_and_used(collector: Collector, llm: LLM) -> None:
    wishes = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 3,
        "ignore_eos": True,
        "stop": SECRET,
    }
    before = time.time_ns()
    answer = post(app(llm, collector), BODY | wishes, **{"x-request-id": "mine-1"})
    usage = answer.json()["usage"]
    request, children = collector.spans()
    assert request.name == "POST /v1/chat/completions"
    assert request.status.status_code is StatusCode.UNSET
    assert request.attributes == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
        "url.path": "/v1/chat/completions", "url.scheme": "http", "client.address": "127.0.0.1",
        "baltoro.request_id": "mine-1",
        "gen_ai.provider.name": "baltoro", "gen_ai.operation.name": "chat", "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 7, "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 5, "gen_ai.request.seed": 3, "gen_ai.request.stream": False,
        "gen_ai.request.frequency_penalty": 0.0, "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"], "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
    }  # fmt: skip
    assert [each.name for each in children] == ["queue", "prefill", "decode"]
    times = [before, request.start_time, *(at for each in children for at in (each.start_time, each.end_time))]
    slack = 1_000_000  # ns: two clocks are read one after the other
    assert all(late - early > -slack for early, late in zip(times, [*times[1:], request.end_time], strict=True))
    queue, prefill, decode = children
    assert (queue.end_time, prefill.end_time) == (prefill.start_time, decode.start_time)
    assert decode.end_time > decode.start_time < request.end_time
    assert prefill.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert decode.attributes["gen_ai.usage.output_tokens"] == 7
    assert SECRET not in collector.everything()


def test_every_name_is_one_of_the_conventions_or_ours(collector: Collector, llm: LLM) -> None:
    post(app(llm, collector), BODY | {"n": 2, "max_tokens": 3, "stream": True, "top_k": 2, "seed": 1})
    modules = (gen_ai_attributes, http_attributes, url_attributes, client_attributes, error_attributes)
    known = {value for each in modules for value in vars(each).values() if isinstance(value, str)}
    request, children = collector.spans()
    for span in (request, *children):
        assert {name for name in span.attributes if not name.startswith("baltoro.")} <= known


def test_each_choice_has_its_phases_and_the_prompt_is_counted_once(collector: Collector, llm: LLM) -> None:
    body = {"model": "tiny", "prompt": [1, 2, 3], "n": 2, "max_tokens": 4, "ignore_eos": True, "stream": True}
    began = time.monotonic()
    post(app(llm, collector), body, "/v1/completions")
    took = time.monotonic() - began
    request, children = collector.spans()
    assert request.attributes["gen_ai.operation.name"] == "text_completion"
    assert request.attributes["gen_ai.request.choice.count"] == 2
    assert request.attributes["gen_ai.usage.input_tokens"] == 3
    assert request.attributes["gen_ai.usage.output_tokens"] == 8
    assert 0 < request.attributes["gen_ai.response.time_to_first_chunk"] < took
    assert [(each.name, each.attributes["baltoro.choice"]) for each in children] == [
        (name, choice) for choice in (0, 1) for name in ("queue", "prefill", "decode")
    ]


def test_a_caller_s_trace_goes_on_and_a_broken_header_begins_a_new_one(collector: Collector, llm: LLM) -> None:
    body = BODY | {"max_tokens": 1}
    post(app(llm, collector), body, traceparent=f"00-{CALLER[0]}-{CALLER[1]}-01")
    request, children = collector.spans()
    assert request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == CALLER
    assert {each.context.trace_id for each in children} == {request.context.trace_id}
    collector.exporter.clear()
    post(app(llm, collector), body, traceparent=f"00-{CALLER[0]}-{CALLER[1]}-00")
    assert not collector.exporter.get_finished_spans(), "the caller does not sample it"
    post(app(llm, collector), body, traceparent="00-what-is-this-01")
    request, _ = collector.spans()
    assert request.parent is None


def test_the_log_names_the_trace(collector: Collector, llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "baltoro.access")
    post(app(llm, collector), BODY | {"max_tokens": 1})
    (line,) = [each for each in caplog.records if each.name == "baltoro.access"]
    assert line.facts["trace_id"] == f"{collector.spans()[0].context.trace_id:032x}"


def test_what_is_refused_is_a_span_without_phases_and_no_error_of_ours(collector: Collector, llm: LLM) -> None:
    post(app(llm, collector), BODY | {"model": "another"})
    request, children = collector.spans()
    assert not children
    assert request.attributes["http.response.status_code"] == 404
    assert request.status.status_code is StatusCode.UNSET
    assert not [name for name in request.attributes if name.startswith("gen_ai.")]


def test_a_path_that_nobody_has_is_not_in_a_span_s_name(collector: Collector) -> None:
    post(app(Script(), collector), {}, "/invented/by/a/client")
    request, _ = collector.spans()
    assert request.name == "POST"
    assert "http.route" not in request.attributes


def test_nothing_but_what_is_posted_is_traced(collector: Collector) -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(app(Script(), collector))
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            assert (await client.get("/health")).status_code == 200

    asyncio.run(ask())
    assert not collector.exporter.get_finished_spans()


def test_a_fault_is_an_error_and_tells_its_kind_alone(collector: Collector) -> None:
    script = Script()
    script.refusal = KeyError(SECRET)
    assert post(app(script, collector), BODY).status_code == 500
    request, _ = collector.spans()
    assert request.status.status_code is StatusCode.ERROR
    assert request.attributes["error.type"] == "500"
    assert "gen_ai.usage.input_tokens" not in request.attributes
    assert SECRET not in collector.everything()


def test_an_engine_that_fails_in_the_middle_of_a_stream_is_an_error(
    collector: Collector, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status was 200 by then."""
    from baltoro.answer import ChatReader

    read = ChatReader.read

    def fail(self: ChatReader, step):
        if len(self.tokens) == 2:
            self.over, self.over_s = True, time.monotonic()
            raise EngineError("broken")
        return read(self, step)

    monkeypatch.setattr(ChatReader, "read", fail)
    answer = post(app(llm, collector), BODY | {"stream": True, "max_tokens": 9, "ignore_eos": True})
    assert answer.status_code == 200
    assert "broken" in answer.text
    request, children = collector.spans()
    assert request.status.status_code is StatusCode.ERROR
    assert request.attributes["error.type"] == "engine"
    assert request.attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert children[-1].name == "decode"
    assert children[-1].attributes["gen_ai.usage.output_tokens"] == 2


def test_the_resource_is_baltoro_unless_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Collector().provider.resource.attributes["service.name"] == "baltoro"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway-7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    attributes = Collector().provider.resource.attributes
    assert attributes["service.name"] == "gateway-7"
    assert attributes["deployment.environment.name"] == "test"


def test_a_whole_trace_is_json_that_names_no_text(collector: Collector) -> None:
    script = Script()
    script.deltas = [TextDelta(SECRET), *script.deltas]
    post(
        app(script, collector),
        BODY | {"tools": [{"type": "function", "function": {"name": "f", "description": SECRET}}]},
    )
    json.loads(collector.spans()[0].to_json())
    assert SECRET not in collector.everything()


def test_a_full_queue_is_a_span_without_phases(collector: Collector, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise QueueFull("the queue is full", retry_after_s=1)

    monkeypatch.setattr(llm.engine, "submit", full)
    assert post(app(llm, collector), BODY).status_code == 429
    request, children = collector.spans()
    assert not children
    assert request.attributes["gen_ai.request.model"] == "tiny"
    assert "gen_ai.usage.input_tokens" not in request.attributes


def test_who_leaves_in_the_middle_ends_the_span_with_what_was_computed(collector: Collector, llm: LLM) -> None:
    """The client hears the first event, and nothing of it can be sent any more."""

    async def ask() -> None:
        sent: list[dict] = []
        heard = asyncio.Event()
        body = json.dumps(BODY | {"stream": True, "max_tokens": 300, "ignore_eos": True}).encode()
        incoming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            if incoming:
                return incoming.pop()
            await heard.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)
            if message.get("body"):
                heard.set()

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions",
            "scheme": "http", "http_version": "1.1", "query_string": b"", "root_path": "", "client": None,
            "headers": [(b"content-type", b"application/json")], "server": ("tiny", 80), "asgi": {"version": "3.0"},
        }  # fmt: skip
        await app(llm, collector)(scope, receive, send)

    asyncio.run(ask())
    request, children = collector.spans()
    assert request.attributes["gen_ai.response.finish_reasons"] == ("left",)
    assert request.attributes["gen_ai.usage.output_tokens"] < 300
    assert [each.name for each in children] == ["queue", "prefill", "decode"]
    assert request.status.status_code is StatusCode.UNSET


def test_behind_a_url_the_first_token_is_all_that_is_timed(collector: Collector) -> None:
    upstream = FaultyUpstream(nano(), "vllm")
    try:
        with closing(LLM.connect("nano", [upstream.url])) as gateway:
            post(app(gateway, collector), BODY | {"max_tokens": 4, "ignore_eos": True})
    finally:
        upstream.close()
    request, children = collector.spans()
    assert [each.name for each in children] == ["first_token", "decode"]
    assert children[0].end_time == children[1].start_time
    assert children[0].attributes["gen_ai.usage.input_tokens"] == request.attributes["gen_ai.usage.input_tokens"]
    assert children[1].attributes["gen_ai.usage.output_tokens"] == 4
