"""What is known of one file that is being fetched, or was: `DIR/.fetch/NAME.journal`, a line of JSON for each fact.

    {"size": 17000000000, "digest": "sha256:...", "version": null}      the file that is meant; always first
    {"prefix": 67108864, "hex": "..."}                                   digest of all bytes before this place
    {"start": 536870912, "end": 603979776, "sha256": "..."}              a stretch that came before its turn
    {"whole": "sha256:...", "mtime_ns": 1763000000000000000}             complete, compared, as the file then was

Lines are only appended, and a line that cannot be read (the last one, after a power cut) is passed over: what a lost
line knew is fetched again. Nothing has to be on disk before its line is: every claim carries a digest and is checked
against the bytes before it counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baltoro.weights.durable import append_fact, read_facts, replace_facts
from baltoro.weights.fetch.digest import Digest, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as its source describes it."""

    name: str  # path below the source and below DIR, with /
    size: int  # bytes
    digest: Digest | None = None  # published
    version: str | None = None  # ETag or date; tells a changed file where no digest is published

    @property
    def kind(self) -> Kind:
        return self.digest.kind if self.digest else "sha256"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes [start, end) that came before their turn."""

    start: int
    end: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Whole:
    digest: Digest
    mtime_ns: int


@dataclass(slots=True)
class Claims:
    """What a journal says; nothing of it is trusted before the bytes are read."""

    prefixes: dict[int, str] = field(default_factory=dict[int, str])  # end -> hex, ascending
    stretches: list[Stretch] = field(default_factory=list[Stretch])  # behind the last prefix, disjoint, ascending
    whole: Whole | None = None


class Journal:
    def __init__(self, path: Path, file: RemoteFile) -> None:
        self.path = path
        self.file = file

    def read(self) -> Claims | None:
        """None: there is no journal, or it is of another file than `self.file`."""
        try:
            facts = read_facts(self.path)
        except OSError:
            return None
        if not facts or not self._is_ours(facts[0]):
            return None
        return _claims(facts[1:], self.file)

    def _is_ours(self, fact: dict[str, Any]) -> bool:
        """The same digest, whatever the version says; where one of the two has none, the same version."""
        digest = Digest.parse(str(fact.get("digest")))
        if fact.get("size") != self.file.size:
            return False
        if digest is not None and self.file.digest is not None:
            return digest == self.file.digest
        return fact.get("version") == self.file.version and (digest is None or digest.kind == self.file.kind)

    def start(self, prefixes: dict[int, str] | None = None) -> None:
        """Begin anew, with nothing claimed but `prefixes`. The old journal is replaced whole."""
        digest = str(self.file.digest) if self.file.digest else None
        facts: list[dict[str, Any]] = [{"size": self.file.size, "digest": digest, "version": self.file.version}]
        facts += [{"prefix": end, "hex": value} for end, value in (prefixes or {}).items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_facts(self.path, facts)

    def prefix(self, end: int, value: str) -> None:
        append_fact(self.path, {"prefix": end, "hex": value})

    def stretch(self, stretch: Stretch) -> None:
        append_fact(self.path, {"start": stretch.start, "end": stretch.end, "sha256": stretch.sha256})

    def whole(self, whole: Whole) -> None:
        append_fact(self.path, {"whole": str(whole.digest), "mtime_ns": whole.mtime_ns})


def _claims(facts: list[dict[str, Any]], file: RemoteFile) -> Claims:
    prefixes: dict[int, str] = {}
    stretches: list[Stretch] = []
    whole: Whole | None = None
    for fact in facts:
        match fact:
            case {"prefix": int(end), "hex": str(value)} if 0 < end <= file.size:
                prefixes[end] = value
            case {"start": int(start), "end": int(end), "sha256": str(value)} if 0 <= start < end <= file.size:
                stretches.append(Stretch(start, end, value))
            case {"whole": str(text), "mtime_ns": int(mtime_ns)} if (digest := Digest.parse(text)) is not None:
                whole = Whole(digest, mtime_ns)
            case _:
                pass
    claims = Claims(dict(sorted(prefixes.items())), [], whole)
    reached = max(prefixes, default=0)
    for stretch in sorted(stretches, key=lambda each: (each.start, -each.end)):
        if stretch.start >= reached:
            claims.stretches.append(stretch)
            reached = stretch.end
    return claims
