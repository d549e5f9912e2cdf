"""Reading files back: digests at every piece, and whether a finished file is what it should be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from baltoro.weights.fetch.digest import Digest, Hash, new_hash
from baltoro.weights.fetch.journal import Claims, Journal, RemoteFile, Whole

STATE = ".fetch"  # the folder in DIR for what is unfinished, and for what is known of the finished
BLOCK = 2**20  # of a read


def paths(directory: Path, name: str) -> tuple[Path, Path, Path]:
    """Finished, unfinished, journal."""
    state = directory / STATE
    return directory / name, state / f"{name}.part", state / f"{name}.journal"


def blocks(descriptor: int, start: int, end: int) -> Iterator[memoryview]:
    """Bytes [start, end), or fewer where the file ends: the digest then tells."""
    buffer = memoryview(bytearray(min(BLOCK, max(0, end - start))))
    while start < end and (count := os.preadv(descriptor, [buffer[: end - start]], start)):
        yield buffer[:count]
        start += count


def prefixes(descriptor: int, start: int, size: int, state: Hash, piece_bytes: int) -> dict[int, str]:
    """Digests of everything before the end of each piece from `start` on; `state` grows to the end of the file."""
    found: dict[int, str] = {}
    while start < size:
        end = min(size, (start // piece_bytes + 1) * piece_bytes)
        for block in blocks(descriptor, start, end):
            state.update(block)
        found[end] = state.hexdigest()
        start = end
    return found


def expected(file: RemoteFile, claims: Claims | None) -> Digest | None:
    """What is published, or else what the bytes were when they came."""
    return file.digest or (claims.whole.digest if claims and claims.whole else None)


def is_as_recorded(path: Path, file: RemoteFile, whole: Whole | None) -> bool:
    """Whether nobody has touched the file since its digest was compared; nothing is read."""
    try:
        found = path.stat()
    except OSError:
        return False
    return (
        whole is not None
        and (found.st_size, found.st_mtime_ns) == (file.size, whole.mtime_ns)
        and file.digest in (None, whole.digest)
    )


def is_recorded(directory: Path, file: RemoteFile) -> bool:
    final, _, journal = paths(directory, file.name)
    claims = Journal(journal, file).read()
    return claims is not None and is_as_recorded(final, file, claims.whole)


def verdict(
    directory: Path,
    file: RemoteFile,
    stopped: Callable[[], bool] = lambda: False,
    count: Callable[[int], None] = lambda _: None,
) -> str | None:
    """What is wrong with a finished file; None: nothing. Reads every byte.

    A damaged file's journal forgets that the file was complete, so that the next fetch looks at it.
    """
    final, unfinished, journal_path = paths(directory, file.name)
    journal = Journal(journal_path, file)
    claims = journal.read() or Claims()
    digest = expected(file, claims)
    if not final.is_file():
        return "unfinished" if unfinished.is_file() else "missing"
    size = final.stat().st_size
    if digest is None:
        return "of unknown origin: no digest is published, and it was not fetched from there"
    if size != file.size:
        wrong = f"{size:,} bytes, expected {file.size:,}"
    else:
        try:
            wrong = _damage(final, file, digest, claims, stopped, count)
        except OSError as error:  # the disk itself gives up
            wrong = f"cannot be read: {error.strerror}"
    if wrong and claims.whole:
        with suppress(OSError):  # what may only be read can be verified too
            journal.start(claims.prefixes)
    return wrong


def _damage(
    path: Path,
    file: RemoteFile,
    digest: Digest,
    claims: Claims,
    stopped: Callable[[], bool],
    count: Callable[[int], None],
) -> str | None:
    state, start = new_hash(digest.kind, file.size), 0
    with path.open("rb", buffering=0) as disk:
        for end in sorted({*claims.prefixes, file.size}):
            for block in blocks(disk.fileno(), start, end):
                if stopped():
                    return None
                state.update(block)
                count(len(block))
            if claims.prefixes.get(end, state.hexdigest()) != state.hexdigest():
                return f"damaged, first between bytes {start:,} and {end:,}"
            start = end
    return None if state.hexdigest() == digest.hex else f"damaged: {digest.kind} {state.hexdigest()}, expected {digest}"
