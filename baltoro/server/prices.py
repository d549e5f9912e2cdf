"""What tokens cost: a price list in TOML, and the bill of one answer."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from pathlib import Path
from typing import Any, cast

from baltoro.chat.messages import Usage
from baltoro.errors import AccountsError

NANO = 10**9  # money is counted in billionths of a unit, so that a single token has a price in whole numbers
MOST = 9 * 10**18  # billionths: what 64 bits of a database hold
_FORM = """write, per million tokens:
    [models.kimi-k2-instruct]
    input = 0.60
    cached_input = 0.15
    output = 2.50"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Of a million tokens, in units of any one currency."""

    input: Decimal
    cached_input: Decimal  # prompt tokens that were not computed again
    output: Decimal

    def cost(self, usage: Usage) -> int:
        """In billionths, rounded up."""
        computed = usage.prompt_tokens - usage.cached_tokens
        exact = computed * self.input + usage.cached_tokens * self.cached_input + usage.completion_tokens * self.output
        return int((exact * 1000).to_integral_value(ROUND_CEILING))  # 10^9 / 10^6


def money(text: str) -> int:
    """An amount as people write it, in billionths."""
    amount = decimal(text)
    if amount is None or amount * NANO != int(amount * NANO) or amount * NANO > MOST:
        raise AccountsError(f"'{text}' is no amount of money", hint="write 20 or 12.50")
    return int(amount * NANO)


def decimal(value: object) -> Decimal | None:
    """A number of 0 or more; None where it is none."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() and 0 <= number < 10**10 and not isinstance(value, bool) else None


def shown(nano: int) -> str:
    """Billionths as an amount: at least two digits behind the point, and no more than there are."""
    whole, rest = divmod(nano, NANO)
    return f"{whole}.{f'{rest:09}'.rstrip('0').ljust(2, '0')}"


def price(name: str, values: Mapping[str, Any]) -> Price:
    """values: input, cached_input (left out: as input) and output."""
    unknown = values.keys() - {"input", "cached_input", "output"}
    if unknown or not {"input", "output"} <= values.keys():
        wrong = f"has {', '.join(sorted(unknown))}" if unknown else "lacks input or output"
        raise AccountsError(f"the price of {name} {wrong}", hint=_FORM)
    numbers = {each: decimal(value) for each, value in values.items()}
    for each, number in numbers.items():
        if number is None:
            raise AccountsError(f"the price of {name}: {each} is {values[each]!r}, expected a number", hint=_FORM)
    known = cast("dict[str, Decimal]", numbers)
    return Price(input=known["input"], cached_input=known.get("cached_input", known["input"]), output=known["output"])


def read(path: Path) -> dict[str, Price]:
    """A price list: model -> price."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AccountsError(f"{path}: {error}", hint=_FORM) from error
    models = document.get("models")
    if document.keys() != {"models"} or not isinstance(models, dict):
        raise AccountsError(f"{path} has {', '.join(document) or 'nothing'}, expected models alone", hint=_FORM)
    listed = cast("dict[str, Any]", models)
    for name, values in listed.items():
        if not isinstance(values, dict):
            raise AccountsError(f"{path}: models.{name} is no table", hint=_FORM)
    return {name: price(name, values) for name, values in listed.items()}


def find(prices: Mapping[str, Price], names: Iterable[str]) -> Price | None:
    """Of the first of a model's names that is listed."""
    return next((prices[name] for name in names if name in prices), None)
