"""Where spans go: a collector of OpenTelemetry, by HTTP. Only imported where there is one; needs `baltoro[otel]`.

The SDK reads its own environment variables: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
OTEL_BSP_*, OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT, _CERTIFICATE and their kin.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from baltoro.errors import BaltoroError

_PATH = "/v1/traces"


def exporting(url: str | None) -> TracerProvider:
    """Sends spans in batches, on a thread of its own, until it is shut down.

    url: of the collector, as http://127.0.0.1:4318; None: the environment says so
    """
    exporter = OTLPSpanExporter() if url is None else OTLPSpanExporter(_endpoint(url))
    return provider(BatchSpanProcessor(exporter))


def provider(processor: SpanProcessor) -> TracerProvider:
    """It belongs to its caller: the process's own one, if there is any, is left alone."""
    try:
        number = version("baltoro")
    except PackageNotFoundError:  # a source tree that is not installed
        number = "0"
    resource = Resource.create({"service.version": number})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # nobody said another
        resource = resource.merge(Resource({"service.name": "baltoro"}))
    made = TracerProvider(resource=resource, shutdown_on_exit=False)
    made.add_span_processor(processor)
    return made


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets or a port that are none
        known = False
    if not known:
        raise BaltoroError(f"--otlp {url!r} is no address", hint="as http://127.0.0.1:4318")
    return url.rstrip("/").removesuffix(_PATH) + _PATH
