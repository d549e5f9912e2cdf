"""Requests and answers as lines of JSON on disk, for `baltoro replay` and for whoever has to know what was said.

A folder has segments, `20261128T093000.123456Z-4711.jsonl`, named for their beginning and their process: one that is
written, and older ones. A line is one write to a file that is only appended to, so a process that is killed leaves at
most one torn line, the last one of its segment; the next process begins another. Readers pass over what is no whole
line.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from baltoro.errors import BaltoroError

_log = logging.getLogger(__name__)

Record = dict[str, Any]  # recording.py says what is in it
Redact = Callable[[Record], Record | None]  # what is to be written instead; None: nothing

SEGMENT_BYTES = 64 * 2**20
TIDY_S = 60.0  # between looks for segments that are too old


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept; whole segments go, the oldest first, never the one that is written."""

    most_bytes: int = 10 * 2**30
    most_age_s: float | None = None  # since a segment's last line


class Journal:
    """Appends on a thread of its own. May be used by any thread, until `close`."""

    def __init__(
        self,
        folder: Path,
        *,
        retention: Retention | None = None,
        redact: Redact | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._folder = folder
        self._retention = retention or Retention()
        self._redact = redact
        self._segment_bytes = segment_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}"
            probe.touch(mode=0o600)
            probe.unlink()
        except OSError as error:
            raise BaltoroError(f"{folder}: {error.strerror}", hint="--journal names a folder of ours") from error
        self._thread = ThreadPoolExecutor(1, "baltoro-journal")
        # What follows belongs to that thread.
        self._descriptor: int | None = None
        self._segment = folder
        self._bytes = 0  # of the segment
        self._tidied_s = float("-inf")

    def append(self, make: Callable[[], Record]) -> None:
        """make: puts the record together, on this journal's thread."""
        self._thread.submit(self._append, make)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._end_segment()

    # ── on the thread ────────────────────────────────────────────────────────────────────────────

    def _append(self, make: Callable[[], Record]) -> None:
        try:
            record: Record | None = make()
            if self._redact is not None:
                record = self._redact(record)
            if record is not None:
                self._write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        except Exception as error:  # the outermost loop of this thread; a full disk stops nobody's answer
            _log.error("a request is not in the journal: %s", type(error).__name__)  # its text may be what was redacted
            self._end_segment()

    def _write(self, line: bytes) -> None:
        if self._descriptor is None or self._bytes + len(line) > self._segment_bytes:
            self._end_segment()
            self._begin_segment()
        assert self._descriptor is not None
        written = os.write(self._descriptor, line)
        self._bytes += written
        if written < len(line):
            raise OSError("the disk is full")
        if time.monotonic() - self._tidied_s > TIDY_S:
            self._tidy()

    def _begin_segment(self) -> None:
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._segment = self._folder / f"{begun}-{os.getpid()}.jsonl"
        self._descriptor = os.open(self._segment, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        self._bytes = 0
        self._tidy()

    def _end_segment(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.fsync(descriptor)
            os.close(descriptor)

    def _tidy(self) -> None:
        self._tidied_s = time.monotonic()
        now, kept = time.time(), self._bytes
        for path in sorted(segments(self._folder), reverse=True):  # names begin with times: the newest first
            if path == self._segment:
                continue
            found = path.stat()
            kept += found.st_size
            age = self._retention.most_age_s
            if kept > self._retention.most_bytes or (age is not None and now - found.st_mtime > age):
                path.unlink(missing_ok=True)


def segments(place: Path) -> list[Path]:
    """The files of a journal, the oldest first; `place` may be one of them."""
    return [place] if place.is_file() else sorted(place.glob("*.jsonl"))


def read(place: Path) -> Iterator[Record]:
    """The records of a folder or a file, in the order in which they were written."""
    found = segments(place)
    if not found:
        raise BaltoroError(f"{place} has no journal", hint="`baltoro serve --journal DIR` writes one")
    for path in found:
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield cast("Record", record)
