"""The engine's steps and requests as a file that https://ui.perfetto.dev and chrome://tracing show.

    steps      | step ───────────────── | step ────────     the engine's thread, one slice inside the other
               | sch | pack | forward | sample |
    requests   | request ──────────────────────────────     each a track of its own
                 | queue | prefill | decode |
    counters   sequences, waiting, free pages

Source: Trace Event Format, its JSON array form, whose closing bracket may be missing: a process that is killed leaves
a file that can be read. Every step is one write; nothing is kept in memory.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from baltoro.errors import EngineError

_log = logging.getLogger(__name__)

MOST_BYTES = 2**30  # of a file; then it is closed, for a server may run for months
_PHASES = ("schedule", "pack", "forward", "sample")


class Timeline:
    """Written by the engine's thread; closed by anyone."""

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
        try:
            self._file = path.open("x")
        except FileExistsError as error:
            raise EngineError(f"{path} is there already", hint="name a new file for the trace of steps") from error
        except OSError as error:
            raise EngineError(f"{path} cannot be written: {error.strerror}") from error
        self._path = path
        self._zero = time.monotonic()
        self._left = most_bytes
        self._guard = threading.Lock()  # a stuck step is closed by another thread
        self._write("[\n", [self._named("engine", 1), self._named("requests", 2)])

    def step(self, record: Mapping[str, Any]) -> None:
        """record: a StepRecord's fields."""
        at = record["began_s"]
        total = sum(record[f"{phase}_s"] for phase in _PHASES)
        told = {name: record[name] for name in ("sequences", "tokens", "logits")}
        events = [self._event("X", "step", at, dur=total * 1e6, args=told)]
        for phase in _PHASES:
            seconds = record[f"{phase}_s"]
            events.append(self._event("X", phase, at, dur=seconds * 1e6))
            at += seconds
        counted = {name: record[name] for name in ("sequences", "waiting", "free_pages")}
        events += [self._event("C", name, record["began_s"], args={name: value}) for name, value in counted.items()]
        self._add(events)

    def request(
        self,
        number: int,
        arrived: float,
        began: float | None,
        first: float | None,
        ended: float,
        told: Mapping[str, Any],
    ) -> None:
        """Times are of time.monotonic(); None: it never came so far."""
        marks = [("queue", arrived), ("prefill", began), ("decode", first)]
        reached = [(name, at) for name, at in marks if at is not None]
        events = [self._event("b", "request", arrived, id=number, cat="request", tid=2, args=dict(told))]
        for (name, at), end in zip(reached, [*(at for _, at in reached[1:]), ended], strict=True):
            events.append(self._event("b", name, at, id=number, cat="request", tid=2))
            events.append(self._event("e", name, end, id=number, cat="request", tid=2))
        events.append(self._event("e", "request", ended, id=number, cat="request", tid=2))
        self._add(events)

    def close(self) -> None:
        with self._guard:
            if not self._file.closed:
                with suppress(OSError):  # a full disk: without its bracket it can be read as well
                    self._file.write("\n]\n")
                    self._file.close()

    def _event(self, kind: str, name: str, at: float, *, tid: int = 1, **more: Any) -> dict[str, Any]:
        return {"ph": kind, "name": name, "ts": (at - self._zero) * 1e6, "pid": os.getpid(), "tid": tid, **more}

    def _named(self, name: str, tid: int) -> dict[str, Any]:
        return self._event("M", "thread_name", self._zero, tid=tid, args={"name": name})

    def _add(self, events: list[dict[str, Any]]) -> None:
        with self._guard:
            if self._file.closed:
                return
            try:
                self._write(",\n", events)
            except OSError as error:  # a full disk: serving goes on
                _log.warning("%s takes no more: %s", self._path, error.strerror)
                self._left = 0
        if self._left <= 0:
            _log.warning("%s has its full size: later steps are not in it", self._path)
            self.close()

    def _write(self, before: str, events: list[dict[str, Any]]) -> None:
        text = before + ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
        self._file.write(text)
        self._file.flush()  # so that kill -9 loses nothing
        self._left -= len(text)
