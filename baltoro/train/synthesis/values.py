"""Argument values: what stands in the JSON, and how the request writes it.

The text of a value is copied from the request into the arguments, so it appears there verbatim; only
numbers written as words, amounts with a unit and booleans differ.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from baltoro.train.synthesis.words import Lexicon

MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DIGIT_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
]  # fmt: skip
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Value(NamedTuple):
    json: Any
    text: str  # as the request mentions it


Maker = Callable[[Random, Lexicon], Value]

_STRANGE = 0.04  # of names and words, those of a shape that nobody would think of


def _same(text: str) -> Value:
    return Value(text, text)


def capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


def person(r: Random, words: Lexicon) -> Value:
    if r.random() < _STRANGE:
        return _same(words.strange(r))
    first = r.choice(words.people) if r.random() < 0.7 else capitalised(words.invented(r))
    if r.random() < 0.4:
        last = r.choice(words.surnames) if r.random() < 0.7 else capitalised(words.invented(r))
        return _same(f"{first} {last}")
    return _same(first)


def place(r: Random, words: Lexicon) -> Value:
    kind = r.random()
    if r.random() < _STRANGE:
        return _same(words.strange(r))
    if kind < 0.55:
        return _same(r.choice(words.cities))
    if kind < 0.65:
        return _same(r.choice(words.countries))
    if kind < 0.72:
        return _same(f"{r.choice(words.cities)}, {r.choice(words.countries)}")
    name = capitalised(words.invented(r))
    return _same(name if kind < 0.93 else f"{r.choice(('New', 'Port', 'San', 'Lake', 'East'))} {name}")


def country(r: Random, words: Lexicon) -> Value:
    return _same(r.choice(words.countries))


def company(r: Random, words: Lexicon) -> Value:
    if r.random() < 2 * _STRANGE:
        return _same(words.strange(r))
    name = r.choice(words.companies) if r.random() < 0.4 else capitalised(words.noun(r, 0.6))
    return _same(name if r.random() < 0.7 else f"{name} {r.choice(('Ltd', 'Inc', 'Labs', 'Group', 'Systems'))}")


def thing(r: Random, words: Lexicon) -> Value:
    """A common noun with or without an adjective: "lantern", "silent harbour"; sometimes any words at all."""
    if r.random() < 0.1:
        return _same(" ".join(r.choice(words.words) for _ in range(r.randint(1, 4))))
    noun = words.noun(r)
    return _same(f"{r.choice(words.adjectives)} {noun}" if r.random() < 0.35 else noun)


def singular(r: Random, words: Lexicon) -> Value:
    return _same(words.singular(r))


def food(r: Random, words: Lexicon) -> Value:
    return _same(r.choice(words.foods))


def language(r: Random, words: Lexicon) -> Value:
    return _same(r.choice(words.languages))


def title(r: Random, words: Lexicon) -> Value:
    """Two to five words, as a title or in lower case."""
    kind = r.randrange(5)
    a, b = words.noun(r), words.noun(r)
    adjective = r.choice(words.adjectives)
    text = (f"the {adjective} {a}", f"{a} and {b}", f"{adjective} {a} {b}", f"the {a} of {b}", f"{a} {b}")[kind]
    if r.random() < 0.6:
        text = " ".join(w if w in ("and", "of") else capitalised(w) for w in text.split())
    return _same(text)


def sentence(r: Random, words: Lexicon) -> Value:
    """A short message such as people dictate."""
    if r.random() < 0.2:  # words in no order: what follows cannot be guessed, only read
        run = [
            r.choice(r.choice((words.words, words.nouns, words.verbs, words.adjectives)))
            for _ in range(r.randint(2, 9))
        ]
        return _same(r.choice((" ".join(run), capitalised(" ".join(run)) + r.choice(".!?"))))
    a, b, who = words.singular(r), words.singular(r), r.choice(words.people)
    return _same(
        r.choice(
            (
                f"the {a} is ready",
                f"please bring the {a}",
                f"I will be late for the {a}",
                f"{who} needs a new {a}",
                f"buy {a} and {b}",
                f"the {a} is next to the {b}",
                f"call {who} about the {a}",
                f"happy birthday {who}",
                f"do not forget the {a}",
                f"meet {who} at the {a}",
                f"we moved the {a} to the {b}",
                f"no {a} this week",
                f"thanks for the {a}, {who}",
                f"the {r.choice(words.adjectives)} {a} has arrived",
            )
        )
    )


def query(r: Random, words: Lexicon) -> Value:
    a, b = words.noun(r), words.noun(r)
    return _same(
        r.choice((f"{r.choice(words.adjectives)} {a}", f"{a} {b}", f"{a} for {b}", f"best {a}", f"{a} near {b}", a))
    )


def small_integer(r: Random, words: Lexicon) -> Value:
    number = r.randint(1, 12)
    return Value(number, DIGIT_WORDS[number]) if r.random() < 0.2 else Value(number, str(number))


def integer(r: Random, words: Lexicon) -> Value:
    number = r.randint(0, 10 ** r.randint(1, 5)) * (-1 if r.random() < 0.05 else 1)
    return Value(number, str(number))


def year(r: Random, words: Lexicon) -> Value:
    number = r.randint(1900, 2035)
    return Value(number, str(number))


def decimal(r: Random, words: Lexicon) -> Value:
    if r.random() < 0.3:
        return integer(r, words)
    places = r.choice((1, 1, 2, 2, 3))
    text = f"{r.randint(0, 10 ** r.randint(1, 4))}.{r.randint(1, 9 * 10 ** (places - 1)) % 10**places:0{places}d}"
    text = ("-" if r.random() < 0.07 else "") + text.rstrip("0")
    text = text + "5" if text.endswith(".") else text
    return Value(float(text), text)


def money(r: Random, words: Lexicon) -> Value:
    number = decimal(r, words) if r.random() < 0.3 else integer(r, words)
    amount = abs(number.json)
    style = r.randrange(5)
    text = str(amount)
    return Value(amount, (text, f"${text}", f"{text} dollars", f"{text} euros", f"{text} EUR")[style])


def integer_or_decimal(r: Random, words: Lexicon) -> Value:
    """An amount whose currency is said elsewhere: 12 or 99.5."""
    number = r.randint(2, 10 ** r.randint(1, 4)) if r.random() < 0.7 else round(r.uniform(1, 900), r.choice((1, 2)))
    return Value(number, str(number))


def date(r: Random, words: Lexicon) -> Value:
    y, m, d = r.randint(2018, 2032), r.randint(1, 12), r.randint(1, 28)
    style = r.randrange(8)
    if style < 4:
        return _same(f"{y}-{m:02d}-{d:02d}")
    return _same(
        (f"{MONTHS[m - 1]} {d}", f"{MONTHS[m - 1]} {d}, {y}", r.choice(("today", "tomorrow", "next week", "tonight")),
         r.choice(("", "next ")) + r.choice(WEEKDAYS))[style - 4]
    )  # fmt: skip


def clock(r: Random, words: Lexicon) -> Value:
    hour, minute = r.randint(0, 23), r.choice((0, 0, 15, 30, 45, r.randint(0, 59)))
    style = r.randrange(4)
    if style < 2:
        return _same(f"{hour:02d}:{minute:02d}")
    twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
    return _same(f"{twelve}:{minute:02d} {half}" if style == 2 else f"{twelve} {half}")


def email(r: Random, words: Lexicon) -> Value:
    user = r.choice((r.choice(words.people).lower(), words.invented(r), words.noun(r)))
    if r.random() < 0.3:
        user += r.choice((".", "_", "")) + r.choice((r.choice(words.surnames).lower(), str(r.randint(1, 99))))
    return _same(f"{user}@{words.noun(r, 0.5)}.{r.choice(('com', 'org', 'net', 'io', 'de'))}")


def identifier(r: Random, words: Lexicon) -> Value:
    """An order number, a code, a key: letters and digits without sense."""
    letters = "".join(r.choices(_LETTERS, k=r.randint(1, 4)))
    digits = "".join(r.choices("0123456789", k=r.randint(1, 6)))
    style = r.randrange(8)
    lower = words.invented(r)
    return _same(
        (f"{letters}-{digits}", f"{letters}{digits}", digits, f"{letters}-{digits}-{r.choice(_LETTERS)}",
         f"{lower}_{digits}", f"{lower}-{words.noun(r)}", f"#{digits}", f"{letters}_{digits}")[style]
    )  # fmt: skip


def file_name(r: Random, words: Lexicon) -> Value:
    stem = words.noun(r) if r.random() < 0.5 else f"{words.noun(r)}_{words.noun(r)}"
    name = f"{stem}.{r.choice(('txt', 'csv', 'pdf', 'png', 'json', 'py', 'md', 'mp3'))}"
    return _same(name if r.random() < 0.7 else f"/{words.noun(r)}/{name}")


def word(r: Random, words: Lexicon) -> Value:
    """One bare word, often an invented one."""
    if r.random() < 2 * _STRANGE:
        return _same(words.strange(r))
    return _same(words.noun(r, 0.5))


def proper(r: Random, words: Lexicon) -> Value:
    """A capitalised name of anything."""
    if r.random() < 2 * _STRANGE:
        return _same(words.strange(r))
    return _same(capitalised(words.noun(r, 0.6)))


def listing(items: list[str]) -> str:
    """A, B and C."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def several(maker: Maker) -> Maker:
    def make(r: Random, words: Lexicon) -> Value:
        items = list(dict.fromkeys(maker(r, words).json for _ in range(r.choice((1, 2, 2, 3, 3, 4)))))
        return Value(items, listing([str(item) for item in items]))

    return make
