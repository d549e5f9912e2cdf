"""How much memory this machine has, how much of it this process may still take, and how much its caches hold."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

from baltoro.kernels import cgroups

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MEMINFO = Path("/proc/meminfo")
OWN = Path("/proc/self")
LIMITS = (  # of a control group: the most, what is used, and of that the files that were not read lately
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def total() -> int:
    """Bytes of RAM."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free(meminfo: Path = MEMINFO, root: Path = cgroups.ROOT, own: Path = cgroups.OWN) -> int:
    """Bytes that can be had without swapping, the limits of control groups included."""
    found = total()
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        found = int(lines.get("MemAvailable", "none").split()[0]) * 1024
    for group in cgroups.homes("memory", root, own):
        for limit, used, files in LIMITS:
            with contextlib.suppress(OSError, ValueError):  # not there, or no limit: "max"
                most = int((group / limit).read_text(encoding="ascii"))
                taken = int((group / used).read_text(encoding="ascii"))
                stat = (group / "memory.stat").read_text(encoding="ascii").splitlines()
                givable = int(dict(line.split(maxsplit=1) for line in stat).get(files, 0))  # files give way
                found = min(found, max(0, most - taken + givable))
    return found


def peak() -> int:
    """The most bytes of RAM that this process has held since `forget_peak`, or since it began."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (OWN / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak() -> None:
    """Linux alone can; elsewhere the peak stays that of the whole process."""
    with contextlib.suppress(OSError):
        (OWN / "clear_refs").write_text("5", encoding="ascii")


def last_cache(caches: Path = CACHES) -> int:
    """Bytes of the largest cache of a CPU; 64 MiB where the system does not say."""
    sizes: list[int] = []
    for file in caches.glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = file.read_text(encoding="ascii").strip()
            sizes.append(int(text[:-1]) * UNITS[text[-1]])
    return max(sizes, default=64 * 2**20)
