"""The one folder that an agent sees and may change, and nothing around it.

A path from a model is a stranger's: links in it are followed first, and where it ends is compared then. Between that
look and the use nobody else is at work: calls of an episode run one after the other, and a command's processes end
with it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from baltoro.errors import BaltoroError, ToolError

CACHES = frozenset({"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"})  # nobody's work
LARGEST_FILE = 8 * 2**20  # bytes that file tools read


class Workspace:
    """A folder, and what in it may only be read."""

    def __init__(self, root: Path, protected: tuple[str, ...] = ()) -> None:
        """protected: files and folders under root, by their paths from it; `.git` is one always, at any depth."""
        if not root.is_dir():
            raise BaltoroError(f"{root} is no folder", hint="--workspace names one that exists")
        self.root = root.resolve()
        if Path.home().resolve().is_relative_to(self.root):
            raise BaltoroError(
                f"the workspace would be {self.root}, which has your home folder in it, keys and all",
                hint="--workspace names the folder of one project",
            )
        self.protected = tuple(self._protected(each) for each in protected)

    def _protected(self, name: str) -> str:
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root) or path == self.root:
            raise BaltoroError(f"protected: {name} is not under {self.root}", hint="give a path from the workspace")
        if not path.exists():
            raise BaltoroError(f"protected: there is no {path}", hint="what is not there cannot be kept as it is")
        return str(path.relative_to(self.root))

    def path(self, name: str) -> Path:
        """Where a name leads, links followed; under the root, or a ToolError."""
        try:
            path = (self.root / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a NUL
            raise ToolError(f"{name!r} is no path: {error}") from error
        if not path.is_relative_to(self.root):
            raise ToolError(f"{name} is outside the workspace {self.root}; only what is in it can be read or written")
        return path

    def writable(self, name: str) -> Path:
        path = self.path(name)
        if path == self.root:
            raise ToolError(f"{name} is the workspace itself, expected a file in it")
        if self.is_protected(path):
            raise ToolError(f"{name} is protected: it can be read and not written")
        return path

    def is_protected(self, path: Path) -> bool:
        told = path.relative_to(self.root)
        return ".git" in told.parts or any(told.is_relative_to(each) for each in self.protected)

    def name(self, path: Path) -> str:
        """As a model reads it."""
        return str(path.relative_to(self.root))

    def files(self, under: Path) -> Iterator[Path]:
        """Regular files in a stable order; links are not followed, git's and caches' own are passed over."""
        if under.is_file():
            yield under
            return
        for folder, folders, names in os.walk(under):
            folders[:] = sorted(each for each in folders if each != ".git" and each not in CACHES)
            for each in sorted(names):
                path = Path(folder) / each
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path

    def read_text(self, path: Path) -> str:
        """UTF-8 of a regular file; anything else is a ToolError."""
        told = self.name(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # a named pipe would wait for ever
        try:
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                raise ToolError(f"{told} is a folder, expected a file; `list` shows what is in it")
            if not stat.S_ISREG(found.st_mode):
                raise ToolError(f"{told} is no regular file")
            if found.st_size > LARGEST_FILE:
                raise ToolError(f"{told} has {found.st_size:,} bytes, expected at most {LARGEST_FILE:,}")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read()
        finally:
            os.close(descriptor)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ToolError(f"{told} is no UTF-8 text, from byte {error.start} on") from error

    def write_text(self, path: Path, text: str) -> None:
        """Whole or not at all; a file keeps its permissions."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.encode())
        except IsADirectoryError as error:
            raise ToolError(f"{self.name(path)} is a folder, expected a file") from error
        except UnicodeEncodeError as error:
            raise ToolError(f"the text has half a character, at {error.start}") from error


def replace_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Under a temporary name, then renamed. mode: permissions; None: those of the file there, or of a new one."""
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(path)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{os.urandom(4).hex()}")
    if mode is None and path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
    try:
        with temporary.open("xb") as file:
            file.write(data)
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
