"""The words that everything else is made of: real ones from lexicon.txt, invented ones from syllables.

lexicon.txt was gathered once, 33,000 words beside the common ones: nouns, adjectives, verbs and words of any sort from
public-domain books and wonderwords, personal names from Faker, cities and countries from GeoNames, brands, dishes
and the like by hand. data/LICENSES.md names the sources. So many that a model has to copy them, not to know them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random

from baltoro.train.synthesis.split import Split, keep, side

_ONSETS = [
    "b", "bl", "br", "c", "ch", "cl", "cr", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "h", "j", "k", "kl", "kr",
    "l", "m", "n", "p", "pl", "pr", "qu", "r", "s", "sh", "sk", "sl", "sn", "sp", "st", "t", "th", "tr", "v", "w",
    "y", "z",
]  # fmt: skip
_VOWELS = ["a", "a", "a", "e", "e", "e", "i", "i", "o", "o", "o", "u", "u", "ai", "ea", "ee", "io", "oa", "oo", "ou"]
_CODAS = [
    *[""] * 4, "b", "ck", "d", "ff", "g", "l", "ll", "m", "n", "nd", "ng", "nt", "p", "r", "rk", "rn", "s", "sh",
    "st", "t", "v", "x", "z",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lexicon:
    """All words one split may put into names and values. `common` is running text, the same for both."""

    split: Split
    nouns: list[str]
    adjectives: list[str]
    common: list[str]
    people: list[str]
    surnames: list[str]
    cities: list[str]
    countries: list[str]
    companies: list[str]
    foods: list[str]
    languages: list[str]
    colours: list[str]
    verbs: list[str]
    words: list[str]  # of any sort
    products: list[str]
    professions: list[str]
    animals: list[str]
    plants: list[str]
    sports: list[str]
    instruments: list[str]
    genres: list[str]
    cuisines: list[str]
    diseases: list[str]
    metals: list[str]  # and other substances
    works: list[str]  # books, films, pictures, songs

    def is_new(self, word: str) -> bool:
        """Whether a held-out name that contains `word` cannot have been trained on."""
        return side(word) == "heldout" and word.lower() not in _everyday_words()

    def invented(self, r: Random) -> str:
        """A pronounceable word that nobody has seen: only copying can reproduce it."""
        while True:
            syllables = r.choice((1, 2, 2, 2, 3))
            word = "".join(r.choice(_ONSETS) + r.choice(_VOWELS) for _ in range(syllables)) + r.choice(_CODAS)
            if len(word) > 2 and side(word) == self.split:
                return word

    def strange(self, r: Random) -> str:
        """A word for values alone, of a shape that no syllables make: letters at random, CamelCase, digits, accents."""
        while True:
            word = r.choice(_SHAPES)(r, self)
            if side(word) == self.split:
                return word

    def noun(self, r: Random, invented: float = 0.12) -> str:
        if r.random() < invented:
            return self.invented(r)
        # A third of all draws come from the first 600, the everyday words of programs and business.
        return self.nouns[r.randrange(min(600, len(self.nouns) // 4))] if r.random() < 0.35 else r.choice(self.nouns)

    def singular(self, r: Random, invented: float = 0.12) -> str:
        """A noun that "is", not "are"."""
        while is_plural(noun := self.noun(r, invented)):
            pass
        return noun


def _letters(r: Random, words: Lexicon) -> str:
    word = "".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=r.randint(3, 11)))
    return r.choice((word, word, word.upper(), word[:1].upper() + word[1:]))


def _camel(r: Random, words: Lexicon) -> str:
    parts = [words.noun(r, 0.3).capitalize() for _ in range(r.choice((2, 2, 3)))]
    joined = "".join(parts)
    return joined if r.random() < 0.7 else joined[:1].lower() + joined[1:]


def _numbered(r: Random, words: Lexicon) -> str:
    word, number = words.noun(r, 0.5), str(r.randint(0, 10 ** r.randint(1, 4)))
    return r.choice(
        (word + number, f"{word}-{number}", f"{number}{word}", f"{word}_{number}", f"{word[:1].upper()}{number}")
    )


def _accented(r: Random, words: Lexicon) -> str:
    letters = list(words.invented(r))
    for position, letter in enumerate(letters):
        if letter in _ACCENTS and r.random() < 0.5:
            letters[position] = r.choice(_ACCENTS[letter])
    word = "".join(letters) + r.choice(("", "", "o", "ška", "ção", "ärt", "ý", "ñez", "søn"))
    return word[:1].upper() + word[1:] if r.random() < 0.6 else word


def _other_script(r: Random, words: Lexicon) -> str:
    low, high = r.choice(_SCRIPTS)
    return "".join(chr(r.randint(low, high)) for _ in range(r.randint(2, 5)))


def _compound(r: Random, words: Lexicon) -> str:
    return f"{words.noun(r, 0.3)}-{words.noun(r, 0.3)}"


_ACCENTS = {
    "a": "áàâäãåą", "c": "çčć", "e": "éèêëęě", "i": "íìîï", "l": "ł", "n": "ñńň", "o": "óòôöõø", "s": "šśş", "u": "úùûüů",
    "y": "ý", "z": "žźż", "g": "ğ", "r": "ř",
}  # fmt: skip
_SCRIPTS = ((0x4E00, 0x9FA0), (0x0430, 0x044F), (0x03B1, 0x03C9), (0x3042, 0x3093), (0x0627, 0x064A), (0xAC00, 0xD7A0))
_SHAPES = (_letters, _letters, _camel, _camel, _numbered, _accented, _accented, _other_script, _compound, _compound)

_PLURALS = frozenset({
    "men", "women", "children", "feet", "teeth", "people", "mice", "geese", "oxen", "cattle", "police", "data", "media",
    "brethren", "folk", "gentlemen", "countrymen", "policemen", "fishermen", "sheep", "deer",
})  # fmt: skip


def is_plural(noun: str) -> bool:
    return noun in _PLURALS or (noun.endswith("s") and not noun.endswith(("ss", "us", "is", "gas", "lens")))


@cache
def lexicon(split: Split) -> Lexicon:
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in _resource("lexicon.txt"):
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        else:
            current += [word.replace("_", " ") for word in line.split()]
    common = sections.pop("common")
    mine = {name: keep(words, split) for name, words in sections.items()}
    if split == "heldout":  # nouns make names
        mine["nouns"] = [noun for noun in mine["nouns"] if noun not in _everyday_words()]
    return Lexicon(split=split, common=common, **mine)


@cache
def _everyday_words() -> frozenset[str]:
    """Words in the names of everyday and of real interfaces' functions and parameters, which no hash divides."""
    lines = _resource("everyday.txt")
    named = [line for line in lines if line.startswith("n: ")]
    named += [line.split(" | ")[1] for line in lines if line.startswith("@ ")]
    for line in _resource("blueprints.txt"):
        named.append(line.partition(" :: ")[0].replace("_", " "))
        named += [key.replace("_", " ") for key in re.findall(r"\{(\w+)", line)]
        if line.startswith("= "):
            named.append(line)
    return frozenset(re.findall(r"[a-z]+", " ".join(named)))


def _resource(name: str) -> list[str]:
    return files("baltoro.train.synthesis").joinpath(name).read_text("utf-8").splitlines()
