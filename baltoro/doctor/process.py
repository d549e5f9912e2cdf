"""What the system says of this process: CPUs, memory, huge pages, swap."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from baltoro.doctor.facts import Process
from baltoro.kernels import cpus, memory
from baltoro.kernels.targets import chosen_target, targets

PROC = Path("/proc")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def look(proc: Path = PROC, huge_pages: Path = HUGE_PAGES) -> Process:
    status, rollup, meminfo = (
        _fields(proc / name) for name in ("self/status", "self/smaps_rollup", "meminfo")
    )  # the second is there from Linux 4.14 on
    return Process(
        cpus=os.cpu_count() or 1,
        usable_cpus=cpus.usable(),
        ram_bytes=memory.total(),
        free_bytes=memory.free(),
        page_cache_bytes=meminfo.get("Cached"),
        swapped_bytes=status.get("VmSwap"),
        anonymous_bytes=status.get("RssAnon"),
        huge_bytes=rollup.get("AnonHugePages"),
        huge_pages=_chosen(huge_pages),
        target=chosen_target(),
        best_target=targets()[-1],
        forced_target=os.environ.get("BALTORO_CPU"),
    )


def queued_s(proc: Path = PROC) -> float | None:
    """Since the start, of all threads of this process: ready to run, while others had the CPUs."""
    found: list[float] = []
    for task in (proc / "self" / "task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            found.append(int(task.read_text(encoding="ascii").split()[1]) / 1e9)
    return sum(found) if found else None


def _fields(path: Path) -> dict[str, int]:
    """`Name:   123 kB` -> bytes."""
    with contextlib.suppress(OSError):
        found = re.findall(r"^(\w+):\s+(\d+) kB$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return {name: int(size) * 1024 for name, size in found}
    return {}


def _chosen(path: Path) -> str | None:
    """`always [madvise] never` -> madvise."""
    with contextlib.suppress(OSError):
        found = re.search(r"\[(\w+)\]", path.read_text(encoding="ascii"))
        return found[1] if found else None
    return None
