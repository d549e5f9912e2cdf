"""Programs of a model: what they may not do, and that right ones pass."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from baltoro.errors import BaltoroError
from baltoro.eval import code
from baltoro.eval.code import Limits, Runner

SHORT = Limits(seconds=10, memory_bytes=512 * 2**20)
walled = pytest.mark.skipif(code._bubblewrap_fault() is not None, reason="bubblewrap does not work here")


def python(text: str, limits: Limits = SHORT, runner: Runner | None = None) -> code.Ran:
    return (runner or Runner.open()).run({"main.py": text}, [[sys.executable, "-I", "main.py"]], limits)


@walled
@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("print('hi')", True),
        ("raise SystemExit(3)", False),
        ("bytearray(1 << 30)", False),
        ("while True: pass", False),
        ("open('/etc/passwd')", False),
        ("open('/usr/bin/x', 'w')", False),
        ("open('here', 'w').write('x')", True),
        ("f = open('here', 'wb')\nfor _ in range(200): f.write(bytes(1 << 20))", False),
        ("import os; os.kill(1, 0); assert os.getpid() < 10", True),  # of its own processes alone
    ],
)
def test_a_program_has_its_folder_its_memory_and_its_time(text: str, good: bool) -> None:
    limits = Limits(seconds=2, memory_bytes=SHORT.memory_bytes) if "while" in text else SHORT
    assert python(text, limits).good is good


@walled
def test_a_program_has_no_network(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not python(f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)").good


@walled
def test_nothing_is_left_of_a_program_that_forks(tmp_path: Path) -> None:
    before = threading.active_count()
    ran = python("import os, time\nif os.fork() == 0:\n    while True: pass", Limits(seconds=10))
    assert ran.good, "the parent ends, and its child with it"
    assert threading.active_count() == before


def test_without_walls_nothing_runs_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_bubblewrap_fault", lambda: "bubblewrap is not installed")
    with pytest.raises(BaltoroError, match="without walls: bubblewrap is not installed"):
        Runner.open()
    allowed = Runner.open(unsafe=True)
    assert python("print(1)", runner=allowed).good
    assert not python("bytearray(1 << 30)", runner=allowed).good
    assert python("while True: pass", Limits(seconds=1), runner=allowed).code is None


@walled
def test_commands_follow_each_other_until_one_fails() -> None:
    runner = Runner.open()
    say = [sys.executable, "-I", "-c", "print('said')"]
    assert runner.run({}, [say, say], SHORT).good
    assert runner.run({}, [["/bin/false"], say], SHORT).output == ""
