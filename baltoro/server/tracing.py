"""ASGI: a span for every request, for OpenTelemetry; inside of it the time in the queue, of the prompt, of the answer.

    POST /v1/chat/completions ─────────────────────────────    under the caller's span, where `traceparent` names one
      queue ───── prefill ────────── decode ────────────

Names are those of the semantic conventions for HTTP and generative AI. Counts, times and settings are told, texts are
not: no prompt, no answer, no stop string, no message of an error.
Source: opentelemetry.io/docs/specs/semconv/gen-ai, opentelemetry.io/docs/specs/semconv/http.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baltoro.answer import Reader
from baltoro.server import tally

Attributes = dict[str, str | bool | int | float | list[str]]


class Tracing:
    """Requests that are posted: what else there is, is asked every few seconds by programs."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        parent = TraceContextTextMapPropagator().extract(headers)
        began_s, zero_ns = time.monotonic(), time.time_ns() - int(time.monotonic() * 1e9)
        span = self._tracer.start_span("POST", parent, SpanKind.SERVER, {"http.request.method": "POST"})
        counted = tally.of(scope)
        counted.trace_id = format_trace_id(span.get_span_context().trace_id)
        status, streamed, failure = tally.GONE, False, None

        async def see(message: Message) -> None:
            nonlocal status, streamed
            if message["type"] == "http.response.start":
                status = message["status"]
                streamed = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            await send(message)

        try:
            return await self._app(scope, receive, see)
        except Exception as error:
            failure = type(error).__qualname__
            raise
        finally:
            if span.is_recording():
                route: Any = getattr(scope.get("route"), "path", None)
                span.update_name(f"POST {route}" if route else "POST")
                span.set_attributes(_http(scope, status, route) | _asked(counted, route, streamed=streamed))
                if tally.ran(status):
                    span.set_attributes(_answered(counted, began_s, streamed=streamed))
                    for number, reader in enumerate(counted.readers):
                        self._phases(span, reader, number, zero_ns)
                if status >= 500:
                    failure = str(status)
                elif failure is None and "error" in counted.finishes:
                    failure = "engine"
                if failure is not None:
                    span.set_attribute("error.type", failure)
                    span.set_status(StatusCode.ERROR)
            span.end()

    def _phases(self, span: Span, reader: Reader[Any], number: int, zero_ns: int) -> None:
        """Children of `span`, as far as the answer got. Behind a URL the first token is all that is heard of."""
        marks, over_s = reader.marks, reader.over_s or time.monotonic()
        if marks is None:  # it was never submitted: the client left, or another choice was refused
            return
        first_s = marks.first_s if marks.began_s is not None else reader.first_s
        starts = [("queue", marks.arrived_s), ("prefill", marks.began_s), ("decode", first_s)]
        if marks.began_s is None and first_s is not None:
            starts[0] = ("first_token", marks.arrived_s)
        reached = [(name, at) for name, at in starts if at is not None]
        ends = [*(at for _, at in reached[1:]), max(over_s, reached[-1][1])]
        usage, inside = reader.usage, set_span_in_context(span)
        for (name, at), end in zip(reached, ends, strict=True):
            told: Attributes = {"baltoro.choice": number}
            if name == "decode":
                told["gen_ai.usage.output_tokens"] = usage.completion_tokens
            elif name != "queue":
                told["gen_ai.usage.input_tokens"] = usage.prompt_tokens
                told["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
            child = self._tracer.start_span(name, inside, attributes=told, start_time=zero_ns + int(at * 1e9))
            child.end(zero_ns + int(end * 1e9))


def _http(scope: Scope, status: int, route: str | None) -> Attributes:
    found: Attributes = {
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "http.response.status_code": status,
        "baltoro.request_id": scope["state"]["request_id"],
    }
    if route is not None:
        found["http.route"] = route
    if scope.get("client"):
        found["client.address"] = scope["client"][0]
    return found


def _asked(counted: tally.Tally, route: str | None, *, streamed: bool) -> Attributes:
    """How the answer was to be; what was left at its default is not told."""
    if counted.model is None:
        return {}
    found: Attributes = {
        "gen_ai.provider.name": "baltoro",
        "gen_ai.operation.name": "text_completion" if route == "/v1/completions" else "chat",
        "gen_ai.request.model": counted.model,
        "gen_ai.request.stream": streamed,
    }
    readers = list(counted.readers)
    if not readers:
        return found
    wishes = readers[0].wishes
    if len(readers) > 1:
        found["gen_ai.request.choice.count"] = len(readers)
    if wishes.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = wishes.max_tokens
    if wishes.seed is not None:
        found["gen_ai.request.seed"] = wishes.seed
    if wishes.top_k:
        found["gen_ai.request.top_k"] = wishes.top_k
    return found | {
        "gen_ai.request.temperature": wishes.temperature,
        "gen_ai.request.top_p": wishes.top_p,
        "gen_ai.request.frequency_penalty": wishes.frequency_penalty,
        "gen_ai.request.presence_penalty": wishes.presence_penalty,
    }


def _answered(counted: tally.Tally, began_s: float, *, streamed: bool) -> Attributes:
    if (usage := counted.usage) is None:
        return {}
    found: Attributes = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    if finishes := counted.finishes:
        found["gen_ai.response.finish_reasons"] = finishes
    first = [each.first_s for each in counted.readers if each.first_s is not None]
    if streamed and first:
        found["gen_ai.response.time_to_first_chunk"] = min(first) - began_s
    return found
