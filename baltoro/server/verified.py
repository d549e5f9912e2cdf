"""The last score of `baltoro verify`, for /health: what its report says, read anew when it has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from baltoro.errors import BaltoroError

Json = Any
SHOWN = ("at", "target", "model", "schema_accuracy", "tool_call_f1", "count_finish_reason_tool_calls",
         "count_successful_tool_call", "verdicts")  # fmt: skip


class Verified:
    """A report that may be replaced, or not be there yet, at any time."""

    def __init__(self, path: Path) -> None:
        """Refuses what is there and is no report."""
        self._path = path
        self._stamp: tuple[int, int] | None = None  # of the file that was read last: time of change, inode
        self._score: dict[str, Json] | None = None
        if path.exists() and self._read() is None:
            raise BaltoroError(f"{path} is no report", hint="--verified takes report.json of `baltoro verify`")

    def score(self) -> dict[str, Json] | None:
        """None where nothing is verified. A file that cannot be read ends no server's health."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self._score, self._stamp = self._read(), stamp
        return self._score

    def _read(self) -> dict[str, Json] | None:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(document, dict) or "schema_accuracy" not in document:
            return None
        report = cast("dict[str, Json]", document)
        return {name: report.get(name) for name in SHOWN}
