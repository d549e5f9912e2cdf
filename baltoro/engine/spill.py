"""Pages of the prefix tree on their way to disk and back, beside the engine's steps.

    the engine's thread   evicts a page ──copy──> queue ─────> the writer's thread: a file
                          admits a request whose prefix goes on among the files:
                              its own pages, a `Restore` <──── the restorer's thread: files ──checked──> those pages
                          sees later that it has finished, and gives the pages to the tree

The step pays for one copy of an evicted page, and for nothing of a restored one. A queue that is full takes no more:
a prefix that is lost is computed again, but a step that waits for a disk holds up everyone.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from baltoro.engine.prefix import ROOT, Ids, Node, PrefixTree, digest, pages_of
from baltoro.engine.prefix_files import Bytes, PrefixFiles
from baltoro.errors import ReadError
from baltoro.kernels.reader import UNIT, Reader, Ticket, memory

_log = logging.getLogger(__name__)

QUEUED = 256 * 2**20  # bytes of evicted pages that may wait for the writer
AHEAD = 64 * 2**20  # bytes asked of the disk while as many are checked and copied
MOST_FILES = 64  # opened for that


@dataclass(slots=True, eq=False)
class Restore:
    """Some pages of one request that are being read. The engine's thread looks at it; the restorer's fills it."""

    names: list[bytes]  # of the files, in the order of positions
    pages: tuple[int, ...]  # where they go: the request's own
    restored: int = 0  # of `names`, from the first on; the others must be computed
    finished: bool = False
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _cancelled: bool = False

    def cancel(self) -> None:
        """When this returns nothing writes to its pages any more."""
        with self._guard:
            self._cancelled = True

    def put(self, cache: Bytes, latents: Bytes) -> bool:
        """Copy the next page to its place; False where nobody wants it any more."""
        with self._guard:
            if not self._cancelled:
                cache[:, self.pages[self.restored]] = latents
                self.restored += 1
            return not self._cancelled


@dataclass(frozen=True, slots=True)
class _Evicted:
    parent: bytes
    ids: Ids
    latents: Bytes | None  # None: its file is there, and was used


class Spill:
    """`save` and `restore` are for the engine's thread."""

    def __init__(self, files: PrefixFiles, latents: Tensor, *, wake: Callable[[], None]) -> None:
        """latents: LatentCache.latents. wake: called on the restorer's thread whenever a `Restore` has finished."""
        self.files = files
        self.spilled_bytes = self.restored_bytes = 0
        self._wake = wake
        self._cache = cast("Bytes", latents.view(torch.uint8).numpy())  # (layers, pages, page_tokens, bytes a token)
        self._queue: queue.Queue[_Evicted | None] = queue.Queue(max(4, QUEUED // files.shape.page_bytes))
        self._wanted: queue.SimpleQueue[Restore | None] = queue.SimpleQueue()
        Reader().close()  # where it does not run, that is told now
        self._batch = max(1, min(MOST_FILES, AHEAD // files.shape.file_bytes))
        self._threads = [
            threading.Thread(target=work, name=f"baltoro-{name}", daemon=True)
            for name, work in (("spill", self._write), ("restore", self._restore))
        ]
        for thread in self._threads:
            thread.start()

    def save(self, node: Node, *, wait: bool = False) -> None:
        """Copy its page, which may then be overwritten; it is written soon, or not at all where too many wait."""
        parent = ROOT if node.parent is None else node.parent.digest
        known = node.digest in self.files
        if not known and not wait and self._queue.full():
            return
        evicted = _Evicted(parent, node.ids, None if known else self._cache[:, node.page].copy())
        with suppress(queue.Full):  # a known one, which then merely looks older than it is
            self._queue.put(evicted, block=wait)

    def save_all(self, tree: PrefixTree) -> None:
        """At the end, when nobody holds a page: as many as there may be files, the longest unused ones first."""
        for node in tree.idle()[-self.files.capacity :]:
            self.save(node, wait=True)

    def restore(
        self, prompt: Sequence[int], shared: Sequence[Node], pages: Sequence[int], tokens: int
    ) -> Restore | None:
        """Begin to read what the files know of `prompt` behind `shared`, up to position `tokens`; None: nothing.

        pages: the request's, in order. Those that are read to must stay its own until it has finished.
        """
        page_tokens = self.files.shape.page_tokens
        names: list[bytes] = []
        name = shared[-1].digest if shared else ROOT
        for ids in pages_of(prompt, len(shared), tokens // page_tokens, page_tokens):
            name = digest(name, ids)
            if name not in self.files:
                break
            names.append(name)
        if not names:
            return None
        job = Restore(names, tuple(pages[len(shared) : len(shared) + len(names)]))
        self._wanted.put(job)
        return job

    def close(self) -> None:
        """What was saved is on disk when this returns."""
        self._queue.put(None)
        self._wanted.put(None)
        for thread in self._threads:
            thread.join()

    # ── the writer's thread ──────────────────────────────────────────────────────────────────────

    def _write(self) -> None:
        failing = False
        while (evicted := self._queue.get()) is not None:
            try:
                if evicted.latents is None:
                    self.files.touch([digest(evicted.parent, evicted.ids)])
                    continue
                self.files.write(evicted.parent, evicted.ids, evicted.latents)
                self.spilled_bytes += self.files.shape.file_bytes
                failing = False
            except OSError as error:
                if not failing:  # a full disk fails for every page, and is told once
                    _log.warning("prefix cache: %s takes no more: %s", self.files.folder, error.strerror)
                failing = True
            except Exception:  # the outermost loop of this thread: whoever stops the engine waits for it
                _log.exception("prefix cache: a page was not written")

    # ── the restorer's thread ────────────────────────────────────────────────────────────────────

    def _restore(self) -> None:
        buffers: list[Bytes] = []
        while (job := self._wanted.get()) is not None:
            try:
                if not buffers:
                    size = -(-self.files.shape.file_bytes // UNIT) * UNIT
                    whole = memory(2 * self._batch * size)
                    buffers = [cast("Bytes", whole[at : at + size].numpy()) for at in range(0, len(whole), size)]
                self._read(job, buffers)
                self.restored_bytes += job.restored * self.files.shape.file_bytes
                self.files.touch(reversed(job.names[: job.restored]))  # a parent stays longer than its children
            except Exception:  # the outermost loop of this thread: requests wait for it
                _log.exception("prefix cache: pages were not restored")
            job.finished = True
            self._wake()

    def _read(self, job: Restore, buffers: list[Bytes]) -> None:
        """One batch of files is checked and copied while the next one comes."""
        coming: deque[_Coming] = deque()
        try:
            for index, at in enumerate(range(0, len(job.names), self._batch)):
                room = buffers[index % 2 * self._batch :]
                coming.append(_Coming(self.files, job.names[at : at + self._batch], room))
                if len(coming) == 2 and not self._take(job, coming.popleft()):
                    return
            self._take(job, coming.popleft())
        finally:
            for each in coming:
                each.close()

    def _take(self, job: Restore, coming: _Coming) -> bool:
        """False where the chain breaks: what lies behind cannot be used."""
        header = self.files.shape.header_bytes
        layers, _, *page = self._cache.shape
        with closing(coming):
            for name in coming.names:
                content, problem = coming.content(name)
                problem = problem or self.files.problem(content, name)
                if problem is not None:
                    self.files.discard(name, problem)
                    return False
                if not job.put(self._cache, content[header:].reshape(layers, *page)):
                    return False
        return True


class _Coming:
    """Some files that are being read, each to a buffer of its own. They are closed with it."""

    def __init__(self, files: PrefixFiles, names: list[bytes], buffers: list[Bytes]) -> None:
        self.names = names
        self._nbytes = files.shape.file_bytes
        self._buffers = dict(zip(names, buffers, strict=False))
        self._tickets: dict[bytes, Ticket | str] = {}
        self._reader = Reader()
        for name in names:
            try:
                file = self._reader.open(files.path(name))
                to = torch.from_numpy(self._buffers[name])
                self._tickets[name] = self._reader.submit(file, 0, to, self._nbytes)
            except ReadError as error:
                self._tickets[name] = error.message

    def content(self, name: bytes) -> tuple[Bytes, str | None]:
        """A file's bytes, or why they do not come."""
        ticket, content = self._tickets[name], self._buffers[name][: self._nbytes]
        if isinstance(ticket, str):
            return content, ticket
        try:
            ticket.wait()
        except ReadError as error:
            return content, error.message
        return content, None

    def close(self) -> None:
        self._reader.close()
