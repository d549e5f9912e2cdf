"""One process at a time at work in a directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from baltoro.errors import BaltoroError


@contextmanager
def locked(state: Path, doing: str, refusal: type[BaltoroError]) -> Generator[None]:
    """state: our folder inside the directory, made if it is not there. The lock goes with its process, however that
    ends."""
    directory = state.parent
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise refusal(
            f"{directory} cannot be written: {error.strerror}", hint="name a directory that is yours"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise refusal(
                f"another {doing} (process {lock.read().strip() or 'unknown'}) is at work in {directory}",
                hint="wait for it, or stop it: what it has is kept",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
