"""How many CPUs this process may use: what it is bound to, and what its control group is given.

A container with a quota of two CPUs on a machine of 64 sees all 64: as many threads would spend their time waiting for
each other's turn.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from baltoro.kernels import cgroups


def usable(root: Path = cgroups.ROOT, own: Path = cgroups.OWN) -> int:
    """At least 1. Reads cgroup v2's cpu.max and v1's cpu.cfs_quota_us, of all groups around this process."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in cgroups.homes("cpu", root, own) if (quota := _quota(group)) is not None]
    return max(1, min(bound, *(math.ceil(quota) for quota in quotas))) if quotas else bound


def _quota(group: Path) -> float | None:
    """CPUs' worth of time that this control group gets; None without a limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # not there, or "max 100000"
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))  # -1: no limit
        period = int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota / period if quota > 0 else None
    return None
