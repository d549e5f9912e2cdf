"""A command under way: its output is read, and it is ended when it takes more than it may."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from baltoro.agent.sandbox import Limits

LOOK_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command went."""

    output: str  # stdout and stderr as they came
    rc: int | None  # None: it was ended
    ended: str = ""  # why


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Limits that hold for all processes of a command together."""

    seconds: float
    output_bytes: int
    memory_bytes: int
    processes: int | None

    @classmethod
    def of(cls, limits: Limits) -> Self:
        return cls(
            seconds=limits.seconds,
            output_bytes=limits.output_bytes,
            memory_bytes=limits.memory_bytes,
            processes=limits.processes,
        )


def watch(process: subprocess.Popen[bytes], limits: Watched, cancelled: Callable[[], bool], first: int | None) -> Ran:
    """Until it ends or is ended. `process` leads a session of its own and has one pipe, its stdout.

    first: the first process of its PID namespace, through which all of them are seen; None: it has none.
    """
    assert process.stdout is not None
    output, why = bytearray(), ""
    end_s = time.monotonic() + limits.seconds
    try:
        with process.stdout as pipe:
            while not why:
                over = process.poll() is not None  # before the look: what it wrote until then is in the pipe
                if select.select([pipe], [], [], 0 if over else LOOK_S)[0]:
                    piece = os.read(pipe.fileno(), 65536)
                    if not piece:
                        break
                    output += piece
                elif over:  # what it left behind has the pipe open, and is ended below
                    break
                if len(output) > limits.output_bytes:
                    why = f"it wrote more than {limits.output_bytes:,} bytes"
                elif time.monotonic() > end_s:
                    why = f"it took longer than {limits.seconds:g} s"
                elif cancelled():
                    why = "the episode was stopped"
                elif first is not None:
                    why = _too_much(Path(f"/proc/{first}/root/proc"), limits)
        if not why:
            process.wait(timeout=max(0.1, end_s - time.monotonic()))  # it may have closed its output and gone on
    except subprocess.TimeoutExpired:
        why = f"it took longer than {limits.seconds:g} s"
    finally:
        _kill(process)
    text = output[: limits.output_bytes].decode(errors="replace")
    return Ran(output=text, rc=None if why else process.returncode, ended=why)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole session; of bubblewrap the end of its first process is the end of all in the namespace."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _too_much(processes: Path, limits: Watched) -> str:
    """Of what all processes of a namespace have, seen through its own /proc; "" while it is within the limits."""
    count = memory_bytes = 0
    with suppress(OSError):  # it is just ending, or not ours to look into
        for entry in os.scandir(processes):
            if not entry.name.isdecimal():
                continue
            count += 1
            if limits.processes is not None and count > limits.processes:
                return f"it had more than {limits.processes} processes"
            with suppress(OSError, ValueError):
                _, resident, shared, *_ = Path(entry.path, "statm").read_text().split()
                memory_bytes += (int(resident) - int(shared)) * _PAGE
    if memory_bytes > limits.memory_bytes:
        return f"it used more than {limits.memory_bytes:,} bytes of memory"
    return ""
