"""How much may be spent on answers, in tokens and in money; what was spent before a run was interrupted counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from baltoro.chat.messages import Usage
from baltoro.errors import BaltoroError
from baltoro.eval.document import at
from baltoro.server.prices import Price, shown


class BudgetSpent(BaltoroError):
    """No more may be asked. What was answered is kept."""


@dataclass(slots=True, kw_only=True)
class Budget:
    """A request starts while what was spent, and what those under way may still say, leaves room for its own answer.

    How long a prompt is gets known with its answer, so up to as many prompts as run at once may go beyond.
    """

    most_tokens: int | None = None
    most_money: int | None = None  # in billionths; needs a price
    price: Price | None = None
    used: Usage = field(default_factory=lambda: Usage(prompt_tokens=0, completion_tokens=0))
    reserved: int = 0  # tokens of answers under way, where their requests bound them

    def __post_init__(self) -> None:
        if self.most_money is not None and self.price is None:
            raise BaltoroError(
                "a budget of money, and nobody knows what tokens cost", hint="--price-input and --price-output"
            )

    @property
    def cost(self) -> int | None:
        """In billionths; None where there is no price."""
        return None if self.price is None else self.price.cost(self.used)

    def reserve(self, max_tokens: int) -> None:
        """Before a request is sent; `release` follows whatever becomes of it."""
        self._check(max_tokens)
        self.reserved += max_tokens

    def release(self, max_tokens: int) -> None:
        self.reserved -= max_tokens

    def add(self, usage: Any) -> None:
        """usage: as in an answer; what is not there counts nothing"""
        self.used = Usage(
            prompt_tokens=self.used.prompt_tokens + _count(at(usage, "prompt_tokens")),
            completion_tokens=self.used.completion_tokens + _count(at(usage, "completion_tokens")),
            cached_tokens=self.used.cached_tokens + _count(at(usage, "prompt_tokens_details", "cached_tokens")),
        )

    def _check(self, max_tokens: int) -> None:
        tokens = self.used.prompt_tokens + self.used.completion_tokens
        coming = self.reserved + max_tokens
        if self.most_tokens is not None and tokens + coming > self.most_tokens:
            raise BudgetSpent(
                f"the budget of {self.most_tokens:,} tokens has no room for another answer: {tokens:,} are spent",
                hint="the same command with a larger --budget-tokens goes on from here",
            )
        if self.most_money is not None and self.price is not None:
            after = Usage(
                prompt_tokens=self.used.prompt_tokens,
                completion_tokens=self.used.completion_tokens + coming,
                cached_tokens=self.used.cached_tokens,
            )
            if self.price.cost(after) > self.most_money:
                raise BudgetSpent(
                    f"the budget of {shown(self.most_money)} has no room for another answer: "
                    f"{shown(self.price.cost(self.used))} is spent",
                    hint="the same command with a larger --budget-money goes on from here",
                )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
