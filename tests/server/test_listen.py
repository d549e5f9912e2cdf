"""The server's process: its port, its signals, its exit code."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from baltoro.errors import BaltoroError
from baltoro.server import listen

PROGRAM = """
import sys
from baltoro.chat.messages import Finished, TextDelta
from baltoro.server import listen
from baltoro.server.app import Served, create_app
from tests.server.script import USAGE, Script
script = Script()
script.deltas = [TextDelta("a"), float(sys.argv[1]), TextDelta("b"), Finished("stop", USAGE)]
sockets = listen.bind("127.0.0.1", 0)
print(listen.port_of(sockets[0]), flush=True)
served = Served(llm=script, names=("tiny",))
drain = {"drain_s": float(sys.argv[3]), "draining": served.draining}
cut = listen.run(create_app(served), sockets, grace_s=int(sys.argv[2]), **drain)
print("cut", cut)
"""
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


@contextmanager
def running(*, answer_s: float, grace_s: int, drain_s: float = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", PROGRAM, str(answer_s), str(grace_s), str(drain_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    deadline = time.monotonic() + 20
    while True:
        try:
            assert httpx.get(f"{url}/health").status_code == 200
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    try:
        yield process, url
    finally:
        process.kill()
        process.communicate()


class Listener(threading.Thread):
    """A client in the middle of an answer."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.heard = ""
        self.begun = threading.Event()
        self.start()
        assert self.begun.wait(10)

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=BODY, timeout=20) as response:
                for piece in response.iter_text():
                    self.heard += piece
                    self.begun.set()
        except httpx.TransportError as error:
            self.heard += f"<{type(error).__name__}>"


def test_sigterm_finishes_what_runs_and_takes_nothing_new() -> None:
    with running(answer_s=1.5, grace_s=20) as (process, url):
        client = Listener(url)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        client.join()
        assert client.heard.endswith("data: [DONE]\n\n")
        out, _ = process.communicate(timeout=10)
        assert (process.returncode, out) == (0, "cut 0\n")


@pytest.mark.parametrize(
    ("signals", "grace_s"),
    [([signal.SIGTERM], 1), ([signal.SIGINT], 60), ([signal.SIGTERM, signal.SIGTERM], 60)],
    ids=["the grace period ends", "Ctrl-C", "a second signal"],
)
def test_what_does_not_finish_in_time_is_cut_and_counted(signals: list[signal.Signals], grace_s: int) -> None:
    with running(answer_s=60, grace_s=grace_s) as (process, url):
        client = Listener(url)
        for each in signals:
            process.send_signal(each)
            time.sleep(0.3)
        out, _ = process.communicate(timeout=10)
        assert (process.returncode, out) == (0, "cut 1\n")
        client.join()
        assert "[DONE]" not in client.heard


def test_before_it_leaves_it_says_so_and_still_answers_until_told_again() -> None:
    with running(answer_s=0.1, grace_s=20, drain_s=60) as (process, url):
        assert httpx.get(f"{url}/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while httpx.get(f"{url}/ready").status_code == 200:
            assert time.monotonic() < deadline
        assert httpx.post(f"{url}/v1/chat/completions", json=BODY).text.endswith("data: [DONE]\n\n")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, "cut 0\n")


def test_when_the_time_to_say_so_is_over_it_leaves_by_itself() -> None:
    with running(answer_s=0.1, grace_s=20, drain_s=0.3) as (process, _):
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, "cut 0\n")


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("127.1.2.3", True), ("0.0.0.0", False)]
)
def test_loopback_is_what_other_machines_cannot_reach(host: str, loopback: bool) -> None:
    sockets = listen.bind(host, 0)
    assert all(map(listen.is_loopback, sockets)) is loopback
    for each in sockets:
        each.close()


def test_it_leaves_when_it_is_told_that_there_is_nothing_to_serve() -> None:
    program = """
import threading
from baltoro.server import listen
sockets = listen.bind("127.0.0.1", 0)
leave = threading.Event()
threading.Timer(0.5, leave.set).start()
print(listen.run(lambda *_: None, sockets, grace_s=1, leave=leave))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_a_taken_port_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = listen.port_of(taken)
        with pytest.raises(BaltoroError, match=f"port {port} on 127.0.0.1 is already in use"):
            listen.bind("127.0.0.1", port)


def test_a_port_taken_while_the_model_loads_is_the_same_error() -> None:
    """Two sockets may be bound to one port with SO_REUSEADDR as long as none listens."""
    (first,) = listen.bind("127.0.0.1", 0)
    port = listen.port_of(first)
    (second,) = listen.bind("127.0.0.1", port)
    first.listen()
    with pytest.raises(BaltoroError, match=f"port {port} on 127.0.0.1 is already in use"):
        listen.run(lambda *_: None, [second], grace_s=1)  # type: ignore[arg-type]
    first.close()
    second.close()


def test_an_unknown_host_is_one_clear_error() -> None:
    with pytest.raises(BaltoroError, match=r"host 'no\.such\.host\.invalid' is unknown"):
        listen.bind("no.such.host.invalid", 0)


def test_localhost_takes_the_same_port_on_every_address() -> None:
    sockets = listen.bind("localhost", 0)
    assert len({listen.port_of(each) for each in sockets}) == 1
    for each in sockets:
        each.close()


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")])
def test_the_address_shown_is_one_that_can_be_opened(host: str, shown: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        assert listen.url(host, bound) == f"http://{shown}:{listen.port_of(bound)}"
