"""Answers that were paid for, one JSON line each, on disk before they are used: a run that is killed never pays twice.

The first line says whose answers these are. A process that is killed leaves at most one torn line, the last one; it is
cut off when the file is opened again. One process at a time may write: the file is locked.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from baltoro.errors import BaltoroError

Json = Any


def key(*parts: Json) -> str:
    """The name of an answer: a digest of all that was asked."""
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """Appends, and remembers what it has. Used as a context."""

    def __init__(self, path: Path, owner: Mapping[str, Json]) -> None:
        """owner: what may not change from run to run, such as url and model"""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise BaltoroError(f"{path}: {error.strerror}", hint="--out names a folder of ours") from error
        try:
            self._records = self._opened(owner)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        self._descriptor = -1  # the number may be another file's by the time that somebody writes

    def __len__(self) -> int:
        return len(self._records)

    def get(self, name: str) -> Mapping[str, Json] | None:
        return self._records.get(name)

    def put(self, name: str, record: Mapping[str, Json]) -> None:
        """On disk when it returns."""
        self._write({"key": name, **record})
        self._records[name] = record

    def values(self) -> list[Mapping[str, Json]]:
        return list(self._records.values())

    def _opened(self, owner: Mapping[str, Json]) -> dict[str, Mapping[str, Json]]:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BaltoroError(f"{self._path} is in use", hint="another run writes it; --out names another") from error
        lines = self._path.read_bytes().split(b"\n")
        if torn := lines.pop():
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - len(torn))
        if not lines:
            self._write({"owner": dict(owner)})
            return {}
        try:
            first, *rest = (cast("dict[str, Json]", json.loads(line)) for line in lines)
            found = cast("dict[str, Json]", first["owner"])
            records: dict[str, Mapping[str, Json]] = {row.pop("key"): row for row in rest}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BaltoroError(f"{self._path} is no ledger of ours", hint="--out names another folder") from error
        if found != dict(owner):
            changed = [
                f"{name} {found.get(name)!r}" for name in {**found, **owner} if found.get(name) != owner.get(name)
            ]
            raise BaltoroError(
                f"{self._path} has answers of {', '.join(changed)}", hint="--out names another folder, or delete it"
            )
        return records

    def _write(self, row: Mapping[str, Json]) -> None:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"
        if os.write(self._descriptor, line) < len(line):
            raise BaltoroError(f"{self._path} cannot be written further: the disk is full")
        os.fsync(self._descriptor)
