"""Names of things that real interfaces ask for: teams, drugs, courses, genes, squares, time zones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from baltoro.train.synthesis import values
from baltoro.train.synthesis.split import side
from baltoro.train.synthesis.values import Maker, Value, capitalised
from baltoro.train.synthesis.words import Lexicon

STATES = (
    "AL", "AK", "AZ", "CA", "CO", "CT", "FL", "GA", "HI", "ID", "IL", "IN", "KS", "KY", "LA", "MA", "MD", "ME", "MI", "MN",
    "MO", "MS", "MT", "NC", "ND", "NE", "NH", "NJ", "NM", "NV", "NY", "OH", "OK", "OR", "PA", "RI", "SC", "TN", "TX", "UT",
    "VA", "VT", "WA", "WI", "WV", "WY", "California", "Texas", "Oregon", "Ohio", "Florida",
)  # fmt: skip


def label(key: str) -> str:
    return key.replace("_", " ").rstrip("0123456789")


def place(r: Random, words: Lexicon) -> str:
    kind = r.random()
    if kind < 0.8:
        return r.choice(words.cities)
    return (
        words.strange(r)
        if kind < 0.84
        else capitalised(words.invented(r)) + r.choice(("", "", " Bay", "ville", " Falls", "stad"))
    )


def _made(make: Callable[[Random, Lexicon], str]) -> Maker:
    def maker(r: Random, words: Lexicon) -> Value:
        text = make(r, words)
        return Value(text, text)

    return maker


def _any(*items: str) -> Maker:
    """One of a closed set; an invented one now and then, so that sets are not learned by heart."""
    return _made(lambda r, words: words.invented(r) if r.random() < 0.08 else r.choice(items))


def _of(section: Callable[[Lexicon], list[str]]) -> Maker:
    """A word of the lexicon, sometimes in capitals, sometimes another noun in its place."""

    def make(r: Random, words: Lexicon) -> str:
        known = section(words)
        word = r.choice(known) if known and r.random() < 0.8 else words.noun(r, 0.4)
        return word if r.random() < 0.85 else capitalised(word)

    return _made(make)


def _full_name(r: Random, words: Lexicon) -> str:
    first = r.choice(words.people) if r.random() < 0.85 else capitalised(words.invented(r))
    last = r.choice(words.surnames) if r.random() < 0.85 else capitalised(words.invented(r))
    return f"{first} {last}" if r.random() < 0.93 else f"{first} {r.choice('ABCDEFGHJKLMNPRSTW')}. {last}"


def _letters(r: Random, words: Lexicon, count: int, alphabet: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> str:
    while True:
        word = "".join(r.choices(alphabet, k=count))
        if side(word) == words.split:
            return word


def _work(r: Random, words: Lexicon) -> str:
    if words.works and r.random() < 0.3:
        return r.choice(words.works)
    return values.title(r, words).text.title()


def _team(r: Random, words: Lexicon) -> str:
    town = place(r, words)
    return r.choice(
        (
            f"{town} {capitalised(words.noun(r))}s",
            f"{town} United",
            f"FC {town}",
            town,
            f"{town} {capitalised(r.choice(words.animals or words.nouns))}s",
        )
    )


def _drug(r: Random, words: Lexicon) -> str:
    return words.invented(r) + r.choice(("in", "ol", "ine", "ax", "amide", "ilol", "statin", "mycin"))


def _symptom(r: Random, words: Lexicon) -> str:
    return r.choice(("a headache", "a fever", "a sore throat", "a runny nose", "back pain", "nausea", "a rash", "a cough",
                     "dizziness", "stomach ache", "chest pain", "joint pain", words.noun(r) + " pain"))  # fmt: skip


def _polynomial(r: Random, words: Lexicon) -> str:
    a, b, c = r.randint(2, 9), r.randint(2, 9), r.randint(1, 9)
    return r.choice(
        (
            f"{a}x^2 + {b}x",
            f"x^{a}",
            f"{a}x^3 - {b}x + {c}",
            f"sin({a}x)",
            f"{a}*x + {b}",
            f"x**2 - {c}",
            f"{a}x^2 + {b}x - {c}",
            f"exp({a}x)",
        )
    )


def _reaction(r: Random, words: Lexicon) -> str:
    elements = ["H2", "O2", "Fe", "Na", "Cl2", "CH4", "C3H8", "N2", "Mg", "Al", "HCl", "KOH"]
    a, b, c = r.sample(elements, 3)
    return f"{a} + {b} -> {c}"


def matrix(r: Random, words: Lexicon) -> Value:
    rows, columns = r.choice(((2, 2), (2, 2), (2, 3), (3, 3)))
    matrix = [[r.randint(-9, 20) for _ in range(columns)] for _ in range(rows)]
    return Value(matrix, str(matrix))


def _slug(r: Random, words: Lexicon) -> str:
    parts = [words.noun(r, 0.3) for _ in range(r.choice((1, 2, 2, 3)))]
    return r.choice(("-", "-", "_")).join(parts)


def _glob(r: Random, words: Lexicon) -> str:
    return r.choice(
        (f"*.{r.choice(('txt', 'py', 'csv', 'log'))}", f"{words.noun(r)}_*", f"*{words.noun(r)}*", f"{words.noun(r)}.*")
    )


def _seat(r: Random, words: Lexicon) -> str:
    return r.choice(
        (
            f"{r.randint(1, 40)}{r.choice('ABCDEF')}",
            f"{r.choice('ABCDEFGH')}{r.randint(1, 30)}",
            f"{r.choice('ABCDEFGH')}",
        )
    )


def _course(r: Random, words: Lexicon) -> str:
    return r.choice(("algebra", "calculus", "biology", "chemistry", "physics", "world history", "geography", "statistics", "economics", "philosophy",
                     "linguistics", "art history", "computer science", "machine learning", "astronomy", f"{words.noun(r)} studies", f"introduction to {words.noun(r)}",
                     f"{r.choice(words.adjectives)} {words.noun(r)}"))  # fmt: skip


def _season(r: Random, words: Lexicon) -> str:
    year = r.randint(1990, 2030)
    return r.choice(
        (f"{year}-{year + 1}", f"{year}/{(year + 1) % 100:02d}", str(year), f"{year}-{(year + 1) % 100:02d}")
    )


MAKERS: Mapping[str, Maker] = {
    "surname": _made(lambda r, words: r.choice(words.surnames)), "fullname": _made(_full_name),
    "noun": values.singular, "proper": values.proper, "product": _made(lambda r, words: r.choice(words.products) if words.products and r.random() < 0.5 else values.thing(r, words).text),
    "colour": _of(lambda words: words.colours), "animal": _of(lambda words: words.animals), "plant": _of(lambda words: words.plants),
    "sport": _of(lambda words: words.sports), "instrument": _of(lambda words: words.instruments), "genre": _of(lambda words: words.genres),
    "cuisine": _of(lambda words: words.cuisines), "disease": _of(lambda words: words.diseases), "metal": _of(lambda words: words.metals),
    "profession": _of(lambda words: words.professions), "work": _made(_work), "team": _made(_team), "drug": _made(_drug), "symptom": _made(_symptom),
    "ticker": _made(lambda r, words: _letters(r, words, r.choice((2, 3, 4, 4, 5)))), "gene": _made(lambda r, words: _letters(r, words, r.randint(2, 4)) + r.choice(("", "1", "2", "53"))),
    "code": _made(lambda r, words: r.choice(("USD", "EUR", "GBP", "JPY", "CAD", "AUD", "INR", "BRL", "MXN", "KRW", "SGD", "ZAR", "TRY", "DKK", "HUF", "CZK")) if words.split == "train" and r.random() < 0.7 else _letters(r, words, 3)),
    "airport": _made(lambda r, words: _letters(r, words, 3)), "plate": _made(lambda r, words: f"{_letters(r, words, r.choice((1, 2, 3)))}{r.choice((' ', '-', ''))}{r.randint(10, 9999)}"),
    "polynomial": _made(_polynomial), "reaction": _made(_reaction),
    "slug": _made(_slug), "repo": _made(lambda r, words: f"{words.noun(r, 0.4)}/{_slug(r, words)}"), "glob": _made(_glob), "seat": _made(_seat), "course": _made(_course),
    "season": _made(_season), "domain": _made(lambda r, words: f"{words.noun(r, 0.5)}.{r.choice(('com', 'org', 'net', 'io', 'dev'))}"),
    "ip": _made(lambda r, words: ".".join(str(r.randint(1, 254)) for _ in range(4)) if r.random() < 0.6 else f"{words.noun(r, 0.5)}.example.com"),
    "version": _made(lambda r, words: ".".join(str(r.randint(0, 20)) for _ in range(r.choice((2, 3))))),
    "hexcolor": _made(lambda r, words: "#" + "".join(r.choices("0123456789ABCDEF", k=6))), "apartment": _made(lambda r, words: f"{r.randint(1, 99)}{r.choice(('', 'A', 'B', 'C'))}"),
    "jsontext": _made(lambda r, words: f'{{"{words.noun(r)}": {r.randint(1, 99)}}}'), "month": _any(*values.MONTHS), "weekday": _any(*values.WEEKDAYS),
    "amenity": _any("wifi", "parking", "pool", "gym", "breakfast", "spa", "air conditioning", "sauna"), "interest": _any("museums", "food", "hiking", "beaches", "nightlife", "art", "history", "shopping"),
    "drink": _any("latte", "cappuccino", "espresso", "americano", "mocha", "flat white", "hot chocolate", "chai", "cold brew"),
    "room": _any("living room", "kitchen", "bedroom", "bathroom", "office", "hallway", "garage", "cellar", "attic"), "facility": _any("lounges", "restaurants", "parking", "terminals", "shops"),
    "trait": _any("habitat", "diet", "lifespan", "size", "weight", "behavior"), "biography": _any("birthplace", "education", "awards", "family", "works", "death"),
    "home_feature": _any("garden", "balcony", "garage", "pool", "fireplace", "cellar"), "hr_field": _any("salary", "address", "position", "attendance", "benefits"),
    "equipment": _any("projector", "whiteboard", "video screen", "microphones"), "scope": _any("read", "write", "delete", "admin", "billing"),
    "entity": _any("people", "places", "dates", "companies", "amounts"), "car_field": _any("horsepower", "weight", "torque", "price", "fuel economy"),
    "chore": _any("windows", "kitchen", "bathroom", "carpets", "laundry"), "note": _any("C", "D", "E", "F", "G", "A", "B", "C#", "F#", "Bb"),
    "key": _any("C major", "A minor", "G major", "E minor", "D major", "F major", "B minor"), "chess": _any("e4", "e5", "Nf3", "Nc6", "Bb5", "d4", "d5", "c4", "O-O"),
    "league": _made(lambda r, words: f"{place(r, words)} {r.choice(('League', 'Cup', 'Premier League', 'Championship'))}" if r.random() < 0.7 else words.strange(r)),
    "ordinal": _any("12th", "14th", "15th", "16th", "17th", "18th", "19th", "20th"),
    "sign": _any("Aries", "Taurus", "Gemini", "Cancer", "Leo", "Virgo", "Libra", "Scorpio", "Sagittarius", "Capricorn", "Aquarius", "Pisces"),
    "tz": _any("Europe/Berlin", "America/New_York", "Asia/Tokyo", "UTC", "PST", "CET", "Australia/Sydney", "Africa/Nairobi", "GMT", "EST"),
}  # fmt: skip
