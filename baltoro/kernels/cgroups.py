"""Where Linux says what the control groups of this process may use, in version 2's tree and in version 1's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def homes(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[Path]:
    """The folders of this process's group and of all groups above it: the limits of each hold.

    In a container the system may name groups that its tree does not show; what is shown is the container's then.
    """
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found: dict[Path, None] = {}
    for line in [*lines, "0::/", f":{controller}:/"]:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "/")
        if controllers and controller not in controllers.split(","):
            continue
        for base in (root / controllers, root / controller) if controllers else (root, root / "unified"):
            group = base / path.strip("/")
            while True:
                if group.is_dir():
                    found.setdefault(group)
                if group == base or base not in group.parents:
                    break
                group = group.parent
    yield from found
