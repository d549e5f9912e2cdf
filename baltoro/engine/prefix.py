"""Prompts that begin alike share pages: a radix tree from token ids to pages of the latent cache.

    prompt A: [system ....... | tools ......... | question 1 ... | ..]        a page each, the last one not full
    prompt B: [system ....... | tools ......... | question 2 ... | .]

    root ── system ── tools ──┬── question 1     held by A       a node is one whole page: the ids of its
                              └── question 2     held by B       positions, and where their latents lie

A latent depends on every token before it, so a page may be used again only behind the same ids: a node's path is its
whole prefix. Edges all have the length of a page, for nothing less can be shared; so nodes are never split.

Only pages that lie wholly inside a *prompt* come here. They were computed in prefill form, all of them. What was
generated was computed in decode form (absorbed attention), whose bits differ; were it used again, an answer would
depend on what others had asked before. So the same seed and prompt give the same bits with a hit and without, wherever
the bits of a token do not depend on the tokens beside it: with packed weights on the native kernels. (torch's products
of plain weights differ in the last bit with the number of rows, as they do from one chunk of a prompt to another.)

A node is held by the requests whose pages begin with its path. Nobody's nodes are idle: the least recently used goes
when a page is wanted. Whoever holds a node holds its parents, and lets go of the deepest first; hence children always
stand before their parents among the idle ones, and the first of these is a leaf.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Ids = tuple[int, ...]  # of one page
ROOT = bytes(32)  # what stands for the digest of no page at all


@dataclass(slots=True, eq=False)
class Node:
    """One page of a prefix."""

    ids: Ids
    page: int
    parent: Node | None  # None: positions 0 .. page_tokens - 1
    digest: bytes  # of the whole path, see `digest`
    holders: int = 0  # requests
    children: dict[Ids, Node] = field(default_factory=dict[Ids, "Node"])


class PrefixTree:
    """Used by the engine's thread alone. Which pages are free is not known here: engine/cache.py."""

    def __init__(self, *, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._roots: dict[Ids, Node] = {}
        self._idle: dict[Node, None] = {}  # held by nobody, least recently used first
        self.num_pages = 0

    @property
    def num_idle(self) -> int:
        """Pages that `evict` can give."""
        return len(self._idle)

    def idle(self) -> list[Node]:
        """Those that nobody holds, in the order in which they would go."""
        return list(self._idle)

    def match(self, ids: Sequence[int], most: int) -> list[Node]:
        """The longest known prefix of `ids`, at most `most` pages of it. Holds nothing, and counts as no use."""
        found: list[Node] = []
        children = self._roots
        for key in pages_of(ids, 0, most, self.page_tokens):
            node = children.get(key)
            if node is None:
                break
            found.append(node)
            children = node.children
        return found

    def find(self, parent: Node | None, ids: Ids) -> Node | None:
        """The node of `ids` behind `parent`; holds nothing."""
        return (self._roots if parent is None else parent.children).get(ids)

    def hold(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if not node.holders:
                del self._idle[node]
            node.holders += 1

    def release(self, nodes: Sequence[Node]) -> None:
        """nodes: a path from its root on, held by the one who lets go."""
        for node in reversed(nodes):
            node.holders -= 1
            if not node.holders:
                self._idle[node] = None

    def add(self, parent: Node | None, ids: Ids, page: int) -> Node:
        """The node of `ids` behind `parent`, held once more: a new one of `page`, or the one that is there already."""
        children = self._roots if parent is None else parent.children
        node = children.get(ids)
        if node is not None:
            self.hold([node])
            return node
        node = Node(ids, page, parent, digest(ROOT if parent is None else parent.digest, ids), holders=1)
        children[ids] = node
        self.num_pages += 1
        return node

    def evict(self) -> Node | None:
        """Take out the least recently used page that nobody holds; None where all are held."""
        node = next(iter(self._idle), None)
        if node is None:
            return None
        assert not node.children, "a child is evicted before its parent"
        del self._idle[node]
        del (self._roots if node.parent is None else node.parent.children)[node.ids]
        self.num_pages -= 1
        return node


def pages_of(ids: Sequence[int], first: int, stop: int, page_tokens: int) -> Iterator[Ids]:
    """The ids of pages first .. stop - 1, as far as they are whole."""
    for page in range(first, min(stop, len(ids) // page_tokens)):
        yield tuple(ids[page * page_tokens : (page + 1) * page_tokens])


def digest(parent: bytes, ids: Ids) -> bytes:
    """A prefix's name on disk: sha256 of its parent's, or `ROOT`, and of its last page's ids."""
    return hashlib.sha256(parent + array("i", ids).tobytes()).digest()
