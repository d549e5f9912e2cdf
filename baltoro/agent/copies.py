"""A workspace as data: what its files are, copies of it, and what changed between two states.

No git here: a model may have written the configuration that git would obey, and git would run outside of the sandbox.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from baltoro.agent.workspace import CACHES, LARGEST_FILE, Workspace, replace_file
from baltoro.errors import BaltoroError

MOST_BYTES = 2 * 2**30  # of a workspace that is copied


class Entry(NamedTuple):
    """A file or a link. Folders are what files are in."""

    kind: str  # file, link
    mode: int  # permissions
    digest: str  # of the content; where a link leads


State = Mapping[str, Entry]  # path from the root -> what is there


@dataclass(frozen=True, slots=True)
class Change:
    path: str
    before: Entry | None  # None: it is new
    after: Entry | None  # None: it is gone


def state(root: Path) -> State:
    """Of everything but `.git` and caches; what is neither file, folder nor link is passed over."""
    found: dict[str, Entry] = {}
    for path, status in _walk(root):
        told = str(path.relative_to(root))
        if stat.S_ISLNK(status.st_mode):
            found[told] = Entry("link", 0, str(path.readlink()))
        elif stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[told] = Entry("file", stat.S_IMODE(status.st_mode), digest)
    return found


def digest(found: State) -> str:
    """The same for the same files."""
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def changes(before: State, after: State) -> list[Change]:
    """In the order of paths."""
    paths = sorted(before.keys() | after.keys())
    return [Change(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]


def copy(root: Path, target: Path) -> None:
    """All of a workspace, `.git` included; links stay links."""
    size = sum(status.st_size for _, status in _walk(root))
    free = shutil.disk_usage(target.parent).free
    if size > min(MOST_BYTES, free):
        raise BaltoroError(
            f"{root} has {size:,} bytes, expected at most {min(MOST_BYTES, free):,} for a copy",
            hint="a smaller workspace, or one attempt, which needs no copy",
        )
    shutil.copytree(root, target, symlinks=True, ignore=_passed_over)


def diff(before: Path, after: Path, found: list[Change]) -> str:
    """As `diff -u` prints it; of what is no text only that it changed."""
    return "".join(line for change in found for line in _lines(before, after, change))


def apply(found: list[Change], source: Path, workspace: Workspace, base: State) -> None:
    """Make the workspace what `source` is, where these say. All or, where it is not as in `base`, nothing."""
    here = state(workspace.root)
    for change in found:
        if here.get(change.path) != base.get(change.path):
            raise BaltoroError(
                f"{change.path} changed in {workspace.root} meanwhile, and nothing was applied",
                hint=f"the attempt's files are in {source}",
            )
        if workspace.is_protected(workspace.root / change.path):
            raise BaltoroError(f"{change.path} is protected, and nothing was applied", hint=f"they are in {source}")
    for change in reversed(found):  # what is in a folder goes before what takes the folder's place
        if change.after is None or (change.before is not None and change.before.kind != change.after.kind):
            place = workspace.root / change.path
            place.unlink(missing_ok=True)
            _remove_empty(place.parent, workspace.root)
    for change in found:
        if change.after is not None:
            _put(source / change.path, workspace.root / change.path, change.after, workspace)


def _put(source: Path, place: Path, entry: Entry, workspace: Workspace) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.parent.resolve().is_relative_to(workspace.root):
        raise BaltoroError(f"{place} leads out of the workspace", hint="a link stands where a folder was")
    if entry.kind == "file":
        replace_file(place, source.read_bytes(), entry.mode)
        return
    place.unlink(missing_ok=True)
    place.symlink_to(entry.digest)


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, folders, names in os.walk(root):
        links = [each for each in folders if (Path(folder) / each).is_symlink()]
        folders[:] = sorted(each for each in folders if each != ".git" and each not in CACHES and each not in links)
        for each in sorted([*names, *links]):
            path = Path(folder) / each
            if each != ".git":  # a file in worktrees
                yield path, path.lstat()


def _passed_over(folder: str, names: list[str]) -> set[str]:
    """Caches, and what cannot be copied: pipes, sockets, devices."""
    kinds = {each: stat.S_IFMT(os.lstat(Path(folder) / each).st_mode) for each in names}
    return {each for each in names if each in CACHES or kinds[each] not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)}


def _lines(before: Path, after: Path, change: Change) -> Iterator[str]:
    old, new = _text(before / change.path, change.before), _text(after / change.path, change.after)
    if old is None or new is None:
        yield f"Binary files a/{change.path} and b/{change.path} differ\n"
        return
    if old == new:
        yield f"a/{change.path} and b/{change.path} differ in their permissions\n"
    names = (
        "/dev/null" if change.before is None else f"a/{change.path}",
        "/dev/null" if change.after is None else f"b/{change.path}",
    )
    for line in difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), *names):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _text(path: Path, entry: Entry | None) -> str | None:
    """ "" of nothing, None of what is no text."""
    if entry is None:
        return ""
    if entry.kind == "link":
        return f"-> {entry.digest}\n"
    if path.stat().st_size > LARGEST_FILE:
        return None
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
