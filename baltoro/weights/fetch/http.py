"""Byte ranges over HTTP: redirects that expire, servers that know no ranges, statuses that mean "later".

urllib3 and not the hub's httpx2: a terabyte costs 0.43 CPU seconds a GB with the one and 0.7 with the other,
which hands the body over in pieces of 64 KiB.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx2
import urllib3
from urllib3.exceptions import HTTPError

from baltoro.errors import FetchError
from baltoro.weights.fetch.digest import Digest

SMALLEST, LARGEST = 16 * 2**10, 2**20  # bytes of one read
CHANGED = "it has changed at the source; the same command fetches the new one"
HOPS = 8  # redirects in a row before a server is taken for lost
REDIRECTS = (301, 302, 303, 307, 308)
REFUSED = (401, 403)
EXPIRED = (400, 401, 403, 404, 410)  # how CDNs answer to a signed address that is too old
LATER = (408, 425, 429, 500, 502, 503, 504)
LONGEST_PLEA_S = 3600.0  # a Retry-After beyond it is told to the user instead of slept through

T = TypeVar("T")


class Transient(Exception):
    """Worth another try, not before `wait_s`."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to go on without receiving a byte."""

    total_s: float = 600.0
    first_wait_s: float = 0.5  # doubled from try to try
    longest_wait_s: float = 60.0
    say: Callable[[str], object] = lambda _: None  # is told what is waited for, from the second try on

    def wait_s(self, failures: int, asked_s: float) -> float:
        return max(asked_s, min(self.longest_wait_s, self.first_wait_s * 2 ** min(failures, 16)))

    def call(self, ask: Callable[[], T], sleep: Callable[[float], object] = time.sleep) -> T:
        """The answer of `ask`, asked again while it raises Transient."""
        began, failures = time.monotonic(), 0
        while True:
            try:
                return ask()
            except Transient as error:
                wait_s = self.wait_s(failures, error.wait_s)
                if time.monotonic() - began + wait_s > self.total_s:
                    raise given_up(error, self.total_s) from error
                failures += 1
                if failures > 1:
                    self.say(f"{error}; trying again")
                sleep(wait_s)


def given_up(error: Transient, seconds: float) -> FetchError:
    return FetchError(
        f"{error}; no byte came in {seconds:.0f} s",
        hint="what has arrived is kept: the same command goes on; --patience waits longer",
    )


@dataclass(frozen=True, slots=True)
class Head:
    """What a server says of a file before sending it."""

    size: int | None  # bytes
    version: str | None  # ETag, or else the date; changes with the content
    digest: Digest | None  # where the server is a hub
    content_type: str


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes from the place that was asked for. `ranged` False: the server sent, and we skipped, all that is before."""

    chunks: Iterator[bytes]  # at most up to the end that was asked for, or to the file's where `ranged` is False
    ranged: bool
    version: str | None = None
    digest: Digest | None = None


class Http:
    """One pool of connections. `token` goes to the host of `origin` alone, never to where it redirects."""

    def __init__(self, origin: str, *, token: str | None = None, connections: int = 8, timeout_s: float = 30) -> None:
        self.origin = _host(origin)
        self.hint_refused = "HF_TOKEN names an account that has accepted the model's terms"
        self._token = token
        self._direct: dict[str, str] = {}  # address -> where it led to last
        self._lock = Lock()
        self._heard = False  # anything, from anybody
        proxies, parts = urllib.request.getproxies(), urlsplit(origin)
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = None
        settings: dict[str, Any] = {
            "maxsize": connections,
            "timeout": urllib3.Timeout(connect=10, read=timeout_s),
            "retries": False,
            "ssl_context": httpx2.create_ssl_context(),  # trusts whom the hub's client trusts
        }
        self._pool = urllib3.ProxyManager(_with_scheme(proxy), **settings) if proxy else urllib3.PoolManager(**settings)

    def head(self, url: str) -> Head | None:
        """None: there is no such file."""
        response, first = self._request("HEAD", url)
        if response.status in (405, 501):  # a server that knows GET alone
            _give_back(response)
            response, first = self._request("GET", url, {"Range": "bytes=0-0"})
        try:
            if response.status in (404, 410):
                return None
            if "X-Linked-Size" not in first:  # the hub has said all; where it leads may be signed for GET alone
                self._judge(response, url)
            total = _total(response.headers.get("Content-Range", ""), 0, url) if response.status == 206 else None
            size = first.get("X-Linked-Size", "") or _length(response) if total is None else total
            return Head(
                size=int(size) if size not in (None, "") else None,
                version=_version(response.headers),
                digest=Digest.of_etag(first.get("X-Linked-Etag")),
                content_type=response.headers.get("Content-Type", "").partition(";")[0].strip().lower(),
            )
        finally:
            _give_back(response)

    def get(self, url: str, *, limit: int) -> bytes | None:
        """A small file whole; None: there is no such file."""
        response, _ = self._request("GET", url)
        try:
            if response.status in (404, 410):
                return None
            self._judge(response, url)
            content = b"".join(_chunks(response, url, 0, limit + 1))
        finally:
            _give_back(response)
        if len(content) > limit:
            raise FetchError(f"{url} is larger than {limit:,} bytes, expected a small file")
        return content

    @contextmanager
    def open(self, url: str, size: int, start: int, end: int) -> Generator[Body]:
        """Bytes [start, end) of a file that is known to have `size`."""
        response, first = self._request("GET", url, {"Range": f"bytes={start}-{end - 1}"})
        try:
            if response.status == 416:
                raise FetchError(f"{url} has no bytes {start:,} to {end:,}, expected {size:,} in all", hint=CHANGED)
            self._judge(response, url)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise FetchError(f"{url}: the server compresses what was asked for as it is")
            ranged = response.status == 206
            found = _total(response.headers.get("Content-Range", ""), start, url) if ranged else _length(response)
            if found not in (None, size):
                raise FetchError(f"{url} has {found:,} bytes now, expected {size:,}", hint=CHANGED)
            yield Body(
                chunks=_chunks(response, url, 0 if ranged else start, end - start if ranged else size - start),
                ranged=ranged,
                version=_version(response.headers),
                digest=Digest.of_etag(first.get("X-Linked-Etag")),
            )
        finally:
            _give_back(response)

    def _request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> tuple[urllib3.BaseHTTPResponse, Mapping[str, str]]:
        """The answer at the end of a chain of redirects, and the headers at its beginning.

        Where a chain led is remembered, for the ranges that follow; when that address has expired it is forgotten.
        """
        with self._lock:
            at = self._direct.get(url, url)
        first: Mapping[str, str] | None = {} if at != url else None
        for _ in range(HOPS):
            try:
                response = self._pool.request(
                    method, at, headers={**self._headers(at), **(headers or {})}, preload_content=False, redirect=False
                )
            except (HTTPError, OSError) as error:
                if hopeless := given_reason(error, who=_host(at), is_first=not self._heard):
                    raise hopeless from error
                raise Transient(f"{_host(at)}: {_reason(error)}") from error
            self._heard = True
            first = response.headers if first is None else first
            target = response.headers.get("Location") if response.status in REDIRECTS else None
            if target is None or (method == "HEAD" and "X-Linked-Size" in first):
                with self._lock:
                    if at != url and response.status in EXPIRED:
                        self._direct.pop(url, None)
                    elif at != url and method == "GET" and response.status == 206:
                        self._direct[url] = at
                if at != url and method == "GET" and response.status in EXPIRED:
                    _give_back(response)
                    raise Transient(f"{_host(at)} answers {response.status}: the address has expired")
                return response, first
            _give_back(response)
            at = urljoin(at, target)
            if urlsplit(at).scheme not in (("https",) if url.startswith("https:") else ("http", "https")):
                raise FetchError(f"{url} redirects to {at}, expected an https address")
        raise FetchError(f"{url} redirects {HOPS} times without an end")

    def _judge(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        status = response.status
        if status in (200, 206):
            return
        if plea := later(status, response.headers, _host(url)):
            raise plea
        if status in REFUSED:
            raise FetchError(f"{url}: the server answers {status}, not allowed", hint=self.hint_refused)
        raise FetchError(f"{url}: the server answers {status}", hint="is the address right?")

    def _headers(self, url: str) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "baltoro"}
        if self._token and _host(url) == self.origin:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def close(self) -> None:
        self._pool.clear()


def given_reason(error: BaseException, *, who: str, is_first: bool) -> FetchError | None:
    """A failure that time will not mend: a certificate nobody vouches for; a name that is unknown from the start."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, ssl.SSLCertVerificationError):
            return FetchError(
                f"{who}: {each.verify_message}", hint="SSL_CERT_FILE may name a file of certificates that you trust"
            )
        if isinstance(each, socket.gaierror) and is_first:
            return FetchError(f"{who}: {each.strerror}", hint="is the name right, and is there a network?")
        inner = next((part for part in each.args if isinstance(part, BaseException)), None)
        each = inner or each.__cause__ or each.__context__
    return None


def later(status: int, headers: Mapping[str, str], who: str) -> Transient | None:
    """What a status like 429 asks for; None if the status is none of those."""
    if status not in LATER:
        return None
    window = re.search(r";\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))  # the hub's way of saying it
    wait_s = _retry_after_s(headers.get("Retry-After", window[1] if window and status == 429 else ""))
    if wait_s > LONGEST_PLEA_S:
        raise FetchError(f"{who} answers {status} and asks to wait {wait_s / 60:,.0f} minutes", hint="try again then")
    return Transient(f"{who} answers {status}", wait_s)


def _chunks(response: urllib3.BaseHTTPResponse, url: str, skip: int, count: int) -> Iterator[bytes]:
    """At most `count` bytes behind the first `skip`.

    A read that breaks loses what it had, so a slow line is read in small pieces; a fast one in large ones, for the CPU.
    """
    piece = SMALLEST
    try:
        while count > 0:
            began = time.monotonic()
            chunk = response.read(min(piece, skip + count), decode_content=False)
            if not chunk:
                return
            took_s = time.monotonic() - began
            piece = min(LARGEST, piece * 2) if took_s < 0.05 else max(SMALLEST, piece // 2) if took_s > 0.5 else piece
            if skip:
                skip, chunk = max(0, skip - len(chunk)), chunk[skip:]
            if chunk:
                count -= len(chunk)
                yield chunk
    except (HTTPError, OSError) as error:
        raise Transient(f"{_host(url)}: {_reason(error)}") from error


def _give_back(response: urllib3.BaseHTTPResponse) -> None:
    """A connection is used again if hardly anything of its answer is left: draining more costs more than a new one."""
    left = getattr(response, "length_remaining", None)
    if left is None or left > SMALLEST:
        response.close()
    else:
        response.drain_conn()
        response.release_conn()


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _total(content_range: str, start: int, url: str) -> int | None:
    """bytes 0-99/1234 -> 1234. A range that starts elsewhere is a broken proxy's."""
    span, _, total = content_range.removeprefix("bytes").strip().partition("/")
    if span.partition("-")[0] != str(start):
        raise Transient(f"{_host(url)} sent range {content_range!r} when asked for bytes from {start}")
    return int(total) if total.isdigit() else None


def _version(headers: Mapping[str, str]) -> str | None:
    return headers.get("ETag") or headers.get("Last-Modified")


def _retry_after_s(value: str) -> float:
    """Seconds, or a date; anything else asks for nothing."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy else f"http://{proxy}"


def _reason(error: Exception) -> str:
    """urllib3 wraps errors around errors; the innermost sentence is the one a person understands."""
    inner = error.args[-1] if error.args else error
    while isinstance(inner, Exception) and inner.args:
        inner = inner.args[-1]
    return str(inner).rpartition(": ")[2] or type(error).__name__
