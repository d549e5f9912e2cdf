"""Pages of the prefix tree as files: what is in one, which are there, how many there may be.

    DIR/pages/lock                       one process at a time
    DIR/pages/4f1c…e9.page               one page: a header, padded to whole units of a disk, then its latents
    DIR/pages/4f1c…e9.page.new           being written, or its writer was killed: removed at the next start

    header   magic | fingerprint | parent | ids | bytes | crc32 of the latents | the ids of its positions
             a file is named by `prefix.digest(parent, ids)`, the digest of its whole prefix

A page alone, of Kimi K2 4.5 MB, is what disks read at full speed, and what can come and go by itself: there is nothing
else on disk that a stop at any moment could leave half true. At the start the headers are read; the latents are
compared with their checksum when they are wanted. Files of another model, of another shape or damaged are removed.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baltoro.engine.prefix import Ids, digest
from baltoro.errors import EngineError
from baltoro.kernels.reader import UNIT
from baltoro.weights.lock import locked

_log = logging.getLogger(__name__)

MAGIC = b"baltoro1"  # another number for another layout of these files or of the latents in them
_HEADER = struct.Struct("<8s32s32sIQI")
SUFFIX, UNFINISHED = ".page", ".page.new"
CUT = "cut off, or of another shape"

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageShape:
    """What every file of a directory holds."""

    fingerprint: bytes  # 32: of everything that latents depend on beside the ids
    page_tokens: int
    page_bytes: int  # of the latents, over all layers

    @property
    def header_bytes(self) -> int:
        return -(-(_HEADER.size + 4 * self.page_tokens) // UNIT) * UNIT

    @property
    def file_bytes(self) -> int:
        return self.header_bytes + self.page_bytes


class PrefixFiles:
    """Any thread may ask; each file is written, or read, by one."""

    def __init__(self, directory: str | Path, shape: PageShape, *, budget_bytes: int) -> None:
        """Lock the directory, made if it is not there, and see what is in it; EngineError where that cannot be."""
        self.shape = shape
        self.capacity = budget_bytes // shape.file_bytes  # files
        if self.capacity < 1:
            raise EngineError(
                f"the prefix cache on disk may have {budget_bytes} bytes, and one page takes {shape.file_bytes}",
                hint="give it gigabytes: --prefix-cache-size 20GiB",
            )
        self.folder = Path(directory) / "pages"
        self._guard = threading.Lock()
        self._known: dict[bytes, None] = {}  # digests, least recently used first
        self._open = ExitStack()
        self._open.enter_context(locked(self.folder, "prefix cache", EngineError))
        try:
            self._look()
        except BaseException:
            self._open.close()
            raise

    def __contains__(self, name: bytes) -> bool:
        return name in self._known

    def __len__(self) -> int:
        return len(self._known)

    def path(self, name: bytes) -> Path:
        return self.folder / f"{name.hex()}{SUFFIX}"

    def write(self, parent: bytes, ids: Ids, latents: Bytes) -> None:
        """Add a page, the least recently used ones making room. OSError where the disk does not take it."""
        name = digest(parent, ids)
        if name in self:
            self.touch([name])
            return
        with self._guard:
            superfluous = list(self._known)[: max(0, len(self._known) + 1 - self.capacity)]
        for each in superfluous:
            self._remove(each)
        crc = zlib.crc32(latents.data)
        head = _HEADER.pack(MAGIC, self.shape.fingerprint, parent, len(ids), latents.nbytes, crc)
        unfinished = self.folder / f"{name.hex()}{UNFINISHED}"
        try:
            with unfinished.open("wb", buffering=0) as file:
                _write_all(file.fileno(), (head + array("i", ids).tobytes()).ljust(self.shape.header_bytes, b"\0"))
                _write_all(file.fileno(), latents.data)
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):  # it is read past the page cache
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _stamp(unfinished)
            unfinished.replace(self.path(name))
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise
        with self._guard:
            self._known[name] = None

    def touch(self, names: Iterable[bytes]) -> None:
        """They were used just now, the last one last. Their files' times tell the next process."""
        for name in names:
            with self._guard:
                if name not in self._known:
                    continue
                del self._known[name]
                self._known[name] = None
            with suppress(OSError):  # then it only counts as older than it is
                _stamp(self.path(name))

    def problem(self, content: Bytes, name: bytes) -> str | None:
        """Why a file's whole content is not the page `name`; None where it is."""
        if problem := self._wrong_header(content[: self.shape.header_bytes].tobytes(), name):
            return problem
        crc = _HEADER.unpack_from(content.data)[-1]
        return None if crc == zlib.crc32(content[self.shape.header_bytes :].data) else "damaged: its checksum differs"

    def discard(self, name: bytes, problem: str) -> None:
        """One that cannot be used: what it held is computed again."""
        _log.warning("prefix cache: %s is discarded: %s", self.path(name), problem)
        self._remove(name)

    def close(self) -> None:
        self._open.close()

    def _remove(self, name: bytes) -> None:
        with self._guard:
            self._known.pop(name, None)
        with suppress(OSError):
            self.path(name).unlink()

    def _look(self) -> None:
        """Index what is there, and remove what is of no use, with one line of log for every kind of it."""
        found: list[tuple[int, bytes]] = []
        useless: Counter[str] = Counter()
        for path in self.folder.iterdir():
            if path.name.endswith(UNFINISHED):
                path.unlink()
            elif path.name.endswith(SUFFIX):
                problem = self._inspect(path)
                if problem is None:
                    found.append((path.stat().st_mtime_ns, bytes.fromhex(path.stem)))
                else:
                    useless[problem] += 1
                    path.unlink()
        for problem, count in useless.items():
            _log.warning("prefix cache %s: %d files are discarded: %s", self.folder, count, problem)
        self._known = dict.fromkeys(name for _, name in sorted(found))
        for name in list(self._known)[: max(0, len(found) - self.capacity)]:  # the budget was larger once
            self._remove(name)

    def _inspect(self, path: Path) -> str | None:
        try:
            if path.stat().st_size != self.shape.file_bytes:
                return CUT
            with path.open("rb") as file:
                head = file.read(self.shape.header_bytes)
            return self._wrong_header(head, bytes.fromhex(path.stem))
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except ValueError:  # not a digest in hexadecimal
            return "not named as such files are"

    def _wrong_header(self, head: bytes, name: bytes) -> str | None:
        magic, fingerprint, parent, count, nbytes, _ = _HEADER.unpack_from(head)
        if magic != MAGIC:
            return "not of this version"
        if fingerprint != self.shape.fingerprint:
            return "of another model, or of other settings"
        if (count, nbytes) != (self.shape.page_tokens, self.shape.page_bytes):
            return CUT
        ids = array("i", head[_HEADER.size : _HEADER.size + 4 * count])
        return None if digest(parent, tuple(ids)) == name else "damaged: its ids are not those of its name"


def _stamp(path: Path) -> None:
    """By the clock's own nanoseconds: the kernel's stamps are the same for some milliseconds."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]
