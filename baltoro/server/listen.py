"""The server's process: take the port, serve, and leave in order when asked to."""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from baltoro.errors import BaltoroError
from baltoro.server import connections
from baltoro.server.tls import Certificate

_log = logging.getLogger(__name__)


def bind(host: str, port: int) -> list[socket.socket]:
    """Take `port` on every address of `host`, before a model is loaded for it. Nothing is accepted yet.

    Port 0 takes a free one, the same on every address.
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BaltoroError(f"host '{host}' is unknown: {error}", hint="--host 127.0.0.1, or 0.0.0.0 for all") from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(addresses):
        taken = socket.socket(family, kind, protocol)
        sockets.append(taken)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind((address[0], port_of(sockets[0]) if port == 0 and len(sockets) > 1 else port, *address[2:]))
        except OSError as error:
            for each in sockets:
                each.close()
            raise _unavailable(host, port, error) from error
    return sockets


def is_loopback(bound: socket.socket) -> bool:
    """Whether only programs of this machine reach it."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def port_of(bound: socket.socket) -> int:
    return bound.getsockname()[1]


def url(host: str, bound: socket.socket, *, scheme: str = "http") -> str:
    """What a person on this machine types; a wildcard address is not one."""
    name = "127.0.0.1" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port_of(bound)}"


def _unavailable(host: str, port: int, error: OSError) -> BaltoroError:
    if error.errno == errno.EADDRINUSE:
        return BaltoroError(
            f"port {port} on {host} is already in use", hint="stop what runs there, or choose another --port"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return BaltoroError(
            f"port {port} on {host} is not ours to take", hint="ports below 1024 need rights; choose another --port"
        )
    return BaltoroError(f"port {port} on {host} cannot be taken: {error.strerror}")


class _Server(uvicorn.Server):
    """SIGTERM: accept nothing more, finish what runs, leave. Ctrl-C or a second signal: leave now.

    SIGHUP, where there is a certificate: read it again, for it was renewed.
    """

    cut = 0  # requests that were running when the process left

    def __init__(
        self, config: uvicorn.Config, drain_s: float, draining: threading.Event, certificate: Certificate | None
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._drain_s = drain_s
        self._draining = draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        again = self._draining.is_set()
        self._draining.set()
        if sig == signal.SIGTERM and self._drain_s and not again:
            last = threading.Timer(self._drain_s, self._leave)
            last.daemon = True
            last.start()
            return
        self.force_exit = self.should_exit or sig == signal.SIGINT
        self.should_exit = True

    def _leave(self) -> None:
        self.should_exit = True

    def _renew(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        assert self._certificate is not None
        assert self.config.ssl is not None
        try:
            self._certificate.check()  # a failure must not touch the one that is in use
            self._certificate.load(self.config.ssl)
        except BaltoroError as error:
            _log.error("the certificate stays as it was: %s", error.message)
        else:
            _log.info("new connections get the certificate that is in %s now", self._certificate.chain)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn raises the signal again at the end, and the process would seem killed; ours exits by its code."""
        handlers = {signal.SIGINT: self.handle_exit, signal.SIGTERM: self.handle_exit}
        if self._certificate is not None:
            handlers[signal.SIGHUP] = self._renew
        before = {sig: signal.signal(sig, handler) for sig, handler in handlers.items()}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.cut = sum(not task.done() for task in self.server_state.tasks)


def configured(app: ASGIApp, connection: type[connections.Connection] | None = None, **more: Any) -> uvicorn.Config:
    """How uvicorn runs our app. connection: with bounds of its own, for tests. more: uvicorn's own settings"""
    if connection is None:
        most = connections.allowed_connections()
        connection = type("Connection", (connections.Connection,), {"most": most})
    return uvicorn.Config(
        app, http=connection, timeout_keep_alive=connections.KEEP_ALIVE_S, server_header=False, lifespan="off",
        h11_max_incomplete_event_size=connections.MAX_HEAD_BYTES, ws="none", **more,
    )  # fmt: skip


def _stop_when(leave: threading.Event, server: uvicorn.Server) -> None:
    leave.wait()
    server.should_exit = True


def run(
    app: ASGIApp,
    sockets: list[socket.socket],
    *,
    grace_s: int,
    drain_s: float = 0.0,
    draining: threading.Event | None = None,
    leave: threading.Event | None = None,
    certificate: Certificate | None = None,
) -> int:
    """Serve until a signal, or until `leave` is set; `grace_s` is what running requests get to finish.

    With a `certificate` by TLS alone. Between SIGTERM and the last new request `drain_s` pass, in which `draining` is
    set and whoever balances servers may notice; a second signal cuts that short. Returns how many requests were cut
    short.
    """
    for each in sockets:
        try:
            each.listen(1024)
        except OSError as error:  # another process bound the same port while our model loaded, and listens already
            raise _unavailable(each.getsockname()[0], port_of(each), error) from error
    config = configured(app, log_config=None, access_log=False, timeout_graceful_shutdown=grace_s)
    if certificate is not None:
        config.ssl_certfile, config.ssl_keyfile = certificate.chain, certificate.key
        config.ssl_keyfile_password = certificate.password
        config.load()  # SIGHUP may come at once
    server = _Server(config, drain_s, draining or threading.Event(), certificate)
    if leave is not None:
        threading.Thread(target=_stop_when, args=(leave, server), name="baltoro-leave", daemon=True).start()
    server.run(sockets)
    return server.cut
