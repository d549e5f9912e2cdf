"""Numbers as people write them: 12,000, 1.5 million, twelve, twenty-five."""

from __future__ import annotations

from random import Random

from baltoro.train.synthesis.values import Value

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """0 to 999,999 in English words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    return f"{in_words(number // size)} {name}" + (f" {in_words(rest)}" if rest else "")


def integer(r: Random, number: int) -> Value:
    """Small ones as words now and then, large ones with separators or short."""
    if 0 < number <= 12 and r.random() < 0.12:
        return Value(number, in_words(number))
    if 12 < number <= 100 and (number % 10 == 0 or number < 20) and r.random() < 0.06:
        return Value(number, in_words(number))
    return Value(number, written(r, number))


def written(r: Random, number: float) -> str:
    if abs(number) < 1000:
        return str(number)
    if isinstance(number, int):
        if number % 1000 == 0 and r.random() < 0.12:
            return r.choice((f"{number // 1000} thousand", f"{number // 1000}k", f"{number // 1000}K"))
        if number % 100_000 == 0 and number >= 10**6 and r.random() < 0.4:
            return f"{number / 10**6:g} million"
    return f"{number:,}" if r.random() < 0.4 else str(number)
