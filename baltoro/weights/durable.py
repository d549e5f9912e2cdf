"""Files that survive being stopped, and a power cut: facts are appended as lines of JSON, bytes are forced to disk.

A line that cannot be read (the last one, after a power cut) is passed over: what a lost line knew is found out again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

Fact = dict[str, Any]


def sync(path: Path) -> None:
    """A file's bytes, or a directory's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_facts(path: Path) -> list[Fact]:
    """Raises OSError where the file is not there, or cannot be read."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [fact for line in lines if (fact := _parse(line)) is not None]


def replace_facts(path: Path, facts: Iterable[Fact]) -> None:
    """A new file of these, in one step, on disk before it has its name."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    sync(unfinished)
    unfinished.replace(path)


def append_fact(path: Path, fact: Fact) -> None:
    # One write of one line, the line break first: a torn line before it stays alone.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, b"\n" + json.dumps(fact).encode() + b"\n")
    finally:
        os.close(descriptor)


def _parse(line: str) -> Fact | None:
    try:
        fact: object = json.loads(line)
    except ValueError:
        return None
    return cast("Fact", fact) if isinstance(fact, dict) else None
