"""Which pages of the latent cache are free, whose the others are, and why.

    page          0     1     2     3     4     5     6     7     8     9      page_tokens positions each
                ┌─────┬─────┬─────┬─────┬─────┬─────┬─────┬─────┬─────┬─────┐
    owner       │ tree│  A  │ tree│  -  │  A  │  B  │ tree│  -  │  -  │ tree│
    held by     │ A B │     │ A   │     │     │     │  B  │     │     │     │
                └─────┴─────┴─────┴─────┴─────┴─────┴─────┴─────┴─────┴─────┘
    A has (0, 2, 4, 1)    positions 0..p-1 in page 0, p..2p-1 in page 2, ...; the tree's pages come first
    B has (0, 6, 5)       its first p tokens are A's
    free  [8, 7, 3]       the last one freed is the next one given: it may still be warm
    9                     idle: kept for whoever comes with that prefix, and given away when nothing is free

A page is owned by one request, or by the prefix tree, or is free: never two of these, never none. A request gets
pages of its own when it is admitted and when it grows past a page's edge; those that its prompt has filled become the
tree's, which lends them to it and to every other request that begins with the same ids. When it ends or is preempted
its own pages are free, and what it held of the tree's is held by one less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baltoro.engine.prefix import Node, PrefixTree, pages_of
from baltoro.engine.request import Request


class Pages:
    """The ownership of `num_pages` pages. Used by the engine's thread alone."""

    def __init__(
        self, *, num_pages: int, page_tokens: int, tree: PrefixTree | None = None,
        evicted: Callable[[Node], None] | None = None,
    ) -> None:  # fmt: skip
        """tree: None shares nothing. evicted: hears of a page of the tree just before it is given away."""
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.tree = tree
        self.num_evicted = 0
        self._evicted = evicted
        self._free = list(range(num_pages - 1, -1, -1))
        self._tables: dict[Request, tuple[int, ...]] = {}
        self._lent: dict[Request, list[Node]] = {}  # the tree's, at the front of its table

    @property
    def num_free(self) -> int:
        """Pages that can be had: free ones, and those of the tree that nobody holds."""
        return len(self._free) + (self.tree.num_idle if self.tree else 0)

    def needed(self, tokens: int) -> int:
        """Pages that hold `tokens` positions."""
        return -(-tokens // self.page_tokens)

    def of(self, request: Request) -> tuple[int, ...]:
        """The pages of its positions 0, 1, ..., in order; () when it has none."""
        return self._tables.get(request, ())

    def match(self, request: Request, tokens: int) -> list[Node]:
        """What is known of its prompt, of `tokens` positions of it at most. Nothing is taken."""
        return self.tree.match(request.prompt, tokens // self.page_tokens) if self.tree else []

    def can_admit(self, tokens: int, shared: Sequence[Node], *, reserve: int) -> bool:
        """Whether room for `tokens` positions that begin with `shared` can be had, and `reserve` pages beside it."""
        idle = sum(not node.holders for node in shared)  # they would no longer be had
        return self.needed(tokens) - len(shared) + reserve <= self.num_free - idle

    def share(self, request: Request, shared: list[Node]) -> None:
        """Begin its table, which is empty, with pages of the tree."""
        assert not self.of(request)
        if self.tree and shared:
            self.tree.hold(shared)
            self._lent[request] = shared
            self._tables[request] = tuple(node.page for node in shared)

    def take_over(self, request: Request, tokens: int) -> int:
        """Let pages that the tree has learnt since stand for its own, within `tokens` positions of its prompt.

        Returns how many of its pages are the tree's now.
        """
        if self.tree is None:
            return 0
        table, lent = list(self.of(request)), self._lent.setdefault(request, [])
        for ids in pages_of(request.prompt, len(lent), tokens // self.page_tokens, self.page_tokens):
            node = self.tree.find(lent[-1] if lent else None, ids)
            if node is None:
                break
            self.tree.hold([node])
            self._free.append(table[len(lent)])
            table[len(lent)] = node.page
            lent.append(node)
        self._tables[request] = tuple(table)
        return len(lent)

    def allocate(self, request: Request, tokens: int, *, spare: int = 0) -> bool:
        """Let `request` have room for `tokens` positions in all.

        False, and nothing taken, when too few can be had, or fewer than `spare` would be left.
        """
        pages = self.of(request)
        missing = self.needed(tokens) - len(pages)
        if missing <= 0:
            return True
        if missing + spare > self.num_free:
            return False
        self._tables[request] = pages + tuple(self._take() for _ in range(missing))
        return True

    def publish(self, request: Request, tokens: int) -> None:
        """The first `tokens` positions of its prompt are computed: whole pages of them become the tree's.

        Where another request has computed the same meanwhile, its page takes the place of ours, which is free again.
        """
        if self.tree is None:
            return
        table, lent = list(self.of(request)), self._lent.setdefault(request, [])
        for ids in pages_of(request.prompt, len(lent), tokens // self.page_tokens, self.page_tokens):
            own = table[len(lent)]
            node = self.tree.add(lent[-1] if lent else None, ids, own)
            if node.page != own:
                self._free.append(own)
                table[len(lent)] = node.page
            lent.append(node)
        self._tables[request] = tuple(table)

    def free(self, request: Request) -> None:
        """Take back all that `request` has; nothing when it has none."""
        lent = self._lent.pop(request, [])
        self._free.extend(reversed(self._tables.pop(request, ())[len(lent) :]))
        if self.tree:
            self.tree.release(lent)

    def forget(self) -> None:
        """The tree's pages are free, as far as nobody holds them: what they say is true no longer."""
        while self.tree and (node := self.tree.evict()) is not None:
            self._free.append(node.page)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        assert self.tree is not None
        node = self.tree.evict()
        assert node is not None
        self.num_evicted += 1
        if self._evicted is not None:
            self._evicted(node)
        return node.page
