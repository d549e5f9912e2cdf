"""Where commands of a model run: bubblewrap keeps them in their workspace; where there is none, somebody is asked.

In bubblewrap a command has no network, no environment of ours and no process but its own; of the disk it sees the
workspace, which it may write to but for what is protected there, an empty /tmp, and to read the system's libraries and
the Python that we run in. What it may use is limited by process (rlimits, set by launch.py), and as a whole by a look
every 50 ms. Not limited: what it writes into the workspace in all, and the kernel's calls (there is no seccomp filter).
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

from baltoro.agent import launch
from baltoro.agent.watch import Ran, Watched, watch
from baltoro.agent.workspace import Workspace
from baltoro.errors import BaltoroError, ToolError

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one command."""

    seconds: float = 120.0  # of wall time
    cpu_s: int = 120  # of each process
    memory_bytes: int = 4 * 2**30  # of each process, and of all together
    processes: int | None = 256  # at once
    file_bytes: int = 2**30  # of each file that it writes
    scratch_bytes: int = 512 * 2**20  # in /tmp
    output_bytes: int = 4 * 2**20  # beyond that it is ended


class Sandbox(Protocol):
    """Runs commands in one workspace."""

    name: str  # as journals have it

    def run(self, command: Sequence[str], *, seconds: float | None = None, cancelled: Callable[[], bool]) -> Ran:
        """seconds: instead of the limit's; cancelled: asked often, True ends the command"""
        ...


class Bubblewrap:
    """Commands see their workspace and the system's libraries, and nothing else."""

    name = "bubblewrap"

    def __init__(self, workspace: Workspace, limits: Limits | None = None, readable: Sequence[Path] = ()) -> None:
        """readable: further folders that may be read, as of a compiler or a virtual environment"""
        self._workspace = workspace
        self._limits = limits or Limits()
        self._readable = tuple(path.resolve() for path in readable)

    @staticmethod
    @cache
    def missing() -> str | None:
        """Why there is no bubblewrap here; None: it works."""
        program = shutil.which("bwrap")
        if program is None:
            return "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
        done = subprocess.run(
            [program, *_walls(_options()), "--ro-bind", "/", "/", "--", sys.executable, "-I", "-S", "-c", ""],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return f"bubblewrap cannot make a sandbox here: {done.stderr.strip()}"
        return None

    def run(self, command: Sequence[str], *, seconds: float | None = None, cancelled: Callable[[], bool]) -> Ran:
        limits = self._limits if seconds is None else replace(self._limits, seconds=seconds)
        reading, writing = os.pipe()
        try:
            program = [
                "bwrap",
                *self._arguments(limits),
                "--info-fd",
                str(writing),
                "--",
                *_launched(_counted(limits), command),
            ]
            process = subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=(writing,), env={"PATH": os.defpath}, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb") as told:  # bubblewrap closes it once its child runs
            info = told.read()
        child: int | None = json.loads(info)["child-pid"] if info else None
        return watch(process, Watched.of(limits), cancelled, child)

    def _arguments(self, limits: Limits) -> list[str]:
        options = _options()
        root = self._workspace.root
        scratch = ["--size", str(limits.scratch_bytes)] if "--size" in options else []
        shown = [*SYSTEM, *SYSTEM_FILES, *_pythons(), *map(str, self._readable)]
        mounts = [("--ro-bind", Path(each)) for each in dict.fromkeys(shown) if Path(each).exists()]
        mounts.append(("--bind", root))
        mounts += [
            ("--ro-bind", root / each) for each in (".git", *self._workspace.protected) if (root / each).exists()
        ]
        arguments = [
            *_walls(options),
            *scratch,
            "--tmpfs",
            "/tmp",
            *scratch,
            "--tmpfs",
            "/dev/shm",
            "--remount-ro",
            "/dev",
        ]
        for kind, path in sorted(mounts, key=lambda each: len(each[1].parts)):  # what lies in another comes after it
            if path.is_symlink() and len(path.parts) == 2:  # /bin -> usr/bin
                arguments += ["--symlink", str(path.readlink()), str(path)]
            else:
                arguments += [kind, str(path), str(path)]
        for name, value in _environment().items():
            arguments += ["--setenv", name, value]
        return [*arguments, "--remount-ro", "/", "--chdir", str(root)]


class Unconfined:
    """Commands run as the user's own, in the workspace, each only after a yes."""

    name = "none"

    def __init__(self, workspace: Workspace, ask: Callable[[str], bool], limits: Limits | None = None) -> None:
        """ask: shown the command, says whether it may run"""
        self._workspace = workspace
        self._ask = ask
        self._limits = limits or Limits()

    def run(self, command: Sequence[str], *, seconds: float | None = None, cancelled: Callable[[], bool]) -> Ran:
        limits = self._limits if seconds is None else replace(self._limits, seconds=seconds)
        if not self._ask(command[-1]):
            raise ToolError("the user did not allow this command, and it did not run")
        with tempfile.TemporaryDirectory(prefix="baltoro-") as scratch:
            process = subprocess.Popen(
                _launched(replace(limits, processes=None), command),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                cwd=self._workspace.root, env=_environment() | {"HOME": scratch, "TMPDIR": scratch},
                start_new_session=True,
            )  # fmt: skip
            return watch(process, Watched.of(limits), cancelled, None)


def _walls(options: str) -> list[str]:
    """Namespaces of its own for everything, no rights in them, no terminal, and no life after ours."""
    walls = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if "--disable-userns" in options:  # from 0.8 on: nobody in there is root of a further namespace
        walls.append("--disable-userns")
    # Where we are root, files of /proc/sys are ours by their owner, without any right: core_pattern would be a way out.
    return [*walls, "--clearenv", "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]


@cache
def _options() -> str:
    """What this bubblewrap says that it can do."""
    return subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout


def _pythons() -> list[str]:
    """The Python that we run in, and what is installed for it; of its prefix, which may be ~/.local, no more."""
    prefixes = dict.fromkeys([sys.base_prefix, sys.prefix, str(Path(sys.executable).resolve().parents[1])])
    parts = ("bin", "lib", "lib64", "include", "pyvenv.cfg")
    found = [str(Path(prefix) / part) for prefix in prefixes for part in parts]
    return [each for each in found if not Path(each).is_relative_to("/usr") and Path(each).parent != Path("/")]


def _environment() -> dict[str, str]:
    """Nothing of ours but where programs are found: secrets are in environments."""
    path = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
    return {
        "PATH": ":".join(path), "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1", "GIT_PAGER": "cat", "PAGER": "cat",
    }  # fmt: skip


def _counted(limits: Limits) -> Limits:
    """Before Linux 5.14 processes are counted over all of a user's, and a limit on ours would be one on theirs."""
    version = tuple(int(each) for each in re.findall(r"\d+", os.uname().release)[:2])
    return limits if version >= (5, 14) else replace(limits, processes=None)


def _launched(limits: Limits, command: Sequence[str]) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", inspect.getsource(launch), json.dumps(asdict(limits)), *command]


def opened(
    workspace: Workspace,
    ask: Callable[[str], bool],
    *,
    limits: Limits | None = None,
    readable: Sequence[Path] = (),
) -> Sandbox:
    """Bubblewrap where it works, else commands that `ask` is asked about."""
    if Bubblewrap.missing() is None:
        return Bubblewrap(workspace, limits, readable)
    if readable:
        raise BaltoroError(f"readable: {readable[0]}, and {Bubblewrap.missing()}", hint="without it all can be read")
    return Unconfined(workspace, ask, limits)


def refuse(_command: str) -> bool:
    """For who has nobody to ask."""
    return False
