"""Values of everyday requests: what people type on an ordinary day.

A kind is named in everyday.txt: a list of that file, one of the makers here, or `int 2 90`, `num 1 9 2`
(bounds and decimals), `list person`, `low/medium/high`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from baltoro.train.synthesis import values
from baltoro.train.synthesis.split import side
from baltoro.train.synthesis.values import Maker, Value
from baltoro.train.synthesis.words import Lexicon

_UNITS = ("meters", "feet", "inches", "yards", "miles", "kilometers", "centimeters", "millimeters", "light years")
_HEADLINES = (
    "{C} opens a {n} in {p}", "{w} wins the {n} of {p}", "New {n} found near {p}", "{C} and {D} stop the {n}",
    "{p} votes against the {n}", "Why everybody talks about the {n}", "{w} leaves {C}",
)  # fmt: skip
_ERRANDS = (
    "call {w}", "buy {f}", "water the plants", "pay the rent", "feed the {n}", "take the {n} out of the oven", "pick up {w}",
    "send {w} the {n}", "clean the {n}", "book the {n}", "take my medicine", "charge the {n}", "write to {w}", "fix the {n}",
    "bring back the {n}", "ask {w} about the {n}", "wash the car", "check the {n}", "prepare {f} for {w}", "print the {n}",
)  # fmt: skip
_COMPLAINTS = (
    "the {n} is broken", "wrong {n}", "the {n} does not start", "the {n} came too late", "{n} is missing", "too small",
    "the printer makes noise", "I cannot open the {n}", "the {n} has the wrong color", "it was a present for {w}", "no {n}",
    "the screen stays black", "ordered twice", "{n} arrived damaged", "login fails", "the {n} smells of {f}",
)  # fmt: skip
_PHRASES = (
    "Where is my {n}?", "I would like {f}, please.", "How much is the {n}?", "I am called {w}.", "thank you", "see you soon",
    "I have lost my {n}.", "Do you speak English?", "the {n} is closed", "I love {p}", "one more {f}", "good luck",
    "We are from {p}.", "What time is it?", "It was delicious.", "Can you help me?", "I am allergic to {f}.", "my {n}",
)  # fmt: skip
_ODD = (  # what JSON must escape, and letters beyond ASCII
    'the "{n}" is ready', "it's {w}'s {n}", 'she said "no"', "C:\\{n}\\{m}", "{n}\\{m}", "café at {p}", "naïve {n}", "Grüße an {w}",
    "你好 {w}", "100 % {n}", "¡hola {w}!", "{n} – {m}", "5 € for the {n}", "smörgås and {f}", 'a 12" {n}', "谢谢", "Straße 5",
)  # fmt: skip
_STREETS = ("Street", "Road", "Lane", "Avenue", "Square", "Way")


def _same(text: str) -> Value:
    return Value(text, text)


def _simple(make: Callable[[Random], str]) -> Maker:
    def maker(r: Random, words: Lexicon) -> Value:
        return _same(make(r))

    return maker


def _from(forms: tuple[str, ...], odd: float = 0.0) -> Maker:
    """Phrases with {n}, {m} nouns, {w} a person, {p} a city, {f} food, {C}, {D} companies."""

    def make(r: Random, words: Lexicon) -> Value:
        text = r.choice(_ODD if r.random() < odd else forms)
        for slot, maker in (
            ("{n}", values.singular), ("{m}", values.singular), ("{w}", values.person), ("{p}", _place),
            ("{f}", values.food), ("{C}", values.company), ("{D}", values.company),
        ):  # fmt: skip
            if slot in text:
                text = text.replace(slot, maker(r, words).text)
        return _same(text)

    return make


def _text(r: Random, words: Lexicon) -> Value:
    return _from(_ODD)(r, words) if r.random() < 0.12 else values.sentence(r, words)


def _absolute(r: Random) -> str:
    y, m, d = r.randint(2018, 2032), r.randint(1, 12), r.randint(1, 28)
    month = values.MONTHS[m - 1]
    return r.choice(
        (f"{y}-{m:02d}-{d:02d}", f"{y}-{m:02d}-{d:02d}", f"{month} {d}", f"{d} {month}", f"{month} {d}, {y}")
    )


def _date(r: Random, words: Lexicon) -> Value:
    return _same(_absolute(r))


def _when(r: Random, words: Lexicon) -> Value:
    """A day; the request says "on" before it where people do."""
    style = r.random()
    if style < 0.35:
        day = _absolute(r)
        return Value(day, f"on {day}")
    if style < 0.6:
        day = r.choice(values.WEEKDAYS)
        return Value(day, f"on {day}")
    day = r.choice(
        ("today", "tomorrow", "tomorrow", "tonight", f"next {r.choice(values.WEEKDAYS)}", "this weekend", "next week")
    )
    return _same(day)


def _ticker(r: Random, words: Lexicon) -> Value:
    while True:
        letters = "".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=r.choice((2, 3, 3, 4, 4, 5))))
        if side(letters) == words.split:
            return _same(letters)


def _expression(r: Random, words: Lexicon) -> Value:
    a, b, c = (r.randint(2, 10 ** r.randint(1, 4)) for _ in range(3))
    x = f"{r.randint(1, 99)}.{r.randint(1, 9)}"
    return _same(
        r.choice((
            f"{a} + {b}", f"{a} * {b}", f"{a} - {b}", f"{a} / {b}", f"({a} + {b}) * {c}", f"{a} * {x}", f"{a}*{b}+{c}",
            f"sqrt({a})", f"{x} / {a}", f"{a}^2", f"{a} - {b} + {c}",
        ))
    )  # fmt: skip


def _phone(r: Random, words: Lexicon) -> Value:
    digits = "".join(r.choices("0123456789", k=7))
    return _same(
        r.choice((f"+{r.randint(20, 98)} {digits}", f"0{r.randint(10, 99)}-{digits}", f"{digits[:3]}-{digits[3:]}"))
    )


def _place(r: Random, words: Lexicon) -> Value:
    style = r.random()
    if style < 0.72:
        return _same(r.choice(words.cities))
    if style < 0.77:
        return _same(r.choice(words.countries))
    name = values.capitalised(words.invented(r))
    return _same(name if style < 0.95 else f"{r.choice(('New', 'Port', 'San', 'Lake', 'East'))} {name}")


def _street(r: Random, words: Lexicon) -> Value:
    return _same(f"{values.capitalised(words.noun(r, 0.4))} {r.choice(_STREETS)}")


def _address(r: Random, words: Lexicon) -> Value:
    street = _street(r, words).text
    return _same(f"{r.randint(1, 199)} {street}" if r.random() < 0.8 else street)


def _url(r: Random, words: Lexicon) -> Value:
    host = f"{words.noun(r, 0.4)}.{r.choice(('com', 'org', 'net', 'io'))}"
    return _same(
        r.choice(
            (
                f"https://{host}/{words.noun(r)}",
                f"https://www.{host}",
                f"http://{host}/{words.noun(r)}?id={r.randint(1, 999)}",
            )
        )
    )


def _folder(r: Random, words: Lexicon) -> Value:
    a, b = words.noun(r), words.noun(r, 0.3)
    return _same(r.choice((f"/home/{a}", f"/{a}/{b}", f"~/{a}", f"{a}/{b}", f"C:\\{a}\\{b}", f"./{a}")))


def _path(r: Random, words: Lexicon) -> Value:
    if r.random() < 0.75:
        return values.file_name(r, words)
    return _same(f"C:\\{words.noun(r)}\\{values.capitalised(words.noun(r, 0.3))}.txt")


def _sql(r: Random, words: Lexicon) -> Value:
    table, column, name = words.noun(r), words.noun(r), r.choice(words.people)
    return _same(
        r.choice((
            f"SELECT * FROM {table}", f"SELECT count(*) FROM {table}", f"SELECT {column} FROM {table} WHERE id = {r.randint(1, 999)}",
            f"SELECT {column} FROM {table} WHERE name = '{name}'", f'SELECT "{column}" FROM {table}', f"DELETE FROM {table}",
            f"SELECT max({column}) FROM {table}", f"UPDATE {table} SET {column} = {r.randint(0, 99)}",
        ))
    )  # fmt: skip


def _venue(r: Random, words: Lexicon) -> Value:
    name = values.capitalised(words.noun(r, 0.4))
    owner = r.choice(words.people)
    return _same(
        r.choice(
            (f"The {name}", f"Café {name}", f"Chez {owner}", f"{owner}'s {name}", f"{name} House", f"Casa {owner}")
        )
    )


def _team(r: Random, words: Lexicon) -> Value:
    city = r.choice(words.cities) if r.random() < 0.6 else values.capitalised(words.invented(r))
    return _same(
        r.choice((f"{city} United", f"{city} City", f"{city} {values.capitalised(words.noun(r))}s", f"FC {city}", city))
    )


def _username(r: Random, words: Lexicon) -> Value:
    name = r.choice(words.people).lower()
    return _same(
        r.choice(
            (f"{name}{r.randint(1, 99)}", f"{name}.{words.noun(r)}", f"{name}_{words.invented(r)}", words.invented(r))
        )
    )


def _foreign(r: Random, words: Lexicon) -> Value:
    return _same(" ".join(words.invented(r) for _ in range(r.randint(1, 5))))


def _host(r: Random, words: Lexicon) -> Value:
    return _same(
        r.choice(
            (
                f"{words.noun(r, 0.5)}-{r.randint(1, 20)}",
                f"{words.noun(r, 0.5)}.local",
                f"10.0.{r.randint(0, 255)}.{r.randint(1, 254)}",
            )
        )
    )


def _dish(r: Random, words: Lexicon) -> Value:
    return _same(f"{r.choice(words.adjectives)} {r.choice(words.foods)}")


def _song(r: Random, words: Lexicon) -> Value:
    title = values.title(r, words).text
    return _same(" ".join(w if w in ("and", "of") else values.capitalised(w) for w in title.split()))


_PROFESSIONS = (
    "nurse", "cook", "gardener", "teacher", "driver", "plumber", "designer", "baker", "waiter", "carpenter",
    "lawyer",
)  # fmt: skip

MAKERS: Mapping[str, Maker] = {
    "place": _place, "country": values.country, "person": values.person, "company": values.company,
    "title": values.title, "food": values.food, "language": values.language, "id": values.identifier, "email": values.email,
    "file": values.file_name, "word": values.word, "thing": values.thing, "query": values.query, "clock": values.clock,
    "money": values.integer_or_decimal, "text": _text, "date": _date, "when": _when, "ticker": _ticker,
    "expression": _expression, "phone": _phone, "street": _street, "address": _address, "url": _url, "folder": _folder,
    "path": _path, "sql": _sql, "venue": _venue, "team": _team, "username": _username, "foreign": _foreign, "host": _host,
    "dish": _dish, "song": _song, "headline": _from(_HEADLINES), "errand": _from(_ERRANDS, 0.03),
    "complaint": _from(_COMPLAINTS, 0.08), "phrase": _from(_PHRASES, 0.08),
    "unit": _simple(lambda r: r.choice(_UNITS)), "profession": _simple(lambda r: r.choice(_PROFESSIONS)),
    "flight": _simple(lambda r: f"{''.join(r.choices('ABDEFKLNQSTUVX', k=2))}{r.choice(('', ' '))}{r.randint(10, 9999)}"),
    "gate": _simple(lambda r: f"{r.choice('ABCDE')}{r.randint(1, 60)}"),
    "monthday": _simple(lambda r: f"{r.choice(values.MONTHS)} {r.randint(1, 28)}"),
    "sha": _simple(lambda r: "".join(r.choices("0123456789abcdef", k=7))),
}  # fmt: skip


def integer(low: int, high: int) -> Maker:
    def make(r: Random, words: Lexicon) -> Value:
        number = r.randint(low, high)
        word = 2 <= number < len(values.DIGIT_WORDS) and r.random() < 0.12
        return Value(number, values.DIGIT_WORDS[number] if word else str(number))

    return make


def chosen(items: tuple[str, ...]) -> Maker:
    return _simple(lambda r: r.choice(items))


def decimal(low: int, high: int, places: int) -> Maker:
    def make(r: Random, words: Lexicon) -> Value:
        number = round(r.uniform(low, high), places)
        if r.random() < 0.25:
            number = int(number)
        return Value(number, str(number))

    return make


def listed(items: tuple[str, ...]) -> Maker:
    """An item that belongs to the split; a tenth of the time, and where none does, an invented word."""

    def make(r: Random, words: Lexicon) -> Value:
        mine = [item for item in items if all(side(word) == words.split for word in item.split())]
        return _same(r.choice(mine) if mine and r.random() < 0.9 else words.invented(r))

    return make
