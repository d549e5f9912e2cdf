"""Programs that a model wrote, run and judged by their exit: bounded in time and memory, without network or files.

Bubblewrap shows them one folder of their own and, to be read, the system and their language's. Where it does
not work, they run only if the operator says so, and then under limits of the kernel alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from baltoro.errors import BaltoroError

_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/etc/java-17-openjdk")
_OUTPUT = 4000  # characters that are kept, the last ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    seconds: float = 10.0  # of each command; the CPU's own clock ends what spins
    memory_bytes: int | None = 2 * 2**30  # of address space; None where a runtime reserves more than it uses
    file_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Ran:
    code: int | None  # of exit; None: it took too long
    output: str

    @property
    def good(self) -> bool:
        return self.code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """walled: inside bubblewrap."""

    walled: bool

    @classmethod
    def open(cls, *, unsafe: bool = False) -> Runner:
        """unsafe: run without bubblewrap where there is none"""
        fault = _bubblewrap_fault()
        if fault and not unsafe:
            raise BaltoroError(
                f"programs of a model would run without walls: {fault}",
                hint="install bubblewrap, or allow it with --unsafe-code on a machine that may be lost",
            )
        return cls(walled=not fault)

    def run(self, files: Mapping[str, str], commands: Sequence[Sequence[str]], limits: Limits) -> Ran:
        """In a new folder with `files`: the commands one after the other, until one fails."""
        with tempfile.TemporaryDirectory(prefix="baltoro-code-") as name:
            folder = Path(name)
            for file, text in files.items():
                (folder / file).write_text(text, encoding="utf-8", errors="backslashreplace")
            ran = Ran(0, "")
            for command in commands:
                ran = self._once(folder, command, limits)
                if not ran.good:
                    break
            return ran

    def _once(self, folder: Path, command: Sequence[str], limits: Limits) -> Ran:
        whole = (
            [*_bounds(limits), *_walls(folder, command[0]), *command] if self.walled else [*_bounds(limits), *command]
        )
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp" if self.walled else str(folder), "LANG": "C.UTF-8"}
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                whole, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
                cwd=None if self.walled else folder, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
            output.seek(max(0, output.seek(0, 2) - _OUTPUT))
            # The folder's name is another each time, and what is recorded must not be.
            return Ran(code, output.read().decode("utf-8", "replace").replace(str(folder), "/work"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started: bubblewrap's first process takes its namespace along, else the session is ended."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _bounds(limits: Limits) -> list[str]:
    """By the shell, since nothing of Python may run between fork and exec of a process that has threads."""
    bounds = [f"ulimit -t {int(limits.seconds) + 1}", f"ulimit -f {limits.file_bytes // 512}", "ulimit -c 0"]
    if limits.memory_bytes is not None:
        bounds.append(f"ulimit -v {limits.memory_bytes // 1024}")
    return ["/bin/sh", "-c", " && ".join([*bounds, 'exec "$@"']), "sh"]


def _walls(folder: Path, program: str) -> list[str]:
    options = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev"]
    options += ["--tmpfs", "/tmp", "--bind", str(folder), "/work", "--chdir", "/work"]
    for path in dict.fromkeys([*_SYSTEM, *_homes(program)]):
        if Path(path).exists():
            options += ["--ro-bind", path, path]
    return [*options, "--"]


def _homes(program: str) -> list[str]:
    """The folders of a language that is not installed in the system's own."""
    if program == sys.executable:
        return [sys.prefix, sys.base_prefix]
    found = Path(shutil.which(program) or program).resolve()
    return [] if found.is_relative_to("/usr") or not found.exists() else [str(found.parent.parent)]


@cache
def _bubblewrap_fault() -> str | None:
    """None: it works here."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    try:
        ran = Runner(walled=True).run({}, [[sys.executable, "-c", "pass"]], Limits(memory_bytes=None))
    except OSError as error:
        return str(error)
    return None if ran.good else f"bubblewrap does not work here: {ran.output.strip()[:200]}"
