"""Kinds of values as a declaration fixes them: the schema, what its description says of the format, and a maker.

The same day is 2024-03-05 for one function and "March 5" for another, five per cent is 5 or 0.05, an enum's member
is CELSIUS where people say "in Celsius". So a kind is declared once a function, and its values are made after that:
`json` as the schema wants it, `text` as people say it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from baltoro.train.synthesis import named, numerals, values
from baltoro.train.synthesis.everyday_values import MAKERS
from baltoro.train.synthesis.values import Maker, Value
from baltoro.train.synthesis.words import Lexicon

SLOT = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


@dataclass(frozen=True, slots=True)
class Kind:
    schema: Mapping[str, Any]  # without a description
    make: Maker
    hints: tuple[str, ...] = ()  # one of them goes into the description: "in YYYY-MM-DD format"
    default: Any = None  # what the function takes where nothing is said
    strict: bool = False  # nobody can know the format but by a hint: the description must have one


Declare = Callable[[Random], Kind]


def declare(r: Random, spec: str, *, described: bool = True) -> Kind:
    """`spec` as blueprints.txt writes it behind a slot's colon. Without a description no kind has a format to obey."""
    while True:
        kind = _declare(r, spec)
        if described or not kind.strict:
            return kind


def _declare(r: Random, spec: str) -> Kind:
    spec, _, default = spec.partition(";")
    name, *rest = spec.split()
    if "/" in spec:
        return _choice(r, spec, default)
    if name == "int":
        low, high = map(int, rest or ("1", "99"))
        return _bounded(low, high, 0, default)
    if name == "num":
        low, high, places = map(int, rest or ("0", "99", "1"))
        return _bounded(low, high, places, default)
    if name == "coord":
        return _bounded(-int(rest[0]), int(rest[0]), r.choice((2, 4)), default)
    if name == "list":
        return _list(r, declare(r, " ".join(rest), described=False))
    if name == "obj":
        return _object(r, _OBJECTS[rest[0]])
    if name in _SPECIAL:
        return _SPECIAL[name](r)
    make = named.MAKERS.get(name) or MAKERS[name]
    return Kind({"type": "string"}, make, _HINTS.get(name, ()))


# Descriptions say such things now and then; the model need not obey them, since requests do.
_HINTS: Mapping[str, tuple[str, ...]] = {
    "place": ("such as a city", "as a name", "city name"),
    "ticker": ("as a ticker symbol", "the stock symbol"), "code": ("three letter code", "as an ISO 4217 code"),
    "email": ("as a valid email address",), "url": ("as a full URL",), "phone": ("with the area code",),
    "file": ("with its extension",), "airport": ("as an IATA code", "three letter code"), "id": ("as printed", "unique"),
    "person": ("first name or full name",), "fullname": ("first and last name",), "tz": ("as an IANA name",),
    "hexcolor": ("in hexadecimal",), "repo": ("as owner/name",), "sql": ("a valid SQL statement",),
}  # fmt: skip


def _bounded(low: int, high: int, places: int, default: str) -> Kind:
    schema: dict[str, Any] = {"type": "number" if places else "integer"}
    given = None if not default else (float(default) if places else int(default))

    def make(r: Random, words: Lexicon) -> Value:
        if places and r.random() > 0.2:
            number = round(r.uniform(low, high), places)
            return Value(number, numerals.written(r, number)) if number else Value(0.5, "0.5")
        return numerals.integer(r, r.randint(low, high))

    return Kind(schema, make, default=given)


def _choice(r: Random, spec: str, default: str) -> Kind:
    """`a/b` or `a=what people say~or this/b=...`: a string with an enum, a hint at one, or a boolean."""
    said: dict[str, tuple[str, ...]] = {}
    for part in spec.split("/"):
        member, _, phrases = part.partition("=")
        said[member] = tuple(phrases.split("~")) if phrases else (member,)
    if set(said) == {"true", "false"}:
        plain = said["true"] == ("true",)
        return Kind(
            {"type": "boolean"},
            _spoken({"true": True, "false": False}, said, plain),
            default=default == "true" if default else None,
        )
    style = r.random()
    spell: Callable[[str], str] = str
    if style < 0.1:
        spell = str.upper
    elif style < 0.2:
        spell = str.title
    elif style < 0.25:
        spell = _snake
    written = {member: spell(member) for member in said}
    members = tuple(written.values())
    if r.random() < 0.75:
        schema: dict[str, Any] = {"type": "string", "enum": list(members)}
        hints: tuple[str, ...] = (f"one of {', '.join(members)}", "")
    else:
        schema = {"type": "string"}
        quoted = ", ".join(f"'{member}'" for member in members)
        hints = (f"options are {quoted}", f"either {' or '.join(members)}", f"can be {quoted}", f"one of: {quoted}")
    return Kind(
        schema,
        _spoken(written, said, False),
        hints,
        written.get(default),
        "enum" not in schema,
    )


def _snake(member: str) -> str:
    return member.lower().replace(" ", "_")


def _spoken(written: Mapping[str, Any], said: Mapping[str, tuple[str, ...]], plain: bool) -> Maker:
    def make(r: Random, words: Lexicon) -> Value:
        member = r.choice(list(said))
        if plain:
            return Value(written[member], r.choice(("yes", "true") if member == "true" else ("no", "false")))
        return Value(written[member], r.choice(said[member]))

    return make


def _list(r: Random, item: Kind) -> Kind:
    bare = item.schema["type"] != "string" and item.schema["type"] != "object"
    longest = 6 if bare else 4

    def make(r: Random, words: Lexicon) -> Value:
        made = {str(value.json): value for value in (item.make(r, words) for _ in range(r.randint(1 + bare, longest)))}
        items = list(made.values())
        texts = [value.text for value in items]
        if bare:
            texts = [str(value.json) for value in items]
        if bare and r.random() < 0.5:
            return Value([value.json for value in items], f"[{', '.join(texts)}]")
        return Value([value.json for value in items], values.listing(texts) if r.random() < 0.8 else ", ".join(texts))

    hints = ("as a list", "list of values", "one or more") if r.random() < 0.5 else ()
    return Kind({"type": "array", "items": dict(item.schema)}, make, hints)


def _object(r: Random, form: str) -> Kind:
    """`form`: how people say it, with slots for the fields; some declarations describe them, some name all as required."""
    kinds = {key: declare(r, spec, described=False) for key, spec in SLOT.findall(form)}
    described = r.random() < 0.5
    properties = {
        key: {**kind.schema, **({"description": f"{named.label(key)} {r.choice(kind.hints or ('',))}".strip()} if described else {})}
        for key, kind in kinds.items()
    }  # fmt: skip
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if r.random() < 0.6:
        schema["required"] = list(properties)

    def make(r: Random, words: Lexicon) -> Value:
        made = {key: kind.make(r, words) for key, kind in kinds.items()}
        text = SLOT.sub(lambda found: made[found[1]].text, form)
        return Value({key: value.json for key, value in made.items()}, text)

    return Kind(schema, make)


_OBJECTS: Mapping[str, str] = {
    "address": "{street:address}, {city:place}",
    "contact": "{name:fullname} with the email {email:email}",
    "article": "{quantity:int 1 20} {product:product}",
    "box": "from {left:int 0 400}, {top:int 0 400} to {right:int 401 2000}, {bottom:int 401 2000}",
    "point": "({x:int -50 50}, {y:int -50 50})",
    "geo": "{latitude:coord 90}, {longitude:coord 180}",
    "reward": "{gold:int 5 900} gold and a {item:noun}",
}


def _date(r: Random) -> Kind:
    style = r.choices(("iso", "any", "slash"), (55, 37, 8))[0]
    hints = {
        "iso": ("in YYYY-MM-DD format", "in the format YYYY-MM-DD", "as YYYY-MM-DD", "in ISO format (YYYY-MM-DD)", "formatted as 'YYYY-MM-DD'"),
        "any": ("", "", "as the user says it", "for example next Monday"), "slash": ("in MM/DD/YYYY format", "as MM/DD/YYYY"),
    }[style]  # fmt: skip

    def make(r: Random, words: Lexicon) -> Value:
        y, m, d = r.randint(2015, 2032), r.randint(1, 12), r.randint(1, 28)
        month, iso = values.MONTHS[m - 1], f"{y}-{m:02d}-{d:02d}"
        json = {"iso": iso, "any": "", "slash": f"{m:02d}/{d:02d}/{y}"}[style]
        if style == "any":
            said = r.choice((iso, f"{month} {d}", f"{d} {month} {y}", f"{month} {d}, {y}", f"{m}/{d}/{y}", "tomorrow",
                             "today", f"next {r.choice(values.WEEKDAYS)}", r.choice(values.WEEKDAYS)))  # fmt: skip
            return Value(said, said)
        spoken = (
            f"{month} {d}, {y}",
            f"{d} {month} {y}",
            f"{month} {_ordinal(d)}, {y}",
            f"the {_ordinal(d)} of {month} {y}",
            f"{month[:3]} {d} {y}",
        )
        return Value(json, json if r.random() < 0.5 else r.choice(spoken))

    return Kind({"type": "string"}, make, hints, strict=style != "any")


def _ordinal(number: int) -> str:
    return f"{number}{'th' if 10 < number % 100 < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _time(r: Random) -> Kind:
    strict = r.random() < 0.6
    hints = (
        ("in 24-hour HH:MM format", "as HH:MM", "in the format HH:MM (24-hour)")
        if strict
        else ("", "time of day", "as the user says it")
    )

    def make(r: Random, words: Lexicon) -> Value:
        hour, minute = r.randint(0, 23), r.choice((0, 0, 15, 30, 45, r.randint(0, 59)))
        exact = f"{hour:02d}:{minute:02d}"
        twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
        spoken = f"{twelve}:{minute:02d} {half}" if minute or r.random() < 0.3 else f"{twelve} {half}"
        if r.random() < 0.2:
            spoken = spoken.upper()
        text = exact if r.random() < 0.55 else spoken
        return Value(exact if strict else text, text)

    return Kind({"type": "string"}, make, hints, strict=strict)


def _datetime(r: Random) -> Kind:
    glue, seconds, strict = r.choice(("T", " ")), r.random() < 0.5, r.random() < 0.5

    def make(r: Random, words: Lexicon) -> Value:
        y, m, d, hour, minute = (
            r.randint(2015, 2032),
            r.randint(1, 12),
            r.randint(1, 28),
            r.randint(0, 23),
            r.choice((0, 15, 30, 45)),
        )
        json = f"{y}-{m:02d}-{d:02d}{glue}{hour:02d}:{minute:02d}{':00' if seconds else ''}"
        spoken = r.choice(
            (
                json,
                f"{values.MONTHS[m - 1]} {d}, {y} {hour:02d}:{minute:02d}",
                f"{y}-{m:02d}-{d:02d} {hour:02d}:{minute:02d}",
            )
        )
        return Value(json if strict else spoken, spoken)

    hint = f"as YYYY-MM-DD{glue}HH:MM{':SS' if seconds else ''}" if strict else "date and time"
    return Kind({"type": "string"}, make, (hint,), strict=strict)


def _money(r: Random) -> Kind:
    whole = r.random() < 0.5
    unit = r.choice(("dollars", "USD", "dollars", "euros", "EUR", "US dollars"))

    def make(r: Random, words: Lexicon) -> Value:
        number: float = (
            r.randint(1, 99) * 10 ** r.randint(0, 4) if whole or r.random() < 0.6 else round(r.uniform(1, 3000), 2)
        )
        text = numerals.written(r, number)
        if unit in ("euros", "EUR"):
            return Value(number, r.choice((f"{text} euros", f"€{text}", f"{text} EUR")))
        return Value(number, r.choice((f"${text}", f"${text}", f"{text} dollars", f"{text} USD", f"${text}")))

    return Kind({"type": "integer" if whole else "number"}, make, (f"in {unit}", f"in {unit}", ""))


def _percent(r: Random) -> Kind:
    decimal = r.random() < 0.5

    def make(r: Random, words: Lexicon) -> Value:
        number: float = r.randint(1, 25) if r.random() < 0.5 else round(r.uniform(0.1, 20), r.choice((1, 2)))
        text = r.choice((f"{number}%", f"{number}%", f"{number} percent", f"{number} %"))
        if not decimal:
            return Value(number, text)
        fraction = round(number / 100, 6)
        return Value(fraction, text if r.random() < 0.7 else f"{fraction:.6f}".rstrip("0"))

    hints = (
        ("as a decimal", "as a decimal, e.g. 0.05 for 5%", "as a fraction")
        if decimal
        else ("in percent", "as a percentage", "in percent, e.g. 5 for 5%")
    )
    return Kind({"type": "number"}, make, hints, strict=decimal)


def _percent100(r: Random) -> Kind:
    def make(r: Random, words: Lexicon) -> Value:
        number = r.choice((5, 10, 12, 15, 20, 25, 30, 40, 50, r.randint(1, 90)))
        return Value(number, r.choice((f"{number}%", f"{number} percent")))

    return Kind({"type": "integer" if r.random() < 0.5 else "number"}, make, ("in percent", "as a percentage"))


def _year(r: Random) -> Kind:
    text = r.random() < 0.15

    def make(r: Random, words: Lexicon) -> Value:
        number = r.randint(1800, 2035)
        return Value(str(number) if text else number, str(number))

    return Kind({"type": "string" if text else "integer"}, make)


def _location(r: Random) -> Kind:
    """A place alone, or with its state or country as the description asks."""
    style = r.choices(("plain", "state", "country"), (70, 16, 14))[0]
    hints = {
        "plain": ("", "", "such as a city", "name of a city"), "state": ("in the format 'City, State'", "city and state, e.g. Springfield, IL"),
        "country": ("in the format 'City, Country'", "city and country, e.g. Porto, Portugal"),
    }[style]  # fmt: skip

    def make(r: Random, words: Lexicon) -> Value:
        name = named.place(r, words)
        if style == "state":
            name += f", {r.choice(named.STATES)}"
        elif style == "country":
            name += f", {r.choice(words.countries)}"
        return Value(name, name)

    return Kind({"type": "string"}, make, hints, strict=style != "plain")


def _digits(count: int) -> Declare:
    def declared(r: Random) -> Kind:
        number = r.random() < 0.4 and count != 4

        def make(r: Random, words: Lexicon) -> Value:
            digits = (
                str(r.randint(10 ** (count - 1), 10**count - 1))
                if count == 4
                else str(r.randint(10, 10 ** r.randint(2, count)))
            )
            return Value(int(digits) if number else digits, digits)

        return Kind({"type": "integer" if number else "string"}, make)

    return declared


def _matrix(r: Random) -> Kind:
    return Kind(
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        named.matrix,
        ("as a list of rows",),
    )


_SPECIAL: Mapping[str, Declare] = {
    "date": _date, "time": _time, "datetime": _datetime, "money": _money, "percent": _percent, "percent100": _percent100,
    "year": _year, "place": _location, "digits": _digits(9), "digits4": _digits(4),
    "matrix": _matrix,
}  # fmt: skip
