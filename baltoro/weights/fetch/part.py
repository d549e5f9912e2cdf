"""One file on its way: which bytes are here, which are asked for, and whether they are what was published.

                0            frontier                                              size
    NAME.part   |####hashed####|......|###ahead###|..........|###ahead###|...........|
                               lease ->                lease ->

The whole-file hash grows with the bytes as they come, in order; bytes that come before their turn are a stretch with a
sha256 of their own, and are read back once the frontier reaches them. What an earlier run left is read again and
compared with the digests in its journal, so that bytes that have rotted since are found, and they alone are fetched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from baltoro.errors import FetchError
from baltoro.weights.fetch import check
from baltoro.weights.fetch.digest import Digest, Hash, new_hash
from baltoro.weights.fetch.journal import Claims, Journal, RemoteFile, Stretch, Whole

PIECE = 64 * 2**20  # bytes between two lines of the journal: what kill -9 can cost a worker
LARGE = 2**30  # bytes that take so long to read that a person should know
TRIES = 4  # times a round hashes the rest of the file early, hoping that the piece just replaced was the wrong one
ROUNDS = 2  # times a whole file is asked for again because it is not what is published


class Stopped(Exception):
    """The run is over; what this lease had is in the journal."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """Bytes that are on disk beyond the frontier, and what they must be; no digest: they came in this run."""

    start: int
    end: int
    prefix: str | None = None  # of everything before `end`
    own: str | None = None  # sha256 of [start, end)


class Lease:
    """The right of one worker to fetch [start, end); `whole` is the hash so far where the bytes come in order."""

    def __init__(self, part: Part, start: int, end: int, whole: Hash | None) -> None:
        self.part, self.start, self.end, self.at = part, start, end, start
        self.in_order = whole is not None
        self._lock = Lock()
        self._closed = False
        self._marked = start
        self._hash: Hash = whole.copy() if whole is not None else hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        with self._lock:
            if self._closed:
                raise Stopped
            rest = memoryview(chunk)
            while rest and self.at < self.end:
                mark = self.part.next_mark(self.at, self.end)
                now, rest = rest[: mark - self.at], rest[mark - self.at :]
                self.part.put(now, self.at)
                self._hash.update(now)
                self.at += len(now)
                if self.at == mark:
                    self._mark()

    def close(self) -> None:
        """Put what came into the journal; nothing can be written afterwards."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if self.at > self._marked:
                    self._mark()

    def _mark(self) -> None:
        marked, self._marked = self._marked, self.at
        if self.in_order:
            self.part.grown(self.at, self._hash.copy())
        else:
            self.part.arrived(Stretch(marked, self.at, self._hash.hexdigest()))
            self._hash = hashlib.sha256()


class Part:
    """Thread-safe. `say` is told what a person should know."""

    def __init__(
        self, directory: Path, file: RemoteFile, *, say: Callable[[str], None], piece_bytes: int = PIECE
    ) -> None:
        self.file = file
        self.final, self.path, journal = check.paths(directory, file.name)
        self.journal = Journal(journal, file)
        self.ranged: bool | None = None  # whether the source sends ranges; None until it has answered
        self.complete = False
        self.repaired_bytes = 0  # were found damaged, and fetched again
        self._say, self._piece_bytes = say, piece_bytes
        self._lock = Lock()
        self._hash = new_hash(file.kind, file.size)
        self._frontier = 0
        self._hashing = True  # somebody moves the frontier: a lease in order, `advance`, and before them `open`
        self._ahead: list[_Claim] = []  # ascending, disjoint
        self._expected: dict[int, str] = {}  # prefixes of the earlier run that were not compared yet
        self._prefixes: dict[int, str] = {}
        self._leases: list[Lease] = []
        self._round = 0
        self._tries = 0
        self._differs = False  # in a later round: bytes have come that are not those on disk

    # --- what is there already ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Take over what is on disk. `complete` is set where nothing is left to do."""
        claims = self.journal.read()
        if self.final.is_file():
            if self._adopt(claims):
                self.complete = True
                return
            if claims and claims.prefixes and not self.final.is_symlink():
                self._say(f"{self.file.name} has changed on disk; only what differs is fetched")
                self.journal.start(claims.prefixes)
                self.final.replace(self.path)
                claims.whole = None
        if claims is None or not self.path.is_file():
            self.path.unlink(missing_ok=True)
            self.journal.start()
            claims = Claims()
        is_whole = check.is_as_recorded(self.path, self.file, claims.whole)  # killed between comparing and moving
        self._disk = self.path.open("r+b" if self.path.is_file() else "w+b", buffering=0)
        if is_whole:
            self._move()
            return
        start = 0
        for end, value in claims.prefixes.items():
            self._ahead.append(_Claim(start, end, prefix=value))
            start = end
        self._ahead += [_Claim(each.start, each.end, own=each.sha256) for each in claims.stretches]
        self._expected = claims.prefixes
        if (here := sum(each.end - each.start for each in self._ahead)) > LARGE:
            self._say(f"{self.file.name}: {here / 1e9:,.1f} GB came earlier and are compared first")
        self._hashing = False
        self.advance()

    def _adopt(self, claims: Claims | None) -> bool:
        """Whether the finished file is what is meant: by its record, or else by reading it."""
        if claims and check.is_as_recorded(self.final, self.file, claims.whole):
            return True
        digest = check.expected(self.file, claims)
        if digest is None or self.final.stat().st_size != self.file.size:
            return False
        with self.final.open("rb", buffering=0) as disk:
            state = new_hash(digest.kind, self.file.size)
            found = check.prefixes(disk.fileno(), 0, self.file.size, state, self._piece_bytes)
            mtime_ns = os.fstat(disk.fileno()).st_mtime_ns
        if state.hexdigest() != digest.hex:
            return False
        self.journal.start(found)
        self.journal.whole(Whole(digest, mtime_ns))
        return True

    @property
    def here_bytes(self) -> int:
        with self._lock:
            missing = sum(end - start for start, end in self._gaps()) + sum(each.end - each.at for each in self._leases)
            return self.file.size - missing

    # --- who fetches what ---------------------------------------------------------------------------------------

    @property
    def is_taken(self) -> bool:
        return bool(self._leases) or self._hashing

    def lease(self, limit: int) -> Lease | None:
        """The first bytes that nobody fetches yet, at most `limit`; None where there are none."""
        with self._lock:
            gap = next(self._gaps(), None)
            if gap is None or self.complete:
                return None
            start, end = gap
            in_order = start == self._frontier and not self._hashing
            if self._round and not in_order:
                return None
            self._hashing = self._hashing or in_order
            lease = Lease(self, start, min(end, start + limit), self._hash if in_order else None)
            self._leases.append(lease)
            return lease

    def extend(self, lease: Lease) -> None:
        """The source sends everything up to its end; take it, as far as it is not here already."""
        with self._lock:
            others = [each.start for each in self._ahead] + [each.start for each in self._leases if each is not lease]
            lease.end = min((start for start in others if start >= lease.end), default=self.file.size)

    def release(self, lease: Lease) -> None:
        lease.close()
        with self._lock:
            self._leases.remove(lease)
            self._hashing = self._hashing and not lease.in_order

    def close(self) -> None:
        """Stop everybody who writes here; all that has come is in the journal."""
        for lease in list(self._leases):
            lease.close()

    def _gaps(self) -> Iterator[tuple[int, int]]:
        at = self._frontier
        taken = [(each.start, each.end) for each in self._ahead] + [(each.start, each.end) for each in self._leases]
        for start, end in sorted(taken):
            if start > at:
                yield at, start
            at = max(at, end)
        if at < self.file.size:
            yield at, self.file.size

    # --- bytes come ---------------------------------------------------------------------------------------------

    def next_mark(self, at: int, end: int) -> int:
        """Where the journal gets its next line: at every piece, and where the earlier run had one."""
        mark = min(end, (at // self._piece_bytes + 1) * self._piece_bytes)
        return min((each for each in self._expected if at < each < mark), default=mark)

    def put(self, data: memoryview, at: int) -> None:
        if self._round:
            if data.tobytes() == os.pread(self._disk.fileno(), len(data), at):
                return
            self._differs = True
            self.repaired_bytes += len(data)
        while data:
            written = os.pwrite(self._disk.fileno(), data, at)
            data, at = data[written:], at + written

    def grown(self, end: int, state: Hash) -> None:
        """The frontier has come to `end`; `state` is the hash of all before it."""
        with self._lock:
            value = state.hexdigest()
            known = self._expected.pop(end, None)
            if known not in (None, value):
                self._say(f"{self.file.name}: the source has other bytes before {end:,} than last time")
                self._expected.clear()
                self._ahead = [each for each in self._ahead if each.prefix is None]
                self.journal.start(self._prefixes)
            self._hash, self._frontier, self._prefixes[end] = state, end, value
            if known != value:
                self.journal.prefix(end, value)
        if self._differs and self._tries < TRIES:
            self._differs, self._tries = False, self._tries + 1
            self._try_rest(end, state.copy())

    def arrived(self, stretch: Stretch) -> None:
        with self._lock:
            self._ahead.append(_Claim(stretch.start, stretch.end))
            self._ahead.sort(key=lambda each: each.start)
            self.journal.stretch(stretch)

    def advance(self) -> None:
        """Fold what is on disk behind the frontier into the hash, as far as it goes without a gap."""
        while True:
            with self._lock:
                claim = self._ahead[0] if self._ahead else None
                if self._hashing or claim is None or claim.start != self._frontier:
                    return
                self._hashing = True
                state = self._hash.copy()
            is_right = self._fold(claim, state)
            if is_right:
                self.grown(claim.end, state)
            else:
                self.repaired_bytes += claim.end - claim.start
                self._say(f"{self.file.name}: bytes {claim.start:,} to {claim.end:,} are not those that came; again")
            with self._lock:
                self._ahead = [each for each in self._ahead if each is not claim]
                self._hashing = False

    def _fold(self, claim: _Claim, state: Hash) -> bool:
        own = hashlib.sha256() if claim.own else None
        try:
            for block in check.blocks(self._disk.fileno(), claim.start, claim.end):
                state.update(block)
                if own:
                    own.update(block)
        except OSError:  # a sector that cannot be read may well be written
            return False
        return (not own or own.hexdigest() == claim.own) and claim.prefix in (None, state.hexdigest())

    # --- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> bool:
        """Compare and move to the final name, once all bytes are here. False: some have still to come."""
        with self._lock:
            if self.complete or self._frontier < self.file.size or self._leases or self._hashing:
                return False
            value, digest = self._hash.hexdigest(), self.file.digest
            if digest is not None and digest.hex != value:
                self._again(value)
                return False
            self._hashing = True  # one thread moves it
        os.fsync(self._disk.fileno())
        mtime_ns = os.fstat(self._disk.fileno()).st_mtime_ns
        self.journal.whole(Whole(digest or Digest(self.file.kind, value), mtime_ns))
        self._move()
        return True

    def _move(self) -> None:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        self._disk.close()
        self.path.replace(self.final)
        descriptor = os.open(self.final.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.complete = True

    def _again(self, value: str) -> None:
        """All bytes are as they came, and still wrong: ask for them once more, and keep those that differ."""
        if self._round == ROUNDS:
            self.journal.path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            raise FetchError(
                f"{self.file.name} has {self.file.kind} {value}, published is {self.file.digest}",
                hint=f"asked {ROUNDS + 1} times, the source does not send what it publishes; take another one",
            )
        self._say(f"{self.file.name} is not what is published; asked for again, and compared")
        self._round, self._tries, self._differs = self._round + 1, 0, False
        self._frontier, self._hash = 0, new_hash(self.file.kind, self.file.size)
        self._ahead, self._expected, self._prefixes = [], {}, {}
        self.journal.start()

    def _try_rest(self, start: int, state: Hash) -> None:
        """Wrong bytes were replaced: with the rest as it is on disk, the file may be what is published now."""
        found = check.prefixes(self._disk.fileno(), start, self.file.size, state, self._piece_bytes)
        if self.file.digest is None or state.hexdigest() != self.file.digest.hex:
            return
        with self._lock:
            self._prefixes |= found
            self.journal.start(self._prefixes)
            self._hash, self._frontier = state, self.file.size
            for lease in self._leases:
                lease.end = lease.at
