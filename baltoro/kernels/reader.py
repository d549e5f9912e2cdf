"""Reads of large ranges that go on while something is computed: for experts that lie on disk.

Files are read past the page cache (O_DIRECT), which would only hold a second copy of what a budget already counts;
where a filesystem cannot do that, through it, and its pages are given back. Ranges and memory begin at multiples of
`UNIT`. Two back ends: one io_uring (`uring`, Linux 5.6), or threads that wait in pread (`threads`). The first that runs
here is taken; `BALTORO_READER` names one.

    with Reader() as reader:
        file = reader.open("model-00001-of-00061.safetensors")
        tickets = [reader.submit(file, offset, block) for offset, block in wanted]
        ...
        reader.wait(tickets)
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from baltoro.errors import BaltoroError, ReadError
from baltoro.kernels.targets import native

UNIT = 4096  # bytes: offsets, addresses and sizes of memory are multiples
BACKENDS = ("uring", "threads")
PIECE = 2 * 2**20  # bytes asked of a drive at once, and how many such at a time: docs/numbers.md
DEPTH = 16


class File:
    """An open file, known by what it was when it was opened. It is closed with its reader."""

    def __init__(self, path: Path, native: Any) -> None:
        self.path = path
        self.native = native

    @property
    def nbytes(self) -> int:
        return self.native.nbytes

    @property
    def direct(self) -> bool:
        """Whether it is read past the page cache."""
        return self.native.direct

    def check(self) -> None:
        """A ReadError when its path is no longer this file as it was. One system call: cheap before every step."""
        different = self.native.difference()
        if different:
            raise ReadError(
                f"{self.path} is not the file that was opened: {different}",
                hint="a model's files must stay as they are while it runs; start again",
            )


class Ticket:
    """One range on its way; its memory is kept until it has come."""

    def __init__(self, native: Any, destination: Tensor) -> None:
        self.destination = destination
        self._native = native

    @property
    def finished(self) -> bool:
        """Come or failed. `wait` tells which."""
        return self._native.finished()

    def wait(self) -> None:
        """Sleep until the bytes are there; a ReadError when they never will be, the same at every call."""
        self._native.wait()
        wrong = self._native.error()
        if wrong:
            raise ReadError(wrong, hint="check the disk and that the file is whole: `baltoro fetch --verify`")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Since the reader was made."""

    backend: str
    bytes: int
    reads: int  # that came
    failed: int
    busy_s: float  # with at least one read under way
    cpu_s: float  # of the threads that read
    direct_files: int  # past the page cache
    buffered_files: int  # through it


class Reader:
    """Many files, many drives, many threads may use one. A slow drive holds up no other."""

    def __init__(self, backend: str | None = None, *, piece_bytes: int = PIECE, depth: int = DEPTH) -> None:
        """backend: one of `BACKENDS`; None: what BALTORO_READER says, or the first that runs here.
        depth: pieces of one drive that are under way together."""
        wanted = backend if backend is not None else os.environ.get("BALTORO_READER")
        if wanted is not None and wanted not in BACKENDS:
            name = "the reader" if backend is not None else "BALTORO_READER"
            raise BaltoroError(
                f"{name} is {wanted!r}, expected one of {', '.join(BACKENDS)}",
                hint="unset BALTORO_READER for the first that runs here",
            )
        if piece_bytes < UNIT or piece_bytes % UNIT or piece_bytes >= 2**31 or not 1 <= depth <= 128:
            raise BaltoroError(
                f"pieces of {piece_bytes} bytes, {depth} at a time",
                hint=f"pieces are multiples of {UNIT} bytes below 2 GiB, 1 to 128 at a time",
            )
        try:
            self._native = _native().make_reader(wanted or "", piece_bytes, depth)
        except OSError as error:
            raise BaltoroError(
                f"the reader {wanted!r} does not run here: {error.strerror}",
                hint="containers often forbid io_uring; unset BALTORO_READER for threads",
            ) from error
        self._under_way: deque[Ticket] = deque()  # a dropped ticket's memory must stay all the same
        self._lock = threading.Lock()
        self._files: list[File] = []

    def open(self, path: str | Path, *, direct: bool = True) -> File:
        """direct: past the page cache where the filesystem can; `File.direct` says what came of it."""
        path = Path(path)
        try:
            file = File(path, self._native.open(str(path), direct))
        except OSError as error:
            raise ReadError(f"{path} cannot be opened: {error.strerror}", hint="a file that may be read") from error
        except RuntimeError as error:
            raise ReadError(f"{path} cannot be opened: {error}", hint="make a new reader") from error
        self._files.append(file)
        return file

    def submit(self, file: File, offset: int, destination: Tensor, nbytes: int | None = None) -> Ticket:
        """Begin to read and return at once.

        destination: contiguous bytes in memory, its address and size multiples of `UNIT`; not to be looked at before
                     the ticket was waited for
        nbytes:      how many must come, at most the destination's size; None: all of it. Only the last unit of a file
                     may end early, so a range that ends with its file names its true size.
        """
        nbytes = destination.nbytes if nbytes is None else nbytes
        if destination.device.type != "cpu" or not destination.is_contiguous():
            raise ReadError(
                f"a destination on {destination.device} with strides {destination.stride()}",
                hint="reads go to contiguous memory of the CPU",
            )
        for what, value in (
            ("offset", offset),
            ("address", destination.data_ptr()),
            ("size of the destination", destination.nbytes),
        ):
            if value < 0 or value % UNIT:
                raise ReadError(f"{file.path}: {what} {value} is no multiple of {UNIT}", hint="read whole pages")
        if not 0 <= nbytes <= destination.nbytes or offset + nbytes > 2**62:
            raise ReadError(
                f"{file.path}: {nbytes} bytes at {offset} for a destination of {destination.nbytes}",
                hint="the destination holds what is read",
            )
        try:
            native = self._native.submit(file.native, offset, nbytes, destination.data_ptr())
        except RuntimeError as error:
            raise ReadError(f"{file.path} cannot be read: {error}", hint="make a new reader") from error
        ticket = Ticket(native, destination)
        with self._lock:
            while self._under_way and self._under_way[0].finished:
                self._under_way.popleft()
            self._under_way.append(ticket)
        return ticket

    def wait(self, tickets: Iterable[Ticket]) -> None:
        """Until all have finished; then the first one's error, if one failed. The others' stay with them."""
        tickets = tuple(tickets)
        failed: ReadError | None = None
        for ticket in tickets:
            try:
                ticket.wait()
            except ReadError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def statistics(self) -> Statistics:
        found = self._native.statistics()
        direct = sum(file.direct for file in self._files)
        return Statistics(
            backend=self._native.backend(),
            bytes=found.bytes,
            reads=found.reads,
            failed=found.failed,
            busy_s=found.busy_s,
            cpu_s=found.cpu_s,
            direct_files=direct,
            buffered_files=len(self._files) - direct,
        )

    def close(self) -> None:
        """Reads that have not come whole fail; when this returns nothing writes to their memory any more."""
        self._native.close()
        self._under_way.clear()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_files"):  # else it was never made
            self.close()  # before the memory that reads go to


def backends() -> tuple[str, ...]:
    """Those that run here, best first."""
    return tuple(_native().reader_backends())


def memory(nbytes: int) -> Tensor:
    """Bytes whose address and size are multiples of `UNIT`. What is read again and again belongs in a slab: huge pages
    are read into faster."""
    size = -(-nbytes // UNIT) * UNIT
    whole = torch.empty(size + UNIT, dtype=torch.uint8)
    start = -whole.data_ptr() % UNIT
    return whole[start : start + size]


def _native() -> Any:
    module = native()
    if not hasattr(module, "make_reader"):
        raise BaltoroError("asynchronous reads were not built for this system", hint="Linux or macOS")
    return module
