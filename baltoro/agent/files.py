"""Tools that look at files and change them, within a workspace."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import regex

from baltoro.agent.tool import AgentTool, ToolResult, tool
from baltoro.agent.workspace import CACHES, Workspace
from baltoro.errors import ToolError

READ_LINES = 400  # of one call, unless it asks for another number
MATCHES = 100  # of one search
ENTRIES = 500  # of one list
LINE_CHARS = 1_000  # longer lines are cut, and it is said
SEARCH_S = 20.0

Path_ = Annotated[str, "from the workspace's root"]


class Files:
    """The tools of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def tools(self) -> list[AgentTool]:
        return [tool(each) for each in (self.read, self.write, self.edit, self.search, self.list)]

    def read(
        self,
        path: Path_,
        first_line: Annotated[int, "counted from 1"] = 1,
        num_lines: Annotated[int, "how many at most"] = READ_LINES,
    ) -> ToolResult:
        """Read a text file. Every line comes with its number and a tab before it; these are not in the file."""
        text = self._workspace.read_text(self._existing(path))
        lines = text.split("\n")
        if lines[-1] == "":
            lines.pop()  # the newline at the end begins no line
        if first_line < 1 or num_lines < 1:
            raise ToolError(f"first_line is {first_line} and num_lines {num_lines}, expected 1 or more")
        if first_line > len(lines) > 0:
            raise ToolError(f"{path} has {len(lines)} lines, first_line is {first_line}")
        shown = lines[first_line - 1 : first_line - 1 + num_lines]
        last = first_line + len(shown) - 1
        body = "\n".join(f"{number}\t{_line(line)}" for number, line in enumerate(shown, first_line))
        left = len(lines) - last
        rest = f"\n[{left} more lines; go on with first_line {last + 1}]" if left else ""
        told = body + rest if lines else f"[{path} is empty]"
        return ToolResult(for_model=told, for_user=f"{path}: lines {first_line} to {last} of {len(lines)}")

    def write(self, path: Path_, content: Annotated[str, "the whole new text of the file"]) -> ToolResult:
        """Write a text file: a new one, or all of an old one anew. To change a part of a file, use edit."""
        place = self._workspace.writable(path)
        self._workspace.write_text(place, content)
        return _said(f"{path}: {len(content.splitlines())} lines written")

    def edit(
        self,
        path: Path_,
        old: Annotated[str, "text as it is in the file, to the last blank; with enough of it to be there once"],
        new: Annotated[str, "what is to stand there"],
        everywhere: Annotated[bool, "replace it wherever it is"] = False,
    ) -> ToolResult:
        """Replace text in a file."""
        place = self._workspace.writable(path)
        text = self._workspace.read_text(self._existing(path))
        count = text.count(old) if old else 0
        if not count:
            raise ToolError(f"old is not in {path}; read the file and copy it exactly, without line numbers")
        if count > 1 and not everywhere:
            raise ToolError(f"old is {count} times in {path}; give more of the text around it, or everywhere")
        if old == new:
            raise ToolError("old and new are the same")
        self._workspace.write_text(place, text.replace(old, new))
        line = text[: text.index(old)].count("\n") + 1
        return _said(f"{path}: replaced {f'{count} times' if count > 1 else f'at line {line}'}")

    def search(
        self,
        pattern: Annotated[str, "a regular expression of Python, looked for in every line"],
        path: Annotated[str, "a file or folder to look in"] = ".",
        files: Annotated[str, "only files whose name or path is like this, such as *.py"] = "*",
        ignore_case: bool = False,
    ) -> ToolResult:
        """Find lines in the files of the workspace. Each is told as PATH:LINE: TEXT."""
        try:
            wanted = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
        except regex.error as error:
            raise ToolError(f"pattern is no regular expression: {error}") from error
        found: list[str] = []
        end_s = time.monotonic() + SEARCH_S
        for line in self._lines(self._existing(path), wanted, files, end_s):
            if len(found) == MATCHES:
                found.append(f"[more than {MATCHES} lines match; narrow path, files or pattern]")
                break
            found.append(line)
        return ToolResult(
            for_model="\n".join(found) or "no line matches", for_user=f"{pattern}: {min(len(found), MATCHES)} lines"
        )

    def list(self, path: Annotated[str, "a folder"] = ".", depth: Annotated[int, "how many levels"] = 2) -> ToolResult:
        """Show what is in a folder: folders end with /, files have their size in bytes."""
        place = self._existing(path)
        if not place.is_dir():
            raise ToolError(f"{path} is a file, expected a folder")
        entries = [each for _, each in zip(range(ENTRIES + 1), self._entries(place, depth), strict=False)]
        if len(entries) > ENTRIES:
            entries[ENTRIES] = f"[more than {ENTRIES} entries; name a folder in it, or less depth]"
        return ToolResult(for_model="\n".join(entries) or f"[{path} is empty]", for_user=f"{path}: {len(entries)}")

    def _existing(self, path: str) -> Path:
        place = self._workspace.path(path)
        if not place.exists():
            raise ToolError(f"there is no {path!r}; `list` shows what there is")
        return place

    def _lines(self, under: Path, wanted: regex.Pattern[str], files: str, end_s: float) -> Iterator[str]:
        for file in self._workspace.files(under):
            told = self._workspace.name(file)
            if not (fnmatch.fnmatch(file.name, files) or fnmatch.fnmatch(told, files)):
                continue
            try:
                text = self._workspace.read_text(file)
            except (ToolError, OSError):
                continue  # no text
            for number, line in enumerate(text.split("\n"), 1):
                try:  # a pattern may need time that doubles with every character
                    found = wanted.search(line, timeout=max(0.001, end_s - time.monotonic()))
                except TimeoutError:
                    yield f"[stopped after {SEARCH_S:.0f} s in {told}; narrow path, files or pattern]"
                    return
                if found:
                    yield f"{told}:{number}: {_line(line)}"

    def _entries(self, folder: Path, depth: int, indent: str = "") -> Iterator[str]:
        for entry in sorted(folder.iterdir()):
            if entry.name in CACHES:
                continue
            if entry.is_symlink():
                yield f"{indent}{entry.name} -> {entry.readlink()}"
            elif entry.is_dir():
                yield f"{indent}{entry.name}/"
                if depth > 1 and entry.name != ".git":
                    yield from self._entries(entry, depth - 1, indent + "  ")
            else:
                yield f"{indent}{entry.name}  {entry.stat().st_size:,}"


def _line(line: str) -> str:
    return line if len(line) <= LINE_CHARS else f"{line[:LINE_CHARS]} [{len(line) - LINE_CHARS:,} more characters]"


def _said(text: str) -> ToolResult:
    return ToolResult(for_model=text, for_user=text)
