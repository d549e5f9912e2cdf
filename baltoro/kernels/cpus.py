"""How many CPUs this process may use: what it is bound to, and what its control group is given.

A container with a quota of two CPUs on a machine of 64 sees all 64: as many threads would spend their time waiting for
each other's turn.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable(cgroups: Path = CGROUPS) -> int:
    """At least 1. Reads cgroup v2's cpu.max and v1's cpu.cfs_quota_us where there are any."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups)
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def _quota(cgroups: Path) -> float | None:
    """CPUs' worth of time that this control group gets; None without a limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # not there, or "max 100000"
        quota, period = (cgroups / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota = int((cgroups / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii"))  # -1: no limit
        period = int((cgroups / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota / period if quota > 0 else None
    return None
