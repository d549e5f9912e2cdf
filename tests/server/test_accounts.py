"""What a key may still do: a machine of random visits against the sums kept beside it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baltoro.chat.messages import Usage
from baltoro.errors import AccessError, ForbiddenError, SpentError
from baltoro.server import limit_headers
from baltoro.server.accounts import Account, Visit
from baltoro.server.keys import Key, Limits, Spent
from baltoro.server.prices import Price

KEY = Key(id="0" * 12, name="anna", digest=b"", created_s=0)
PRICE = Price(input=Decimal(2), cached_input=Decimal(1), output=Decimal(4))  # thousands of billionths a token


class Told:
    """An answer under way, as far as a test says."""

    def __init__(self, prompt: int, max_tokens: int | None) -> None:
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.said = 0

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=self.prompt, completion_tokens=self.said)


class Visits(RuleBasedStateMachine):
    """Requests that come, speak and go, while time passes."""

    LIMITS = Limits(
        requests_per_minute=6, tokens_per_minute=40, concurrent=3, token_budget=200, token_budget_month=150,
        money_budget=500_000,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.account = Account(
            replace(KEY, limits=self.LIMITS), names=("k2",), price=PRICE, clock=lambda: float(self.now)
        )
        self.visits: list[tuple[Visit, list[Told]]] = []
        self.entered: list[int] = []
        self.used: list[tuple[int, int]] = []  # when a request ended, its tokens
        self.cost = 0

    @rule(seconds=st.sampled_from([1, 10, 30, 60]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def enter(self) -> None:
        try:
            self.visits.append((self.account.enter(), []))
        except SpentError:
            return
        self.entered.append(self.now)

    @precondition(lambda self: self.visits)
    @rule(prompt=st.integers(1, 12), max_tokens=st.integers(1, 12), n=st.integers(1, 2), which=st.integers(0, 9))
    def admit(self, prompt: int, max_tokens: int, n: int, which: int) -> None:
        visit, answers = self.visits[which % len(self.visits)]
        asked = [Told(prompt, max_tokens) for _ in range(n)]
        if answers:
            return
        try:
            visit.admit(asked)
        except SpentError:
            return
        answers += asked

    @precondition(lambda self: self.visits)
    @rule(which=st.integers(0, 9), said=st.integers(0, 12), charged=st.booleans())
    def leave(self, which: int, said: int, charged: bool) -> None:
        visit, answers = self.visits.pop(which % len(self.visits))
        for each in answers:
            each.said = min(said, each.max_tokens or 0)
        usage, cost = visit.leave(charged=charged)
        prompt = answers[0].prompt if answers and charged else 0
        answer = sum(each.said for each in answers) if charged else 0
        assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, answer)
        assert cost == 2000 * prompt + 4000 * answer
        self.used.append((self.now, prompt + answer))
        self.cost += cost

    @invariant()
    def no_limit_is_passed(self) -> None:
        limits = self.LIMITS
        assert len(self.visits) == self.account.running <= (limits.concurrent or 0)
        assert sum(self.now - 60 < then for then in self.entered) <= (limits.requests_per_minute or 0)
        held = sum(sum(each.max_tokens or 0 for each in asked) + asked[0].prompt for _, asked in self.visits if asked)
        assert held == self.account.held_tokens
        lately = sum(tokens for then, tokens in self.used if self.now - 60 < then)
        assert held + lately <= (limits.tokens_per_minute or 0)

    @invariant()
    def budgets_are_passed_by_one_answer_at_most(self) -> None:
        tokens = sum(tokens for _, tokens in self.used)
        assert tokens == self.account.spent.tokens == self.account.spent.tokens_month
        assert tokens <= 150 + 2 * 12
        assert self.cost == self.account.spent.cost <= 500_000 + 2 * 12 * 4000


Visits.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_visits = Visits.TestCase


def account(price: Price | None = None, models: tuple[str, ...] | None = None, **limits: int) -> Account:
    key = replace(KEY, limits=Limits(**limits), models=models)
    return Account(key, names=("k2", "kimi"), price=price, clock=lambda: 0.0)


@pytest.mark.parametrize("budget", ["token_budget", "token_budget_month", "money_budget", "money_budget_month"])
def test_a_budget_that_is_used_up_lets_nobody_in_whoever_used_it(budget: str) -> None:
    mine = account(PRICE, **{budget: 1000})
    mine.enter().leave(charged=True)
    mine.refresh(mine.key, Spent(tokens=1000, tokens_month=1000, cost=1000, cost_month=1000), (0, 0))
    with pytest.raises(SpentError, match="used up") as refused:
        mine.enter()
    assert (refused.value.limit, refused.value.retry_after_s) == ("budget", None)
    mine.refresh(mine.key, Spent(tokens=1000, cost=1000), (0, 0))  # a new month
    if budget.endswith("month"):
        mine.enter()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=20))
def test_what_was_written_already_is_not_counted_twice(requests: list[tuple[int, bool]]) -> None:
    """After each request the database is read, which knows those that were written until then."""
    mine, elsewhere, written, total = account(), 1000, 0, 0
    for tokens, reaches_the_database in requests:
        visit = mine.enter()
        visit.admit([Told(tokens, None)])
        visit.leave(charged=True)
        total += tokens
        written = total if reaches_the_database else written
        mine.refresh(mine.key, Spent(tokens=elsewhere + written), (written, 0))
        assert mine.spent.tokens == elsewhere + total


def test_an_answer_without_max_tokens_is_counted_when_it_ends() -> None:
    mine = account(tokens_per_minute=100)
    visit, answer = mine.enter(), Told(20, None)
    visit.admit([answer])
    assert mine.held_tokens == 20
    answer.said = 200
    assert visit.leave(charged=True)[0].completion_tokens == 200
    with pytest.raises(SpentError, match="0 are left"):
        mine.enter()


def test_a_prompt_for_several_answers_is_paid_once_and_two_prompts_twice() -> None:
    mine = account(PRICE)
    visit = mine.enter()
    for prompt in (10, 5):
        answers = [Told(prompt, 7), Told(prompt, 7)]
        visit.admit(answers)
        answers[1].said = 3
    assert mine.held_tokens == 10 + 14 + 5 + 14
    usage, cost = visit.leave(charged=True)
    assert (usage.prompt_tokens, usage.completion_tokens, cost) == (15, 6, 15 * 2000 + 6 * 4000)
    assert mine.held_tokens == mine.held_cost == 0


def test_a_request_larger_than_a_minute_is_told_that_waiting_does_not_help() -> None:
    mine = account(tokens_per_minute=100)
    with pytest.raises(SpentError, match="120 tokens, this key has 100") as refused:
        mine.enter().admit([Told(20, 100)])
    assert refused.value.retry_after_s is None


def test_a_prompt_that_does_not_fit_into_what_is_left_is_not_computed() -> None:
    mine = account(token_budget=100)
    with pytest.raises(SpentError, match="does not fit"):
        mine.enter().admit([Told(101, 1)])
    mine.enter().admit([Told(100, 50)])


def test_a_key_for_other_models_and_money_without_prices_are_forbidden() -> None:
    account(models=("other", "kimi")).enter()
    with pytest.raises(ForbiddenError, match="may not ask the model 'k2'"):
        account(models=("other",)).enter()
    with pytest.raises(ForbiddenError, match="no price"):
        account(money_budget=5).enter()


def test_a_key_that_is_over_is_refused_by_name_and_state() -> None:
    for changes, state in (({"revoked_s": 5}, "revoked"), ({"expires_s": 5}, "expired")):
        with pytest.raises(AccessError, match=f"'anna' is {state}"):
            Account(replace(KEY, **changes)).check()  # type: ignore[arg-type]
    Account(replace(KEY, expires_s=2**40)).check()


def test_headers_tell_the_limits_that_there_are() -> None:
    assert account().standing == []
    mine = account(requests_per_minute=10, tokens_per_minute=500)
    mine.enter().admit([Told(20, 80)])
    assert dict(limit_headers.openai(mine.standing)) == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"9",
        b"x-ratelimit-reset-requests": b"1m0s",
        b"x-ratelimit-limit-tokens": b"500",
        b"x-ratelimit-remaining-tokens": b"400",
        b"x-ratelimit-reset-tokens": b"0ms",
    }
    assert dict(limit_headers.anthropic(mine.standing, datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC))) == {
        b"anthropic-ratelimit-requests-limit": b"10",
        b"anthropic-ratelimit-requests-remaining": b"9",
        b"anthropic-ratelimit-requests-reset": b"2027-01-01T00:00:30Z",
        b"anthropic-ratelimit-tokens-limit": b"500",
        b"anthropic-ratelimit-tokens-remaining": b"400",
        b"anthropic-ratelimit-tokens-reset": b"2026-12-31T23:59:30Z",
    }
