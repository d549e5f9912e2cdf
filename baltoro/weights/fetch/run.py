"""A model's files -> a directory: list, choose, check the disk, download, say what was done."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from baltoro.errors import FetchError
from baltoro.weights.display import Display, duration, size
from baltoro.weights.fetch import check
from baltoro.weights.fetch.digest import Digest
from baltoro.weights.fetch.download import Download, Pace, Tally
from baltoro.weights.fetch.journal import RemoteFile
from baltoro.weights.fetch.sources import Listing, source_of, title
from baltoro.weights.fetch.spread import spread
from baltoro.weights.lock import locked


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a fetch has done; the object of `baltoro fetch --json`."""

    source: str
    revision: str | None  # the commit, where the source has one
    directory: str
    files: int  # that are complete now
    bytes: int
    fetched_files: int
    fetched_bytes: int  # over the line, what had to come twice counted twice
    repaired_bytes: int  # that were found damaged, here or on the way
    unpublished: list[str]  # files whose source publishes no digest: they are as they came
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verification has found; the object of `baltoro fetch --verify --json`."""

    source: str
    revision: str | None
    directory: str
    files: int
    bytes: int
    wrong: dict[str, str]  # name -> what is wrong with it
    seconds: float


def fetch(
    repo: str,
    directory: Path,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pace: Pace | None = None,
) -> Summary:
    """Make `directory` hold the files of `repo`, each compared with its published digest.

    Interrupted at any moment it goes on where it was; what is complete already is not read again.
    """
    pace, began = pace or Pace(), time.monotonic()
    if Path(repo).is_dir() and directory.exists() and directory.samefile(repo):
        raise FetchError(f"{directory} is both the source and the target", hint="name another directory")
    with Display("fetching") as display, _explained(directory):
        pace = replace(pace, patience=replace(pace.patience, say=display.grumble))
        source = source_of(repo, revision=revision, connections=pace.jobs, patience=pace.patience)
        listing = choose(source.list(), include, exclude)
        with _locked(directory):
            _remember(directory, listing)
            missing = [file for file in listing.files if not check.is_recorded(directory, file)]
            _check_disk(directory, missing)
            tally = Download(missing, source, directory, pace, display).run() if missing else Tally()
    return Summary(
        source=listing.source,
        revision=listing.revision,
        directory=str(directory),
        files=len(listing.files),
        bytes=sum(file.size for file in listing.files),
        unpublished=[file.name for file in listing.files if file.digest is None],
        seconds=round(time.monotonic() - began, 3),
        **asdict(tally),
    )


def verify(
    repo: str,
    directory: Path,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pace: Pace | None = None,
) -> Verdict:
    """Read every byte and compare. A directory that was fetched from `repo` knows its list: nothing is asked."""
    pace, began = pace or Pace(), time.monotonic()
    if not directory.is_dir():
        raise FetchError(f"{directory}: no such directory", hint="without --verify it is made and filled")
    listing = _recall(directory, repo, revision)
    with Display("verifying") as display, _explained(directory), _locked(directory):
        if listing is None:
            patience = replace(pace.patience, say=display.grumble)
            listing = source_of(repo, revision=revision, connections=pace.jobs, patience=patience).list()
        listing = choose(listing, include, exclude)
        wrong = _verdicts(directory, listing, pace.jobs, display)
    return Verdict(
        source=listing.source,
        revision=listing.revision,
        directory=str(directory),
        files=len(listing.files),
        bytes=sum(file.size for file in listing.files),
        wrong=wrong,
        seconds=round(time.monotonic() - began, 3),
    )


def _verdicts(directory: Path, listing: Listing, jobs: int, display: Display) -> dict[str, str]:
    stop, lock, seen = threading.Event(), threading.Lock(), 0
    total = sum(file.size for file in listing.files)

    def read(count: int) -> None:
        nonlocal seen
        with lock:
            seen += count

    def look(file: RemoteFile) -> str | None:
        return check.verdict(directory, file, stop.is_set, read)

    try:
        verdicts = spread(look, listing.files, jobs, tick=lambda: display.update(here=seen, total=total, moved=seen))
    finally:
        stop.set()
    return {file.name: wrong for file, wrong in zip(listing.files, verdicts, strict=True) if wrong}


def choose(listing: Listing, include: Sequence[str], exclude: Sequence[str]) -> Listing:
    """The files that a pattern of `include` names (all if there is none) and none of `exclude`."""
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(file.name, pattern) for file in listing.files):
            some = ", ".join(file.name for file in listing.files[:3])
            raise FetchError(
                f"no file of {listing.source} is called {pattern!r}", hint=f"there are {some} ...; * means any letters"
            )

    def wanted(name: str) -> bool:
        included = not include or any(fnmatchcase(name, pattern) for pattern in include)
        return included and not any(fnmatchcase(name, pattern) for pattern in exclude)

    files = tuple(file for file in listing.files if wanted(file.name))
    if not files:
        raise FetchError(f"of the {len(listing.files)} files of {listing.source} none is left to fetch")
    return Listing(source=listing.source, revision=listing.revision, files=files)


def _check_disk(directory: Path, files: Sequence[RemoteFile]) -> None:
    needed = sum(max(0, file.size - _allocated(directory, file)) for file in files)
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise FetchError(
            f"{directory} needs {size(needed)} more, and its disk has {size(free)} free",
            hint="choose a DIR on a larger disk, or take a part of the files with --include",
        )


def _allocated(directory: Path, file: RemoteFile) -> int:
    """Bytes on disk that will be used: of the unfinished file, or of a finished one that is likely right."""
    final, unfinished, _ = check.paths(directory, file.name)
    if unfinished.is_file():
        return min(file.size, unfinished.stat().st_blocks * 512)
    return file.size if final.is_file() and final.stat().st_size == file.size else 0


@contextmanager
def _explained(directory: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise FetchError(
            f"{error.filename or directory}: {error.strerror or error}", hint="what has arrived is kept"
        ) from error


@contextmanager
def _locked(directory: Path) -> Generator[None]:
    """One fetch at a time in a directory. What may only be read needs no lock: verify writes nothing there, and a fetch
    will say what it cannot write."""
    if directory.is_dir() and not os.access(directory, os.W_OK):
        yield
        return
    with locked(directory / check.STATE, "fetch", FetchError):
        yield


def _remember(directory: Path, listing: Listing) -> None:
    """The list, so that `verify` needs no network. Files of an earlier list that was another part are kept in it."""
    old = _read_listing(directory)
    files = {file.name: file for file in listing.files}
    if old is not None and (old.source, old.revision) == (listing.source, listing.revision):
        files = {file.name: file for file in old.files} | files
    facts = [
        {"name": file.name, "size": file.size, "digest": str(file.digest or "") or None, "version": file.version}
        for file in files.values()
    ]
    path = directory / check.STATE / "listing.json"
    unfinished = path.with_name("listing.json.new")
    content = {"source": listing.source, "revision": listing.revision, "files": facts}
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _recall(directory: Path, repo: str, revision: str | None) -> Listing | None:
    listing = _read_listing(directory)
    if listing is None or listing.source != title(repo) or revision not in (None, listing.revision):
        return None
    return listing


def _read_listing(directory: Path) -> Listing | None:
    try:
        facts = json.loads((directory / check.STATE / "listing.json").read_text(encoding="utf-8"))
        files = tuple(
            RemoteFile(
                name=each["name"], size=each["size"], digest=Digest.parse(str(each["digest"])), version=each["version"]
            )
            for each in facts["files"]
        )
        return Listing(source=facts["source"], revision=facts["revision"], files=files)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def line(result: Summary | Verdict) -> str:
    """What a person reads at the end."""
    if isinstance(result, Verdict):
        wrong = [f"{name}: {what}" for name, what in result.wrong.items()]
        right = result.files - len(wrong)
        return "\n".join(
            [*wrong, f"{result.directory}: {right} of {result.files} files are right, {size(result.bytes)}"]
        )
    parts = [f"{result.directory}: {result.files} files, {size(result.bytes)}"]
    if result.fetched_files:
        parts.append(f"{size(result.fetched_bytes)} fetched in {duration(result.seconds)}")
    if result.repaired_bytes:
        parts.append(f"{size(result.repaired_bytes)} repaired")
    if result.unpublished:
        parts.append(f"{len(result.unpublished)} without a published digest")
    return ", ".join(parts)
