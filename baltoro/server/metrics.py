"""`GET /metrics`: what the engine and the HTTP side count, in Prometheus' text form.

Names are vLLM's with `baltoro:` for `vllm:` where vLLM has the same number; dashboards need that one change. Numbers
are those of `GET /stats`, which the engine keeps anyway: nothing is counted twice.
Source: prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4; vllm/v1/metrics/loggers.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baltoro.chat.messages import Json
from baltoro.errors import AccessError, BaltoroError, QueueFull, SpentError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "baltoro:"


class Meaning(NamedTuple):
    name: str
    kind: str  # counter, gauge, histogram
    help: str


# A field of `engine` in GET /stats -> its metric. Engines behind URLs have fewer fields.
ENGINE = {
    "running": Meaning("num_requests_running", "gauge", "Requests that hold pages of the cache"),
    "waiting": Meaning("num_requests_waiting", "gauge", "Requests submitted or preempted"),
    "prefilled_tokens": Meaning("prompt_tokens_total", "counter", "Prompt tokens computed"),
    "generated_tokens": Meaning("generation_tokens_total", "counter", "Tokens generated"),
    "preemptions": Meaning("num_preemptions_total", "counter", "Requests stopped for a page"),
    "queried_tokens": Meaning("prefix_cache_queries_total", "counter", "Prompt tokens looked for in the prefix cache"),
    "reused_tokens": Meaning("prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache"),
    "evicted_pages": Meaning("prefix_cache_evicted_pages_total", "counter", "Pages that left the prefix cache"),
    "spilled_bytes": Meaning("prefix_cache_spilled_bytes_total", "counter", "Bytes of pages written to disk"),
    "restored_bytes": Meaning("prefix_cache_restored_bytes_total", "counter", "Bytes of pages read from disk"),
    "drafted_tokens": Meaning("spec_decode_num_draft_tokens_total", "counter", "Tokens guessed"),
    "foreseen_tokens": Meaning("spec_decode_num_accepted_tokens_total", "counter", "Guesses the model agreed with"),
    "steps": Meaning("engine_steps_total", "counter", "Forwards of the engine"),
    "failed_steps": Meaning("engine_failed_steps_total", "counter", "Forwards that failed"),
    "restarts": Meaning("engine_restarts_total", "counter", "Times the engine was made anew"),
    "corrections": Meaning("upstream_corrections_total", "counter", "Tokens of upstreams that were drawn again"),
    "retries": Meaning("upstream_retries_total", "counter", "Asks that went to another upstream"),
}
STORE = {
    "hits": Meaning("expert_hits_total", "counter", "Uses of experts that were in memory"),
    "misses": Meaning("expert_misses_total", "counter", "Uses of experts that were read from disk"),
    "bytes_read": Meaning("expert_read_bytes_total", "counter", "Bytes of experts read"),
    "waited_s": Meaning("expert_waited_seconds_total", "counter", "Seconds without an expert to multiply with"),
}
HISTOGRAMS = {
    "request_queue_time_seconds": "From arrival to the first step",
    "time_to_first_token_seconds": "From arrival to the first token",
    "request_time_per_output_token_seconds": "Mean between tokens of a request",
    "e2e_request_latency_seconds": "From arrival to the end",
    "iteration_tokens_total": "Rows of a step",
}
_CACHE = Meaning("kv_cache_usage_perc", "gauge", "Share of pages that requests hold, 0 to 1")
_FINISHED = Meaning("request_success_total", "counter", "Requests by how they ended")
_PHASES = Meaning("engine_phase_seconds_total", "counter", "Seconds of steps by phase")
_REQUESTS = Meaning("http_requests_total", "counter", "Answers by method, route and status")
_OPEN = Meaning("http_requests_running", "gauge", "HTTP requests under way")
_REFUSED = Meaning("refused_requests_total", "counter", "Requests refused: key, model, a limit of a key, the queue")
_HEALTHY = Meaning("healthy", "gauge", "1 while the engine answers")


@dataclass(slots=True)
class HttpCounts:
    """Of one server, since its start."""

    running: int = 0
    answers: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])  # see _REQUESTS
    refused: Counter[str] = field(default_factory=Counter[str])  # by which limit was met

    def note(self, error: BaltoroError) -> None:
        """Counts an error if it is a refusal: for the key, the model, a limit of the key, the queue."""
        if isinstance(error, SpentError):
            self.refused[error.limit] += 1
        elif isinstance(error, AccessError):
            self.refused["key" if error.status == 401 else "model"] += 1
        elif isinstance(error, QueueFull):
            self.refused["queue"] += 1


class Counting:
    """ASGI: counts what passes. Labels are routes as they are declared, never paths that clients invent."""

    def __init__(self, app: ASGIApp, counts: HttpCounts, routes: Collection[str]) -> None:
        """routes: paths that are counted by their name even where nothing got as far as a route"""
        self._app = app
        self._counts = counts
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = "499"  # the client left before there was one

        async def see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        self._counts.running += 1
        try:
            await self._app(scope, receive, see)
        finally:
            self._counts.running -= 1
            self._counts.answers[_method(scope["method"]), self._route(scope), status] += 1

    def _route(self, scope: Scope) -> str:
        declared = getattr(scope.get("route"), "path", None)
        if isinstance(declared, str):
            return declared
        return scope["path"] if scope["path"] in self._routes else "other"


def _method(name: str) -> str:
    return name if name in ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS") else "other"


def text(statistics: Mapping[str, Json], http: HttpCounts, *, model: str, healthy: bool) -> str:
    """The whole page. statistics: as GET /stats has them; metrics of what is not there are left out."""
    page: list[str] = []

    def put(meaning: Meaning, samples: Iterable[tuple[str, Mapping[str, str], float]]) -> None:
        page.append(f"# HELP {_PREFIX}{meaning.name} {meaning.help}.")
        page.append(f"# TYPE {_PREFIX}{meaning.name} {meaning.kind}")
        for ending, labels, value in samples:
            shown = ",".join(f'{name}="{_escaped(label)}"' for name, label in labels.items())
            page.append(f"{_PREFIX}{meaning.name}{ending}{f'{{{shown}}}' if shown else ''} {_number(value)}")

    here = {"model_name": model}
    engine: Mapping[str, Any] = statistics["engine"] or {}
    for values, meanings in ((engine, ENGINE), (statistics["store"] or {}, STORE)):
        for name, meaning in meanings.items():
            if name in values:
                put(meaning, [("", here, values[name])])
    if engine.get("num_pages"):
        put(_CACHE, [("", here, 1 - engine["free_pages"] / engine["num_pages"])])
    for kind, label, meaning in (("finished", "finished_reason", _FINISHED), ("phase_seconds", "phase", _PHASES)):
        if kind in engine:
            put(meaning, [("", here | {label: name}, value) for name, value in engine[kind].items()])
    for name, histogram in engine.get("histograms", {}).items():
        put(Meaning(name, "histogram", HISTOGRAMS[name]), _histogram(histogram, here))
    put(_HEALTHY, [("", here, healthy)])
    put(_OPEN, [("", {}, http.running)])
    answers = sorted(http.answers.items())
    put(_REQUESTS, [("", {"method": m, "route": r, "status": s}, count) for (m, r, s), count in answers])
    put(_REFUSED, [("", {"reason": reason}, count) for reason, count in sorted(http.refused.items())])
    return "\n".join(page) + "\n"


def _histogram(found: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for bound, count in found["buckets"].items():
        yield "_bucket", {**labels, "le": bound}, count
    yield "_sum", labels, found["sum"]
    yield "_count", labels, found["count"]


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(float(value)) if isinstance(value, float) else str(int(value))
