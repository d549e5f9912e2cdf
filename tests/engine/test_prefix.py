"""Tree and pages together, and a reference that knows prefixes as plain tuples and looks at everything each time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baltoro.engine.cache import Pages
from baltoro.engine.prefix import ROOT, PrefixTree, digest
from tests.engine import fake

PAGE_TOKENS = 2
ids = st.lists(st.integers(0, 1), min_size=1, max_size=11)  # two letters: prompts often begin alike


class Sharing(RuleBasedStateMachine):
    """Requests come with a prompt, compute it in pieces, grow, end; pages run out, and the oldest prefixes go.

    The reference writes what each page holds, as a tuple of all ids up to its end: whoever reads a page must find
    the prefix of its own prompt there.
    """

    @initialize(num_pages=st.integers(4, 12))
    def begin(self, num_pages):
        self.evicted = []
        self.tree = PrefixTree(page_tokens=PAGE_TOKENS)
        self.pages = Pages(
            num_pages=num_pages, page_tokens=PAGE_TOKENS, tree=self.tree, evicted=lambda node: self.evicted.append(node)
        )
        self.holds = {}  # page -> the ids that were computed into it
        self.known = {}  # prefix -> when it was last used; what the tree should know
        self.running = {}  # request -> tokens computed
        self.clock = 0

    def prefixes(self, prompt, tokens):
        return [tuple(prompt[:end]) for end in range(PAGE_TOKENS, tokens + 1, PAGE_TOKENS)]

    def used(self, prefixes):
        for prefix in reversed(prefixes):  # a parent is used after its children
            self.clock += 1
            self.known[prefix] = self.clock

    def held(self):
        return {
            prefix for request, done in self.running.items() for prefix in self.prefixes(request.prompt, done)
        }  # fmt: skip

    def forget_evicted(self):
        """The least recently used one that nobody holds, each time."""
        for node in self.evicted:
            oldest = min(self.known.keys() - self.held(), key=self.known.__getitem__)
            path = []
            at = node
            while at is not None:
                path[:0] = at.ids
                at = at.parent
            assert tuple(path) == oldest
            assert self.holds[node.page] == oldest, "evicted while its latents were overwritten"
            del self.known[oldest]
        self.evicted.clear()

    @rule(prompt=ids)
    def arrive(self, prompt):
        request, _ = fake.request(prompt)
        most = len(prompt) - 1
        matched = self.pages.match(request, most)
        expected = [prefix for prefix in self.prefixes(prompt, most) if prefix in self.known]
        assert expected == self.prefixes(prompt, len(expected) * PAGE_TOKENS), "a parent went before its child"
        assert [self.holds[node.page] for node in matched] == expected
        if not self.pages.can_admit(len(prompt), matched, reserve=0):
            busy = {page for each in self.running for page in self.pages.of(each)}
            new = self.pages.needed(len(prompt)) - len(matched)
            assert new > self.pages.num_pages - len(busy | {node.page for node in matched}), "there was room"
            return
        self.pages.share(request, matched)
        self.running[request] = len(matched) * PAGE_TOKENS
        assert self.pages.allocate(request, len(prompt))
        self.forget_evicted()
        assert len(self.pages.of(request)) == self.pages.needed(len(prompt))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, 11))
    def compute(self, data, tokens):
        request = data.draw(st.sampled_from(list(self.running)))
        start, stop = self.running[request], min(self.running[request] + tokens, len(request.prompt))
        table = self.pages.of(request)
        for place in range(start // PAGE_TOKENS, self.pages.needed(stop)):
            assert table[place] not in {node.page for node in self.nodes()}, "a shared page is written to"
            self.holds[table[place]] = tuple(request.prompt[: min(stop, (place + 1) * PAGE_TOKENS)])
        self.running[request] = stop
        self.pages.publish(request, stop)
        for prefix in self.prefixes(request.prompt, stop):
            self.known.setdefault(prefix, 0)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, 6))
    def grow(self, data, tokens):
        request = data.draw(st.sampled_from(list(self.running)))
        before = self.pages.of(request)
        missing = max(0, self.pages.needed(len(request.prompt) + tokens) - len(before))
        fits = missing <= self.pages.num_free
        assert self.pages.allocate(request, len(request.prompt) + tokens) == fits
        self.forget_evicted()
        after = self.pages.of(request)
        assert after[: len(before)] == before
        for page in after[len(before) :]:
            self.holds[page] = None  # what is generated, never shared

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data):
        request = data.draw(st.sampled_from(list(self.running)))
        done = self.running.pop(request)
        still = self.held()
        self.used([prefix for prefix in self.prefixes(request.prompt, done) if prefix not in still])
        self.pages.free(request)
        assert self.pages.of(request) == ()

    @invariant()
    def every_page_is_free_or_has_one_owner(self):
        nodes = self.nodes()
        of_tree = {node.page for node in nodes}
        assert len(of_tree) == len(nodes) == self.tree.num_pages
        own = []
        for request, done in self.running.items():
            shared = done // PAGE_TOKENS
            table = self.pages.of(request)
            assert len(set(table)) == len(table)
            assert set(table[:shared]) <= of_tree
            own += table[shared:]
            assert [self.holds[page] for page in table[:shared]] == self.prefixes(request.prompt, done)
        assert len(set(own)) == len(own)
        assert not of_tree & set(own)
        idle = [node for node in nodes if not node.holders]
        assert self.pages.num_free == self.pages.num_pages - len(own) - len(nodes) + len(idle)
        assert set(idle) == set(self.tree.idle())

    @invariant()
    def holders_are_those_who_begin_with_it_and_digests_those_of_the_path(self):
        prompts = [(request.prompt, done) for request, done in self.running.items()]
        found = set()
        for node, path in self.walk():
            assert node.holders == sum(path in self.prefixes(prompt, done) for prompt, done in prompts)
            assert node.digest == digest(ROOT if node.parent is None else node.parent.digest, path[-PAGE_TOKENS:])
            found.add(path)
        assert found == self.known.keys()

    def teardown(self):
        if not hasattr(self, "pages"):
            return
        for request in list(self.running):
            self.pages.free(request)
        while self.tree.evict():
            pass
        assert self.tree.num_pages == 0

    def walk(self):
        todo = [(node, node.ids) for node in self.tree._roots.values()]
        while todo:
            node, path = todo.pop()
            yield node, path
            todo += [(child, path + child.ids) for child in node.children.values()]

    def nodes(self):
        return [node for node, _ in self.walk()]


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def pages_and_tree(num_pages):
    tree = PrefixTree(page_tokens=2)
    return Pages(num_pages=num_pages, page_tokens=2, tree=tree), tree


def test_what_two_computed_at_once_is_kept_once():
    pages, tree = pages_and_tree(8)
    (a, _), (b, _) = fake.request([1, 2, 3, 4, 5]), fake.request([1, 2, 3, 4, 6])
    assert pages.allocate(a, 5)
    assert pages.allocate(b, 5)
    pages.publish(a, 5)
    pages.publish(b, 3)
    assert (pages.of(b)[0] == pages.of(a)[0], pages.of(b)[1] == pages.of(a)[1]) == (True, False)
    pages.publish(b, 5)
    assert pages.of(b)[:2] == pages.of(a)[:2]
    assert (tree.num_pages, pages.num_free) == (2, 4)
    pages.free(a)
    assert pages.num_free == 5
    pages.free(b)
    assert pages.num_free == 8


def test_the_least_recently_used_prefix_goes_and_its_tail_first():
    pages, tree = pages_and_tree(4)
    (a, _), (b, _) = fake.request([1, 1, 2, 2]), fake.request([3, 3, 4, 4])
    for each in (a, b):
        assert pages.allocate(each, 4)
        pages.publish(each, 4)
        pages.free(each)
    again, _ = fake.request([1, 1, 9])
    pages.share(again, pages.match(again, 2))
    pages.free(again)
    order = [node.ids for node in iter(tree.evict, None)]
    assert order == [(2, 2), (4, 4), (3, 3), (1, 1)]
