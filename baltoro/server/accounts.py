"""What a key may still do, and what each of its requests takes from that.

A request enters (is there room for one more?), is admitted when its prompt is counted in tokens, and leaves with what
it really used. In between, its prompt and the max_tokens it asked for are held, so that requests under way together
do not each spend the same room. An answer without max_tokens is held at nothing and counted when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from baltoro import choices
from baltoro.answer import Progress
from baltoro.chat.messages import Usage
from baltoro.errors import AccessError, ForbiddenError, SpentError
from baltoro.server.keys import Key, Spent
from baltoro.server.limits import Standing, Window
from baltoro.server.prices import Price, shown

Clock = Callable[[], float]


class Account:
    """One key at work in this process. Belongs to the event loop."""

    def __init__(
        self, key: Key, *, names: tuple[str, ...] = (), price: Price | None = None, clock: Clock = time.monotonic
    ) -> None:
        """names: what the model here is called. price: of its tokens; None: nobody said"""
        self.key = key
        self.names = names
        self.price = price
        self.running = 0
        self.held_cost = self.held_tokens = 0  # of requests under way
        self._clock = clock
        self._requests, self._tokens = Window(0), Window(0)
        self._before = Spent()  # what was used elsewhere and earlier
        self._used_tokens = self._used_cost = 0  # by requests that ended here
        self._limit(key)

    def refresh(self, key: Key, spent: Spent, told: tuple[int, int]) -> None:
        """The key as it is now. told: tokens and cost of requests that ended here and that `spent` has in it."""
        self.key = key
        tokens, cost = told
        self._before = Spent(
            tokens=spent.tokens - tokens,
            tokens_month=spent.tokens_month - tokens,
            cost=spent.cost - cost,
            cost_month=spent.cost_month - cost,
        )
        self._limit(key)

    def _limit(self, key: Key) -> None:
        # Without a limit both are kept all the same: one that is set later then knows the last minute.
        self._requests.limit = _or_endless(key.limits.requests_per_minute)
        self._tokens.limit = _or_endless(key.limits.tokens_per_minute)

    # ── a request comes ──────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise AccessError where the key is of no use any more."""
        if (state := self.key.state(time.time())) != "active":
            raise AccessError(f"the API key '{self.key.name}' is {state}", hint="ask whoever gave it to you")

    def enter(self) -> Visit:
        """One request more, or SpentError or ForbiddenError."""
        now, limits = self._clock(), self.key.limits
        if not self.key.allows(self.names):
            raise ForbiddenError(
                f"the API key '{self.key.name}' may not ask the model '{self.names[0]}'", hint="ask for another key"
            )
        if limits.wants_prices and self.price is None:
            raise ForbiddenError(
                f"the API key '{self.key.name}' has a budget in money, and '{self.names[0]}' has no price here",
                hint="whoever runs the server gives it one: `baltoro serve --prices FILE`",
            )
        self.check_budgets(0, 0)
        if limits.concurrent is not None and self.running >= limits.concurrent:
            raise SpentError(
                f"{self.running} requests are under way, and this key may have {limits.concurrent}",
                hint="wait until one of them ends",
                limit="concurrent",
                retry_after_s=1,
            )
        self._check_window(self._requests, "requests", 1, now)
        self._check_window(self._tokens, "tokens", 1, now)
        self._requests.add(1, now)
        self.running += 1
        return Visit(self)

    def check_budgets(self, tokens: int, cost: int) -> None:
        """Raise SpentError where a budget is used up, or has no room for a prompt of `tokens` that costs `cost`."""
        limits, spent = self.key.limits, self.spent
        for budget, used, more, say, month in (
            (limits.token_budget, spent.tokens + self.held_tokens, tokens, "{} tokens".format, ""),
            (limits.token_budget_month, spent.tokens_month + self.held_tokens, tokens, "{} tokens".format, " a month"),
            (limits.money_budget, spent.cost + self.held_cost, cost, shown, ""),
            (limits.money_budget_month, spent.cost_month + self.held_cost, cost, shown, " a month"),
        ):
            if budget is None or used + max(1, more) <= budget:
                continue
            what = say(budget)
            raise SpentError(
                f"the budget of this key, {what}{month}, is used up"
                if used >= budget
                else f"the prompt does not fit into what is left of this key's budget, {what}{month}",
                hint="the month ends at midnight of its last day, UTC" if month else "ask for a larger budget",
                limit="budget",
                retry_after_s=None,
            )

    def hold(self, tokens: int, cost: int) -> None:
        """Keep room for what a request may use; SpentError where a minute has not so much."""
        now = self._clock()
        limit = self._tokens.limit
        if tokens > limit:
            raise SpentError(
                f"the request is too large: prompt and max_tokens are {tokens} tokens, this key has {limit} a minute",
                hint="shorten the prompt or lower max_tokens",
                limit="tokens",
                retry_after_s=None,
            )
        self._check_window(self._tokens, "tokens", tokens, now)
        self._tokens.held += tokens
        self.held_tokens += tokens
        self.held_cost += cost

    def _check_window(self, window: Window, what: str, amount: int, now: float) -> None:
        if (room := window.room(now)) < amount:
            wait_s = window.wait_s(amount, now)
            raise SpentError(
                f"this key has {window.limit} {what} a minute: {max(0, room)} are left, {amount} are needed",
                hint=f"wait {wait_s} s",
                limit=what,
                retry_after_s=wait_s,
            )

    # ── it goes ──────────────────────────────────────────────────────────────────────────────────

    def release(self, tokens: int, cost: int) -> None:
        self._tokens.held -= tokens
        self.held_tokens -= tokens
        self.held_cost -= cost

    def leave(self, usage: Usage, cost: int) -> None:
        """A request has ended, and used this."""
        tokens = usage.prompt_tokens + usage.completion_tokens
        self.running -= 1
        self._tokens.add(tokens, self._clock())
        self._used_tokens += tokens
        self._used_cost += cost

    @property
    def spent(self) -> Spent:
        before, tokens, cost = self._before, self._used_tokens, self._used_cost
        return Spent(
            tokens=before.tokens + tokens,
            tokens_month=before.tokens_month + tokens,
            cost=before.cost + cost,
            cost_month=before.cost_month + cost,
        )

    @property
    def standing(self) -> list[Standing]:
        """Of the limits that the key has."""
        now = self._clock()
        limits = self.key.limits
        return [
            Standing(name, limit, max(0, window.room(now)), window.reset_s(now))
            for name, limit, window in (
                ("requests", limits.requests_per_minute, self._requests),
                ("tokens", limits.tokens_per_minute, self._tokens),
            )
            if limit is not None
        ]


class Visit:
    """One HTTP request of a key, between entering and leaving."""

    def __init__(self, account: Account) -> None:
        self.name = account.key.name
        self._account = account
        self._prompts: list[Sequence[Progress]] = []  # the answers to each
        self._held_tokens = self._held_cost = 0

    def admit(self, answers: Sequence[Progress]) -> None:
        """The answers to one prompt are about to be computed: hold room for them, or raise SpentError."""
        account = self._account
        prompt = choices.usage([each.usage for each in answers], len(answers))
        most = Usage(
            prompt_tokens=prompt.prompt_tokens, completion_tokens=sum(each.max_tokens or 0 for each in answers)
        )
        account.check_budgets(prompt.prompt_tokens, account.price.cost(prompt) if account.price else 0)
        tokens, cost = most.prompt_tokens + most.completion_tokens, account.price.cost(most) if account.price else 0
        account.hold(tokens, cost)
        self._held_tokens += tokens
        self._held_cost += cost
        self._prompts.append(answers)

    def leave(self, *, charged: bool) -> tuple[Usage, int]:
        """Give back what was held, and count what was used: every prompt, and every token until now. -> usage, cost"""
        account, used = self._account, list[Usage]()
        if charged:
            used = [choices.usage([each.usage for each in answers], len(answers)) for answers in self._prompts]
        usage = choices.usage(used, 1)
        cost = account.price.cost(usage) if account.price else 0
        account.release(self._held_tokens, self._held_cost)
        account.leave(usage, cost)
        return usage, cost


def _or_endless(limit: int | None) -> int:
    return 2**63 if limit is None else limit
