"""Which pages of the latent cache are free, whose the others are, and why.

    page          0     1     2     3     4     5     6     7          page_tokens positions each
                ┌─────┬─────┬─────┬─────┬─────┬─────┬─────┬─────┐
    owner       │  A  │  B  │  A  │  -  │  A  │  B  │  -  │  -  │
                └─────┴─────┴─────┴─────┴─────┴─────┴─────┴─────┘
    A owns (0, 2, 4)      positions 0..p-1 in page 0, p..2p-1 in page 2, 2p.. in page 4
    B owns (1, 5)
    free   [7, 6, 3]      the last one freed is the next one given: it may still be warm

A page has one owner or is free, never both, never neither. A request owns pages because its
latents lie there; it gets them when it is admitted and when it grows past a page's edge, and
gives all of them back when it ends or is preempted.
"""

from __future__ import annotations

from baltoro.engine.request import Request


class Pages:
    """The ownership of `num_pages` pages. Used by the engine's thread alone."""

    def __init__(self, *, num_pages: int, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._free = list(range(num_pages - 1, -1, -1))
        self._owned: dict[Request, tuple[int, ...]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Pages that hold `tokens` positions."""
        return -(-tokens // self.page_tokens)

    def of(self, request: Request) -> tuple[int, ...]:
        """The pages of its positions 0, 1, ..., in order; () when it owns none."""
        return self._owned.get(request, ())

    def allocate(self, request: Request, tokens: int, *, spare: int = 0) -> bool:
        """Let `request` own room for `tokens` positions in all.

        False, and nothing taken, when too few are free, or fewer than `spare` would be left.
        """
        pages = self._owned.get(request, ())
        missing = self.needed(tokens) - len(pages)
        if missing <= 0:
            return True
        if missing + spare > len(self._free):
            return False
        self._owned[request] = pages + tuple(self._free.pop() for _ in range(missing))
        return True

    def free(self, request: Request) -> None:
        """Take back all that `request` owns; nothing when it owns none."""
        self._free.extend(reversed(self._owned.pop(request, ())))
