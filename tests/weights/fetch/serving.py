"""A web server in a thread that shows files as a mirror and as the hub does, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from baltoro.weights.fetch import run
from baltoro.weights.fetch.http import Patience

KB = 1024
FAST = Patience(total_s=20, first_wait_s=0.01, longest_wait_s=0.05)
PACE = run.Pace(jobs=4, patience=FAST, piece_bytes=64 * KB, request_bytes=256 * KB)
REPO = "moonshotai/Kimi-K2-Tiny"


def fetch_in_small_pieces(url: str, directory: str) -> None:
    """What a process of its own runs."""
    run.fetch(url, Path(directory), pace=PACE)


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def model(shards: int = 3, shard_bytes: int = 700 * KB) -> dict[str, bytes]:
    """The files of a repository in K2's layout; the shards are noise, which is all that a fetch sees of them."""
    names = [f"model-{index + 1}-of-{shards}.safetensors" for index in range(shards)]
    weight_map = {f"model.layers.{index}.weight": name for index, name in enumerate(names)}
    files = {name: noise(shard_bytes + 13 * seed, seed) for seed, name in enumerate(names)}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    files["config.json"] = b'{"model_type": "kimi_k2"}\n'
    files["tiktoken.model"] = noise(5 * KB, 99)
    return files


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()).encode()


@dataclass(frozen=True)
class Fault:
    """What happens to one answer of data."""

    status: int = 0  # answered instead
    retry_after: str = ""
    drop_after: int = -1  # bytes of the body, then the connection breaks
    wrong_at: int = -1  # a byte of the file that is sent inverted


@dataclass
class Site:
    files: dict[str, bytes]
    ranges: bool = True
    head: bool = True
    faults: deque[Fault] = field(default_factory=deque)  # taken by answers of shards, one each
    always_wrong_at: int = -1
    uses_of_an_address: int = 0  # ranges that a signed address of the hub serves; 0: any number
    token: str = ""  # that the hub asks for
    hold_at: int = 0  # bytes of a body
    chunk_s: float = 0.0  # pause between two pieces of 16 kB
    sha: str = "0" * 40
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    strangers: list[str] = field(default_factory=list)  # tokens that came to a host they do not belong to
    uses: dict[str, int] = field(default_factory=dict)
    held: threading.Event = field(default_factory=threading.Event)  # set: shards stop at `hold_at`
    url: str = ""

    @property
    def hub(self) -> str:
        return self.url

    @property
    def mirror(self) -> str:
        return f"{self.url}/files"

    def sent(self, name: str) -> list[str]:
        """The ranges of `name` that were asked for."""
        return [
            span for method, path, span in self.requests if method == "GET" and path.partition("?")[0].endswith(name)
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        site, path = self.site, unquote(self.path.partition("?")[0])
        site.requests.append((self.command, self.path, self.headers.get("Range", "")))
        if self.command == "HEAD" and not site.head:
            return self._say(405)
        if path == f"/api/models/{REPO}/revision/main" or path == f"/api/models/{REPO}/revision/{site.sha}":
            return self._list()
        if path.startswith("/api/"):
            code = "RevisionNotFound" if path.startswith(f"/api/models/{REPO}/") else "RepoNotFound"
            return self._say(404, {"X-Error-Code": code})
        if match := re.fullmatch(f"/{REPO}/resolve/{site.sha}/(.*)", path):
            return self._redirect(match[1])
        if path.startswith("/cdn/"):
            if self.headers.get("Authorization"):
                site.strangers.append(self.headers["Authorization"])
            site.uses[self.path] = site.uses.get(self.path, 0) + 1
            if site.uses_of_an_address and site.uses[self.path] > site.uses_of_an_address:
                return self._say(403)
            return self._send(path.removeprefix("/cdn/"))
        return self._send(path.removeprefix("/files/"))

    def _list(self) -> None:
        site = self.site
        if site.token and self.headers.get("Authorization") != f"Bearer {site.token}":
            return self._say(401, {"X-Error-Code": "GatedRepo"})
        if site.faults and site.faults[0].status and not site.faults[0].wrong_at >= 0:
            fault = site.faults.popleft()
            return self._say(fault.status, {"Retry-After": fault.retry_after})
        siblings = []
        for name, content in site.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            each: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith((".safetensors", ".model")):
                each["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}
            siblings.append(each)
        body = json.dumps(
            {"id": REPO, "modelId": REPO, "sha": site.sha, "private": False, "tags": [], "siblings": siblings}
        )
        return self._say(200, {"Content-Type": "application/json"}, body.encode())

    def _redirect(self, name: str) -> None:
        site, content = self.site, self.site.files.get(name)
        if content is None:
            return self._say(404)
        issued = sum(path.startswith(f"/cdn/{quote(name)}?") for path in site.uses)
        host = site.url.replace("127.0.0.1", "localhost")  # another host, as a CDN is
        large = name.endswith((".safetensors", ".model"))
        digest = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
        headers = {
            "Location": f"{host}/cdn/{quote(name)}?signature={issued}",
            "X-Linked-Etag": f'"{digest.hexdigest()}"',
        }
        return self._say(302, headers | {"X-Linked-Size": str(len(content)), "X-Repo-Commit": site.sha})

    def _send(self, name: str) -> None:
        site, content = self.site, self.site.files.get(name)
        if content is None:
            return self._say(404)
        fault = Fault()
        if site.faults and name.endswith(".safetensors") and self.command == "GET":
            fault = site.faults.popleft()
        if fault.status:
            return self._say(fault.status, {"Retry-After": fault.retry_after} if fault.retry_after else {})
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        start, end = 0, len(content)
        if site.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            start, end = int(match[1]), min(len(content), int(match[2]) + 1)
            if start >= len(content):
                return self._say(416)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        body = bytearray(content[start:end])
        for wrong_at in (fault.wrong_at, site.always_wrong_at if name.endswith(".safetensors") else -1):
            if start <= wrong_at < end:
                body[wrong_at - start] ^= 0xFF
        self.send_response(206 if "Content-Range" in headers else 200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        rest = memoryview(body)[: fault.drop_after if fault.drop_after >= 0 else None]
        try:
            while rest:
                self.wfile.write(rest[: 16 * KB])
                rest = rest[16 * KB :]
                sent = len(body) - len(rest)
                while site.held.is_set() and name.endswith(".safetensors") and sent >= site.hold_at:
                    time.sleep(0.01)
                time.sleep(site.chunk_s)
        except OSError:
            self.close_connection = True
        if fault.drop_after >= 0:
            self.close_connection = True
        return None

    def _say(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


@contextmanager
def serve(files: dict[str, bytes], **settings: Any) -> Iterator[Site]:
    site = Site(dict(files), **settings)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.held.clear()
        server.shutdown()
        server.server_close()
