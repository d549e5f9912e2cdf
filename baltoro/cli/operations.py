"""What the options of `serve` say about TLS, the log, and traces."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import typer

from baltoro.errors import BaltoroError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.types import ASGIApp

    from baltoro.server.tls import Certificate

P = ParamSpec("P")
Say = Callable[[str], None]

_log = logging.getLogger("baltoro.serve")


class LogFormat(StrEnum):
    text = "text"
    json = "json"


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def telling(format: LogFormat, level: LogLevel) -> Say:
    """Sets up the log of this process, a server. Returns what tells its operator of its start."""
    from baltoro.server import logs

    logs.configure(as_json=format is LogFormat.json, level=level.value)
    return _log.info if format is LogFormat.json else partial(typer.echo, err=True)


def errors_are_lines(command: Callable[P, None]) -> Callable[P, None]:
    """An error that ends `command` is a line like all others, where `log_format` is json."""

    @wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> None:
        try:
            command(*args, **options)
        except BaltoroError as error:
            if options.get("log_format") is not LogFormat.json:
                raise
            tell_error(error, LogFormat.json)
            raise typer.Exit(1) from error

    return run


def tell_error(error: BaltoroError, format: LogFormat) -> None:
    """For who leaves at once and cannot raise it."""
    if format is LogFormat.json:
        _log.critical("%s", error.message, extra={"facts": {"hint": error.hint} if error.hint else {}})
    else:
        typer.echo(f"error: {error.message}", err=True)


def certificate(chain: Path | None, key: Path | None, password_file: Path | None) -> Certificate | None:
    """Checked. None: the server speaks plain HTTP."""
    if chain is None or key is None:
        given = {"--tls-cert": chain, "--tls-key": key, "--tls-key-password-file": password_file}
        if named := [name for name, value in given.items() if value is not None]:
            missing = [name for name, value in list(given.items())[:2] if value is None]
            raise typer.BadParameter(f"goes with {' and '.join(missing)}", param_hint=named[0])
        return None
    from baltoro.server.tls import Certificate

    found = Certificate(chain=chain, key=key, password_file=password_file)
    found.check()
    return found


@dataclass(frozen=True, slots=True)
class Traces:
    """Spans on their way to a collector."""

    provider: TracerProvider

    def around(self, app: ASGIApp) -> ASGIApp:
        from baltoro.server.tracing import Tracing

        return Tracing(app, self.provider.get_tracer("baltoro"))

    def close(self) -> None:
        """What was seen is sent, if there is somebody who takes it."""
        self.provider.shutdown()


def traces(otlp: str | None) -> Traces | None:
    """None: nobody wants any."""
    if not _traced(otlp):
        return None
    try:
        from baltoro.server import otlp as collector
    except ImportError as error:
        raise BaltoroError(
            f"{'--otlp' if otlp else _endpoint()} asks for traces, and OpenTelemetry is not installed",
            hint="pip install 'baltoro[otel]'",
        ) from error
    return Traces(collector.exporting(otlp))


def watch(traces: Traces | None, *, access_log: bool) -> list[Callable[[ASGIApp], ASGIApp]]:
    """What sees every request."""
    from baltoro.server.access import AccessLog

    found: list[Callable[[ASGIApp], ASGIApp]] = [AccessLog] if access_log else []
    return found if traces is None else [*found, traces.around]


def _traced(otlp: str | None) -> bool:
    """By the option, or by OpenTelemetry's own variables; contradictions between them are refused."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "") or "otlp"
    if off or exporter == "none":
        if otlp is not None:
            name = "OTEL_SDK_DISABLED" if off else "OTEL_TRACES_EXPORTER"
            raise BaltoroError(f"--otlp asks for traces, and {name} switches them off", hint=f"unset {name}")
        return False
    if otlp is None and _endpoint() is None:
        return False
    if exporter != "otlp":
        raise BaltoroError(f"OTEL_TRACES_EXPORTER is {exporter!r}, expected otlp or none")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := os.environ.get(name):
            if protocol != "http/protobuf":
                raise BaltoroError(
                    f"{name} is {protocol!r}, expected http/protobuf", hint="a collector listens for it on port 4318"
                )
            break
    return True


def _endpoint() -> str | None:
    """The variable that names a collector."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((name for name in names if os.environ.get(name)), None)
