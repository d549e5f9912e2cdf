from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from baltoro.engine.cache import Pages
from tests.engine import fake


class Ownership(RuleBasedStateMachine):
    """Any order of growing and freeing, against a model that only counts."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(num_pages=12, page_tokens=4)
        self.tokens = {}

    @rule(target=requests)
    def arrive(self):
        request, _ = fake.request([1])
        self.tokens[request] = 0
        return request

    @rule(request=requests, tokens=st.integers(0, 60))
    def allocate(self, request, tokens):
        before = self.pages.of(request)
        missing = max(0, (tokens + 3) // 4 - len(before))
        fits = missing <= self.pages.num_free
        assert self.pages.allocate(request, tokens) == fits
        after = self.pages.of(request)
        assert after[: len(before)] == before, "positions already written must stay where they are"
        assert len(after) == len(before) + (missing if fits else 0)
        self.tokens[request] = max(self.tokens[request], tokens) if fits else self.tokens[request]

    @rule(request=requests)
    def free(self, request):
        self.pages.free(request)
        assert self.pages.of(request) == ()
        self.tokens[request] = 0

    @invariant()
    def no_page_has_two_owners_and_none_is_lost(self):
        owned = [page for request in self.tokens for page in self.pages.of(request)]
        assert len(set(owned)) == len(owned)
        assert set(owned) <= set(range(12))
        assert len(owned) + self.pages.num_free == 12

    @invariant()
    def everyone_has_room_for_what_was_granted(self):
        for request, tokens in self.tokens.items():
            assert len(self.pages.of(request)) == -(-tokens // 4)


TestOwnership = Ownership.TestCase
TestOwnership.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_freed_pages_are_given_again_and_the_last_page_too():
    pages = Pages(num_pages=3, page_tokens=64)
    (a, _), (b, _) = fake.request([1]), fake.request([1])
    assert pages.allocate(a, 192)
    assert not pages.allocate(b, 1)
    pages.free(a)
    assert pages.allocate(b, 129)
    assert sorted(pages.of(b)) == [0, 1, 2]
