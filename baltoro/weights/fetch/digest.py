"""Digests of files as they are published: sha256 of large files, git's blob sha1 of small ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, Self

Kind = Literal["sha256", "git-sha1"]


class Hash(Protocol):
    """What we use of hashlib's objects; both kinds are one type there, and its stub has no public name."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Self: ...


@dataclass(frozen=True, slots=True)
class Digest:
    kind: Kind
    hex: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.hex}"

    @staticmethod
    def parse(text: str) -> Digest | None:
        """The inverse of `str`; None for anything else."""
        kind, _, value = text.partition(":")
        for known in ("sha256", "git-sha1"):
            if kind == known and _looks_right(known, value):
                return Digest(known, value)
        return None

    @staticmethod
    def of_etag(etag: str | None) -> Digest | None:
        """The hub's X-Linked-Etag: a sha256 or a git blob's sha1, in quotes; None if it is neither."""
        value = (etag or "").strip().strip('"').lower()
        return Digest.parse(f"sha256:{value}") or Digest.parse(f"git-sha1:{value}")


def _looks_right(kind: Kind, value: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}" if kind == "sha256" else r"[0-9a-f]{40}", value) is not None


def new_hash(kind: Kind, size: int) -> Hash:
    """The state before the first byte of a file of `size` bytes; git puts kind and size in front of the content."""
    return hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


_SUMS_LINE = re.compile(r"\\?([0-9a-fA-F]{64})[ \t]+\*?(\S.*)")
_BSD_LINE = re.compile(r"SHA256 ?\((.+)\) ?= ?([0-9a-fA-F]{64})")


def parse_sums(text: str) -> dict[str, Digest]:
    """Name -> sha256 of what `sha256sum` or `shasum --tag` wrote; lines of another form are not ours to judge."""
    return {name.removeprefix("./"): Digest("sha256", value.lower()) for name, value in _sums(text)}


def _sums(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if match := _SUMS_LINE.fullmatch(line.strip()):
            yield match[2], match[1]
        elif match := _BSD_LINE.fullmatch(line.strip()):
            yield match[1], match[2]
