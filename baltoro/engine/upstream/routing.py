"""Which upstream gets a request: where its prompt's beginning lies in a cache, unless that one is too busy.

An upstream that has seen a conversation before computes its next turn in a fraction of the time, so a prompt goes
where its longest known beginning went. If that one is more than `SLACK` requests busier than the least busy, waiting
would cost more than the cache saves, and the least busy gets it. Pure: it knows no connection, only what it is told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b

import numpy as np

BLOCK_TOKENS = 64  # beginnings are compared in such steps
REMEMBERED = 2**16  # beginnings, of 16 bytes and a number: some 10 MB
SLACK = 8  # requests


class Router:
    """Belongs to one thread."""

    def __init__(self, *, block_tokens: int = BLOCK_TOKENS, remembered: int = REMEMBERED, slack: int = SLACK) -> None:
        self._block_tokens = block_tokens
        self._remembered = remembered
        self._slack = slack
        self._seen: OrderedDict[bytes, int] = OrderedDict()  # digest of a beginning -> who had it last; oldest first

    def __len__(self) -> int:
        """Beginnings that are remembered."""
        return len(self._seen)

    def choose(self, prompt: Sequence[int], running: Sequence[int], usable: Collection[int]) -> int | None:
        """An index into `running`, the requests under way at each upstream; one of `usable`, None if there is none."""
        if not usable:
            return None
        least = min(usable, key=lambda place: (running[place], place))
        chosen = least
        beginnings = list(self._beginnings(prompt))
        for digest in reversed(beginnings):
            place = self._seen.get(digest)
            if place is not None and place in usable and running[place] <= running[least] + self._slack:
                chosen = place
                break
        for digest in beginnings:
            self._seen[digest] = chosen
            self._seen.move_to_end(digest)
        while len(self._seen) > self._remembered:
            self._seen.popitem(last=False)
        return chosen

    def forget(self, place: int) -> None:
        """This upstream has lost its cache."""
        for digest in [digest for digest, other in self._seen.items() if other == place]:
            del self._seen[digest]

    def _beginnings(self, prompt: Sequence[int]) -> Iterator[bytes]:
        """Digests of the first block, the first two, ...; whole blocks only."""
        digest = b""
        for start in range(0, len(prompt) - self._block_tokens + 1, self._block_tokens):
            block = np.asarray(prompt[start : start + self._block_tokens], np.int64).tobytes()
            digest = blake2b(digest + block, digest_size=16).digest()
            yield digest
