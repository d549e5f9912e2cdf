"""TLS, logs and traces as `baltoro serve` has them: the whole of it in one process, and what its options refuse."""

from __future__ import annotations

import json
import os
import queue
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import typer

from baltoro.cli import operations
from baltoro.cli.operations import LogFormat
from baltoro.errors import BaltoroError
from tests.server.certificates import make

BALTORO = [sys.executable, "-c", "from baltoro.cli import main; main()"]
SECRET = "my-secret-prompt"
NO_TRACES = {name: "" for name in os.environ if name.startswith("OTEL_")}


@contextmanager
def collector() -> Iterator[tuple[str, queue.SimpleQueue[tuple[str, bytes]]]]:
    """Its URL, and what is posted to it: paths and bodies."""
    posted: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.put((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", posted
        server.shutdown()
        thread.join()


def test_a_server_with_tls_logs_in_json_and_traces_from_end_to_end(tiny_checkpoint: Path, tmp_path: Path) -> None:
    trace = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    made = make(tmp_path, "ours", password="open sesame")
    (tmp_path / "password").write_text("open sesame\n")
    tls = [
        "--tls-cert",
        str(made.chain),
        "--tls-key",
        str(made.key),
        "--tls-key-password-file",
        str(tmp_path / "password"),
    ]
    with collector() as (address, posted):
        process = subprocess.Popen(
            [*BALTORO, "serve", str(tiny_checkpoint), "--port", "0", "--threads", "1", "--max-context", "512",
             "--log-format", "json", "--otlp", address, *tls],
            stderr=subprocess.PIPE, text=True, env=os.environ | NO_TRACES,
        )  # fmt: skip
        assert process.stderr is not None
        lines: list[dict] = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["message"].startswith("serving"):
                break
        url = lines[-1]["message"].split(" on ")[1].split()[0]
        assert url.startswith("https://127.0.0.1:")
        body = {"model": "baltoro", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 3}
        transport = httpx.HTTPTransport(verify=ssl.create_default_context(cafile=str(made.chain)), retries=20)
        with httpx.Client(transport=transport, timeout=60) as client:
            answer = client.post(f"{url}/chat/completions", json=body)
        process.send_signal(signal.SIGTERM)
        lines += map(json.loads, process.communicate(timeout=60)[1].splitlines())
        assert process.returncode == 0, lines
        path, sent = posted.get(timeout=20)
    assert path == "/v1/traces"
    spans = trace.ExportTraceServiceRequest.FromString(sent).resource_spans[0].scope_spans[0].spans
    assert {each.name for each in spans} == {"POST /v1/chat/completions", "queue", "prefill", "decode"}
    (access,) = [line for line in lines if line["logger"] == "baltoro.access"]
    assert access["trace_id"] == spans[0].trace_id.hex()
    assert access["completion_tokens"] == answer.json()["usage"]["completion_tokens"] == 3
    assert access["request_id"] == answer.headers["x-request-id"]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert SECRET not in json.dumps(lines)
    assert SECRET.encode() not in sent


def test_errors_too_are_json_where_lines_are(tmp_path: Path) -> None:
    options = ["serve", "--log-format", "json", "--tls-cert", str(tmp_path / "a"), "--tls-key", str(tmp_path / "b")]
    done = subprocess.run([*BALTORO, *options], capture_output=True, text=True, env=os.environ | NO_TRACES)
    assert done.returncode == 1
    line = json.loads(done.stderr)
    assert (line["level"], line["message"]) == (
        "critical",
        f"--tls-cert {tmp_path}/a cannot be read: No such file or directory",
    )


@pytest.mark.parametrize(
    ("given", "named", "told"),
    [
        ((Path("a"), None, None), "--tls-cert", "goes with --tls-key"),
        ((None, Path("b"), None), "--tls-key", "goes with --tls-cert"),
        ((None, None, Path("c")), "--tls-key-password-file", "goes with --tls-cert and --tls-key"),
        ((None, Path("b"), Path("c")), "--tls-key", "goes with --tls-cert"),
    ],
)
def test_half_of_a_certificate_is_wrong_usage(given: tuple, named: str, told: str) -> None:
    with pytest.raises(typer.BadParameter) as found:
        operations.certificate(*given)
    assert (found.value.param_hint, found.value.message) == (named, told)
    assert operations.certificate(None, None, None) is None


@pytest.fixture(autouse=True)
def _no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_TRACES:
        monkeypatch.delenv(name)


def test_nobody_is_traced_unless_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert operations.traces(None) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    for name, value in (("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as here:
            here.setenv(name, value)
            assert operations.traces(None) is None
            with pytest.raises(BaltoroError, match=f"--otlp asks for traces, and {name} switches them off"):
                operations.traces("http://127.0.0.1:4318")


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc', expected http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            "_TRACES_PROTOCOL is 'http/json', expected http/protobuf",
        ),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin', expected otlp or none"),
    ],
)
def test_what_spans_cannot_be_sent_by_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], told: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BaltoroError, match=told):
        operations.traces("http://127.0.0.1:4318")
    assert operations.traces(None) is None, "nobody asked"


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "grpc://host:4317", "http://", "http://[::1", "http://host:0"])
def test_an_address_of_no_collector_is_refused(url: str) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with pytest.raises(BaltoroError, match="is no address"):
        operations.traces(url)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://host:4318", "http://host:4318/v1/traces"),
        ("http://host:4318/", "http://host:4318/v1/traces"),
        ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
    ],
)
def test_a_collector_is_named_by_its_base_as_in_its_own_variable(url: str, endpoint: str) -> None:
    otlp = pytest.importorskip("baltoro.server.otlp")
    assert otlp._endpoint(url) == endpoint


def test_the_variables_of_opentelemetry_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with collector() as (address, posted):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        traces = operations.traces(None)
        assert traces is not None
        traces.provider.get_tracer("test").start_span("seen").end()
        traces.close()
        path, sent = posted.get(timeout=20)
    assert path == "/v1/traces"
    assert b"seen" in sent


@pytest.mark.parametrize("asked", ["--otlp", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_without_its_package_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.delitem(sys.modules, "baltoro.server.otlp", raising=False)
    monkeypatch.delattr("baltoro.server.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    if asked != "--otlp":
        monkeypatch.setenv(asked, "http://127.0.0.1:4318")
    with pytest.raises(BaltoroError, match=f"{asked} asks for traces, and OpenTelemetry is not installed") as found:
        operations.traces("http://127.0.0.1:4318" if asked == "--otlp" else None)
    assert found.value.hint == "pip install 'baltoro[otel]'"


def test_an_error_in_text_is_for_main_to_tell(capsys: pytest.CaptureFixture[str]) -> None:
    @operations.errors_are_lines
    def command(log_format: LogFormat) -> None:
        raise BaltoroError("no")

    with pytest.raises(BaltoroError):
        command(log_format=LogFormat.text)
    with pytest.raises(typer.Exit) as left:
        command(log_format=LogFormat.json)
    assert left.value.exit_code == 1
