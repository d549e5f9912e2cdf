"""Workers that take ranges of unfinished files until every file is whole: one file each, shared ones at the end."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from baltoro.errors import FetchError
from baltoro.weights.display import Display, size
from baltoro.weights.fetch import http
from baltoro.weights.fetch.http import Patience, Transient
from baltoro.weights.fetch.journal import RemoteFile
from baltoro.weights.fetch.part import PIECE, Lease, Part, Stopped
from baltoro.weights.fetch.sources import Source
from baltoro.weights.fetch.spread import TICK_S

REQUEST = 256 * 2**20  # bytes of one request: long enough for a distant server, short enough to share a file's end


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a run goes about it. Nothing here changes what arrives."""

    jobs: int = 8
    patience: Patience = field(default_factory=Patience)
    request_bytes: int = REQUEST
    piece_bytes: int = PIECE


@dataclass(slots=True)
class Tally:
    fetched_files: int = 0
    fetched_bytes: int = 0  # that came over the line, those fetched twice counted twice
    repaired_bytes: int = 0


class Download:
    def __init__(
        self, files: Iterable[RemoteFile], source: Source, directory: Path, pace: Pace, display: Display
    ) -> None:
        self._source, self._directory, self._pace, self._display = source, directory, pace, display
        self._waiting = deque(files)
        self._total = sum(file.size for file in self._waiting)
        self._active: list[Part] = []
        self._done_bytes = 0
        self._moved = 0
        self._tally = Tally()
        self._change = threading.Condition()
        self._stop = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> Tally:
        """Until all files are there. What raises here, or Ctrl-C, leaves every byte that came in the journals."""
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._pace.jobs)]
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers) and self._error is None:
                self._show()
                for worker in workers:
                    if worker.is_alive():
                        worker.join(TICK_S)
                        break
        finally:
            self._halt(workers)
        if self._error is not None:
            raise self._error
        self._show()
        self._tally.fetched_bytes = self._moved
        return self._tally

    def _halt(self, workers: Iterable[threading.Thread]) -> None:
        """A worker may hang in a read for as long as the server is silent; what it has is taken from it."""
        self._stop.set()
        with self._change:
            self._change.notify_all()
            parts = list(self._active)
        for part in parts:
            with suppress(OSError):  # a disk that is full has been told of already
                part.close()
        deadline = time.monotonic() + 1.0
        for worker in workers:
            if worker.ident is not None:
                worker.join(max(0.0, deadline - time.monotonic()))

    def _show(self) -> None:
        with self._change:
            here = self._done_bytes + sum(part.here_bytes for part in self._active)
            moved = self._moved
        self._display.update(here=here, total=self._total, moved=moved)

    # --- one worker ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        part: Part | None = None
        try:
            while taken := self._take(part):
                part, lease = taken
                try:
                    self._fill(part, lease)
                finally:
                    part.release(lease)
                self._settle(part)
        except Stopped:
            pass
        except BaseException as error:  # whatever it is, the main thread raises it
            with self._change:
                self._error = self._error or self._explain(error)
            self._stop.set()
        finally:
            with self._change:
                self._change.notify_all()

    def _take(self, last: Part | None) -> tuple[Part, Lease] | None:
        """The next range: of the file just worked at, of one that nobody works at, of a new one, of any other."""
        while not self._stop.is_set():
            with self._change:
                if lease := self._lease(last, shared=not self._waiting):
                    return lease.part, lease
                if not self._waiting:
                    if not self._active:
                        return None
                    self._change.wait(TICK_S)
                    continue
                file = self._waiting.popleft()
                part = Part(self._directory, file, say=self._display.say, piece_bytes=self._pace.piece_bytes)
                self._active.append(part)
            part.open()
            self._settle(part)
            last = part
        return None

    def _lease(self, last: Part | None, *, shared: bool) -> Lease | None:
        """Files are shared once there are none to begin with, the one that misses most first."""
        for part in sorted(self._active, key=lambda each: (each is not last, each.here_bytes - each.file.size)):
            if not part.is_taken or (part.ranged and (shared or part is last)):
                limit = part.file.size if part.ranged is False else self._pace.request_bytes
                if lease := part.lease(limit):
                    return lease
        return None

    def _fill(self, part: Part, lease: Lease) -> None:
        patience = self._pace.patience
        heard, failures = time.monotonic(), 0
        while lease.at < lease.end:
            before = lease.at
            try:
                self._receive(part, lease)
                if lease.at == before:
                    raise Transient(f"the source ends {part.file.name} at byte {before:,} of {part.file.size:,}")
            except Transient as error:
                if lease.at > before:
                    heard, failures = time.monotonic(), 0
                wait_s = patience.wait_s(failures, error.wait_s)
                failures += 1
                if failures > 1:
                    patience.say(f"{error}; trying again")
                if time.monotonic() + wait_s - heard > patience.total_s:
                    raise http.given_up(error, patience.total_s) from error
                if self._stop.wait(wait_s):
                    raise Stopped from error

    def _receive(self, part: Part, lease: Lease) -> None:
        """What one request brings."""
        file = part.file
        with self._source.open(file, lease.at, lease.end) as body:
            if file.digest is None and body.version != file.version:
                raise FetchError(f"{file.name} is being changed at the source", hint=http.CHANGED)
            if file.digest and body.digest and body.digest.kind == file.digest.kind and body.digest != file.digest:
                raise FetchError(f"{file.name} is {body.digest} at the source, listed {file.digest}", hint=http.CHANGED)
            if part.ranged is None and not body.ranged and file.size > self._pace.request_bytes:
                self._display.say(f"{file.name}: this server sends no ranges; a break in the middle starts it over")
            part.ranged = body.ranged
            if not body.ranged:
                part.extend(lease)
            for chunk in body.chunks:
                if self._stop.is_set():
                    raise Stopped
                lease.write(chunk)
                with self._change:
                    self._moved += len(chunk)
                if lease.at >= lease.end:
                    return

    def _settle(self, part: Part) -> None:
        """After a range: fold what has become contiguous, and put the file in its place if it is whole."""
        part.advance()
        moved = part.finish()
        with self._change:
            if part.complete and part in self._active:
                self._active.remove(part)
                self._done_bytes += part.file.size
                self._tally.fetched_files += moved
                self._tally.repaired_bytes += part.repaired_bytes
            self._change.notify_all()

    def _explain(self, error: BaseException) -> BaseException:
        """A disk that is full is the user's to repair, and how much it lacks is known here."""
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        missing = self._total - self._done_bytes - sum(part.here_bytes for part in self._active)
        return FetchError(
            f"{self._directory}: the disk is full, {size(missing)} are still to come",
            hint="what has arrived is kept: make room, then the same command goes on",
        )
