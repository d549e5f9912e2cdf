"""vLLM on this machine as a child of `baltoro serve`: started, waited for, stopped with it.

It is found on PATH as `vllm`, or as BALTORO_VLLM says. What it prints goes to stderr. It has a session of its own, so
that Ctrl-C reaches the gateway alone, which finishes its answers first; then it and all that it has started end.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from baltoro.errors import EngineError, PlanError

START_S = 600.0  # that a start may take besides reading weights: imports, compiling, graphs
SLOWEST_DISK = 200e6  # bytes a second: below it waiting for a terabyte is no use
POLL_S = 0.5
STOP_S = 30.0  # that it gets to stop by itself
OURS = ("--port", "--host", "--model", "--served-model-name", "--headless", "--uds", "--ssl-keyfile", "--api-key")


def program() -> str:
    """Where vLLM is; an error that says how to have it."""
    named = os.environ.get("BALTORO_VLLM")
    found = shutil.which(named or "vllm")
    if found is None:
        where = f"BALTORO_VLLM is {named!r}, which is no program" if named else "there is no program `vllm` on PATH"
        raise PlanError(where, hint="pip install vllm into a virtual environment; BALTORO_VLLM=DIR/bin/vllm names it")
    return found


def command(model: str, *, name: str, port: int, planned: Sequence[str], given: Sequence[str]) -> list[str]:
    """planned: options that fit this machine. given: the operator's own, which win, as the last of two does."""
    if taken := [word for word in given if word.partition("=")[0] in OURS]:
        raise PlanError(f"{taken[0]} behind `--`", hint="address, names and keys are the gateway's: options of `serve`")
    address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
    return [program(), "serve", model, *planned, *given, *address]


def patience_s(model: str) -> float:
    """How long to wait for it, from the size of its files."""
    folder = Path(model)
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    return START_S + sum(file.stat().st_size for file in files) / SLOWEST_DISK


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Child:
    """A running engine. Used as a context: leaving it ends the engine."""

    def __init__(self, argv: Sequence[str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._line = shlex.join(argv)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), start_new_session=True
        )
        self._stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self, seconds: float, say: Callable[[str], object]) -> None:
        """Until GET /health is 200. EngineError if it ends before, or takes longer."""
        began = time.monotonic()
        told = began
        while not self._answers():
            if (code := self._process.poll()) is not None:
                raise EngineError(
                    f"vLLM ended with code {code} while it loaded", hint=f"its log is above; {self._line}"
                )
            now = time.monotonic()
            if now - began > seconds:
                raise EngineError(f"vLLM does not answer after {now - began:.0f} s", hint="its log is above")
            if now - told > 60:
                told = now
                say(f"vLLM loads since {now - began:.0f} s; it has {seconds:.0f}")
            time.sleep(POLL_S)
        say(f"vLLM answers after {time.monotonic() - began:.0f} s")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def watch(self, ended: Callable[[], object]) -> None:
        """Call `ended` when the engine ends by itself."""

        def wait() -> None:
            self._process.wait()
            if not self._stopping:
                ended()

        threading.Thread(target=wait, name="baltoro-engine", daemon=True).start()

    @property
    def ended(self) -> str | None:
        """How it ended by itself; None while it runs."""
        code = self._process.poll()
        return None if code is None else f"vLLM has ended with code {code}"

    def stop(self) -> None:
        self._stopping = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it has started, and itself if it is still there
        self._process.wait()
