"""What hostile commands come to. Where bubblewrap does not work its tests are skipped, and say why."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from baltoro.agent.commands import Commands
from baltoro.agent.sandbox import Bubblewrap, Limits, Unconfined, opened, refuse
from baltoro.agent.tool import by_name
from baltoro.agent.watch import Ran
from baltoro.agent.workspace import Workspace
from baltoro.errors import BaltoroError

bubblewrap = pytest.mark.skipif(Bubblewrap.missing() is not None, reason=str(Bubblewrap.missing()))
Run = Callable[..., Ran]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    (root / ".git" / "hooks").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "tests" / "test_x.py").write_text("as it was")
    (tmp_path / "secret").write_text("hunter2")
    (root / "link").symlink_to(tmp_path / "secret")
    return root


@pytest.fixture
def run(place: Path) -> Run:
    workspace = Workspace(place, protected=("tests",))

    def run(command: str, **limits: float) -> Ran:
        box = Bubblewrap(workspace, Limits(**({"seconds": 60} | limits)))  # type: ignore[arg-type]
        return box.run(["/bin/bash", "-c", command], cancelled=lambda: False)

    return run


@bubblewrap
def test_a_command_works_in_its_workspace(place: Path, run: Run) -> None:
    done = run("pwd; echo made > file; python -c 'import json; print(json.dumps(1))'; exit 3")
    assert (done.output, done.rc) == (f"{place}\n1\n", 3)
    assert (place / "file").read_text() == "made\n"


@bubblewrap
@pytest.mark.parametrize(
    "command",
    [
        "cat {secret}",
        "cat link",
        "cat /proc/{pid}/environ",
        "cat /proc/{pid}/root{secret}",
        "ls /proc/{pid}",
        "cat ~/.ssh/id_* /root/.ssh/* /home/*/.ssh/*",
        "cat /etc/passwd",
        "cat /etc/shadow",
        "ls /home/* /var/* /work /run/*",
        "ln {secret} hard",
    ],
)
def test_nothing_outside_can_be_read(place: Path, run: Run, command: str) -> None:
    done = run(command.format(secret=place.parent / "secret", pid=os.getpid()))
    assert done.rc not in (0, None)
    assert "hunter2" not in done.output
    assert "root:" not in done.output


@bubblewrap
@pytest.mark.parametrize(
    "command",
    [
        "echo x > {secret}",
        "echo x > link",
        "echo x > /usr/local/x",
        "echo x > /x",
        "echo x > /etc/x",
        "echo x > /dev/x",
        "echo x > .git/hooks/pre-commit",
        "echo x > tests/test_x.py",
        "rm -rf tests",
        "mv .git git",
        "mount -o remount,rw,bind .git",
        "umount .git",
        "mount -t tmpfs none /usr",
        "mknod disk b 254 0 && cat disk",
        "unshare --user --map-root-user true",
        "unshare --mount true",
    ],
)
def test_nothing_outside_or_protected_can_be_written(place: Path, run: Run, command: str) -> None:
    before = {path for path in place.parent.rglob("*") if path.name != "disk"}
    done = run(command.format(secret=place.parent / "secret"))
    if "secret" not in command and "link" not in command:  # these are under /tmp, and so into the scratch space
        assert done.rc not in (0, None)
    assert {path for path in place.parent.rglob("*") if path.name != "disk"} == before
    assert (place.parent / "secret").read_text() == "hunter2"
    assert (place / "tests/test_x.py").read_text() == "as it was"
    assert not Path("/usr/local/x").exists()


@bubblewrap
def test_no_file_of_the_kernel_s_can_be_opened_for_writing(run: Run) -> None:
    # As root these were ours by their owner alone: core_pattern names a program that runs outside. Only opened, never
    # written to: where this fails the machine must stay as it is.
    done = run("""python - <<'END'
import os
opened = []
for top in ("/proc/sys", "/proc/irq", "/proc/fs", "/proc/bus", "/proc/acpi", "/sys"):
    for folder, _, names in os.walk(top):
        for name in [*names, "../sysrq-trigger"]:
            path = os.path.join(folder, name)
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                continue
            opened.append(path)
print(opened)
END""")
    assert (done.output, done.ended) == ("[]\n", "")


@bubblewrap
def test_rm_rf_of_everything_deletes_only_what_may_be_written(place: Path, run: Run) -> None:
    (place / "file").write_text("")
    run(f"rm -rf {place.parent} ~ /tmp/* --no-preserve-root")
    assert not (place / "file").exists()
    assert (place / ".git" / "hooks").is_dir()
    assert (place / "tests/test_x.py").exists()
    assert (place.parent / "secret").exists()


@bubblewrap
def test_there_is_no_network_not_even_loopback(place: Path, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run(f"python -c \"import socket; socket.create_connection(('127.0.0.1', {port}), 5)\"")
        assert done.rc == 1
        assert "ConnectionRefusedError" in done.output or "unreachable" in done.output
    done = run("python -c \"import socket; socket.getaddrinfo('example.com', 80)\"")
    assert done.rc == 1
    with socket.socket(socket.AF_UNIX) as server:  # abstract: in no file system
        server.bind("\0baltoro-test")
        server.listen()
        done = run("python -c \"import socket; socket.socket(socket.AF_UNIX).connect('\\0baltoro-test')\"")
        assert "ConnectionRefusedError" in done.output


@bubblewrap
def test_secrets_of_our_environment_are_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALTORO_API_KEY", "hunter2")
    done = run("env; cat /proc/*/environ | tr '\\0' '\\n'")
    assert "hunter2" not in done.output
    assert "HOME=/tmp" in done.output


@bubblewrap
def test_other_processes_are_neither_seen_nor_traced_nor_killed(run: Run) -> None:
    trace = "import ctypes as c; print(c.CDLL(None, use_errno=True).ptrace(16, {pid}, 0, 0), c.get_errno())"
    done = run(
        f'python -c "{trace.format(pid=os.getpid())}"; kill -9 {os.getpid()}; kill -9 -1; ls /proc | grep -c "^[0-9]"'
    )
    assert done.output.startswith("-1 3\n")  # ESRCH: there is no such process
    assert int(done.output.splitlines()[-1]) < 10


@bubblewrap
def test_a_command_has_no_rights_and_gets_none(run: Run) -> None:
    done = run("grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/self/status")
    assert [line.split()[1].strip("0") for line in done.output.splitlines()] == ["", "", "", "1"]


@bubblewrap
@pytest.mark.parametrize(
    ("command", "limits", "told"),
    [
        (":(){ :|:& };:; sleep 60", {"processes": 40}, "processes|Resource temporarily unavailable"),
        ("yes", {"output_bytes": 100_000}, "it wrote more than 100,000 bytes"),
        ("sleep 60", {"seconds": 0.5}, "it took longer than 0.5 s"),
        ("exec >&- 2>&-; sleep 60", {"seconds": 0.5}, "it took longer than 0.5 s"),
        ("python -c 'while True: pass'", {"cpu_s": 1}, ""),
        ("python -c 'x = bytearray(2**28)'", {"memory_bytes": 2**27}, "MemoryError"),
        (
            "for i in 1 2 3 4; do python -c 'x = b\"1\" * (80 << 20); import time; time.sleep(60)' & done; wait",
            {"memory_bytes": 160 * 2**20},
            "it used more than 167,772,160 bytes of memory",
        ),
        ("head -c 20000000 /dev/zero > file", {"file_bytes": 1_000_000}, ""),
        ("head -c 20000000 /dev/zero > /tmp/file", {"scratch_bytes": 1_000_000}, "No space left"),
        ("head -c 20000000 /dev/zero > /dev/shm/file", {"scratch_bytes": 1_000_000}, "No space left"),
    ],
)
def test_what_takes_too_much_is_ended(place: Path, run: Run, command: str, limits: dict[str, float], told: str) -> None:
    done = run(command, **limits)
    assert done.rc != 0
    assert any(each in done.ended + done.output for each in told.split("|"))
    assert not (place / "file").exists() or (place / "file").stat().st_size <= 1_000_000


def alive(marker: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if marker in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    return True
            except OSError:
                continue
    return False


def gone(marker: str) -> bool:
    """What was killed may be there for a moment."""
    end_s = time.monotonic() + 30
    while alive(marker) and time.monotonic() < end_s:
        time.sleep(0.01)
    return not alive(marker)


@bubblewrap
def test_what_runs_in_the_background_ends_with_its_command(run: Run) -> None:
    done = run("setsid nohup sleep 7654.3 > /dev/null 2>&1 & setsid sleep 7654.3 & echo started")
    assert (done.output, done.rc) == ("started\n", 0)
    assert gone("7654.3")


@bubblewrap
def test_a_cancelled_command_is_ended_at_once(place: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began_s = time.monotonic()
    done = Bubblewrap(Workspace(place)).run(["sleep", "600"], cancelled=stop.is_set)
    assert done.ended == "the episode was stopped"
    assert time.monotonic() - began_s < 60


@bubblewrap
def test_further_folders_can_be_read_if_they_are_named(place: Path) -> None:
    (place.parent / "shared").mkdir()
    (place.parent / "shared" / "data").write_text("42")
    box = Bubblewrap(Workspace(place), readable=[place.parent / "shared"])
    done = box.run(["sh", "-c", "cat ../shared/data; echo x > ../shared/data"], cancelled=lambda: False)
    assert done.output.startswith("42")
    assert done.rc != 0


# ── without bubblewrap ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bubblewrap, "missing", staticmethod(lambda: "bubblewrap is not installed"))


@pytest.mark.usefixtures("no_bubblewrap")
def test_without_it_nothing_runs_that_nobody_allowed(place: Path) -> None:
    tools = by_name(Commands(opened(Workspace(place), refuse)).tools())
    for name, argument in {"shell": {"command": "touch made"}, "python": {"code": "open('made', 'w')"}}.items():
        result = tools[name](argument)
        assert result.failed
        assert "did not allow" in result.for_model
    assert not (place / "made").exists()


@pytest.mark.usefixtures("no_bubblewrap")
def test_without_it_every_command_is_asked_about(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALTORO_API_KEY", "hunter2")
    asked: list[str] = []

    def ask(command: str) -> bool:
        asked.append(command)
        return "env" in command

    tools = by_name(Commands(opened(Workspace(place), ask)).tools())
    assert "hunter2" not in tools["shell"]({"command": "env; pwd"}).for_model
    assert str(place) in tools["shell"]({"command": "env; pwd"}).for_model
    assert tools["shell"]({"command": "rm -rf ."}).failed
    assert asked == ["env; pwd", "env; pwd", "rm -rf ."]


def test_what_is_written_last_is_read_however_it_falls(place: Path) -> None:
    # A command that ends between a look at its pipe and a look at itself had lost its output.
    box = Unconfined(Workspace(place), lambda _: True)
    for wait in ("0.03", "0.05", "0.051", "0.06", "0.1"):
        done = box.run(["sh", "-c", f"sleep {wait}; echo last"], cancelled=lambda: False)
        assert (done.output, done.rc) == ("last\n", 0)


def test_an_unconfined_command_is_ended_with_what_it_started(place: Path) -> None:
    box = Unconfined(Workspace(place), lambda _: True, Limits(seconds=0.5))
    done = box.run(["sh", "-c", "sleep 7654.4 & sleep 7654.4"], cancelled=lambda: False)
    assert "longer than" in done.ended
    assert gone("7654.4")


@pytest.mark.usefixtures("no_bubblewrap")
def test_folders_to_be_read_need_a_sandbox(place: Path) -> None:
    with pytest.raises(BaltoroError, match="readable"):
        opened(Workspace(place), refuse, readable=[place.parent])


def test_a_model_cannot_give_a_command_for_ever(place: Path) -> None:
    tools = by_name(Commands(Unconfined(Workspace(place), lambda _: True)).tools())
    assert "expected 1 to 600" in tools["shell"]({"command": "true", "seconds": 10_000}).for_model
    assert "NUL" in tools["shell"]({"command": "true\0"}).for_model
    assert tools["shell"]({"command": "exit 4"}).for_model == "[exit code 4]"
    assert tools["python"]({"code": "print(6 * 7)"}).for_model == "42\n[exit code 0]"
