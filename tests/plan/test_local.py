"""`serve --engine vllm` with stand-ins for vLLM: started, waited for, told to stop, and what becomes of failures."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

import pytest

from baltoro.errors import EngineError, PlanError
from baltoro.plan.launch import local

SERVER = """
import http.server, os, signal, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", deaf])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that answers /health and has a child of its own, as vLLM has."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "vllm"
    (tmp_path / "server.py").write_text(SERVER)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "server.py"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("BALTORO_VLLM", str(program))
    return program


def started(model: str = "nano") -> local.Child:
    port = local.free_port()
    return local.Child(local.command(model, name="n", port=port, planned=["--tp", "1"], given=["--x"]), port)


def test_it_and_all_that_it_started_end_with_the_context(fake: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with started() as child:
        child.wait(60, said.append)
        running = [os.pidfd_open(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
        assert child.ended is None
        assert "answers after" in said[-1]
    for each in running:
        assert select.select([each], [], [], 60)[0], "a process was left behind"
        os.close(each)


def test_an_end_by_itself_is_noticed(fake: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with started() as child:
        child.wait(60, lambda _: None)
        child.watch(lambda: os.write(writer, b"x"))
        os.kill(int((tmp_path / "pids").read_text().split()[0]), 9)
        assert select.select([reader], [], [], 60)[0]
        assert child.ended == "vLLM has ended with code -9"
    os.close(reader)
    os.close(writer)


def test_stopping_it_is_no_end_by_itself(fake: Path) -> None:
    ends: list[bool] = []
    with started() as child:
        child.wait(60, lambda _: None)
        child.watch(lambda: ends.append(True))
    assert not ends


def test_a_start_that_fails_says_so_with_the_command(fake: Path) -> None:
    fake.write_text("#!/bin/sh\nexit 3\n")
    with started("a b") as child, pytest.raises(EngineError, match="code 3") as error:
        child.wait(60, lambda _: None)
    assert "serve 'a b' --tp 1 --x --host 127.0.0.1" in error.value.hint


def test_a_start_that_takes_too_long_is_given_up(fake: Path) -> None:
    fake.write_text("#!/bin/sh\nexec sleep 100\n")
    with started() as child, pytest.raises(EngineError, match="does not answer"):
        child.wait(0.1, lambda _: None)
    assert child.ended is not None


def test_patience_grows_with_the_files(tmp_path: Path) -> None:
    with (tmp_path / "model-1.safetensors").open("wb") as file:
        file.truncate(10**12)  # a hole: nothing is written
    assert local.patience_s(str(tmp_path)) == local.START_S + 5000
    assert local.patience_s("moonshotai/Kimi-K2-Instruct") == local.START_S


@pytest.mark.parametrize("option", ["--port=1", "--host", "--served-model-name", "--api-key"])
def test_options_that_are_the_gateways_are_refused(fake: Path, option: str) -> None:
    with pytest.raises(PlanError, match="behind `--`"):
        local.command("nano", name="n", port=1, planned=[], given=["--dtype", "float32", option, "x"])


def test_where_there_is_no_vllm_the_error_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BALTORO_VLLM", raising=False)
    with pytest.raises(PlanError, match="no program") as error:
        local.program()
    assert "pip install vllm" in error.value.hint
    monkeypatch.setenv("BALTORO_VLLM", "/nowhere/vllm")
    with pytest.raises(PlanError, match="BALTORO_VLLM"):
        local.program()
