"""The words that everything else is made of: real ones from lexicon.txt, invented ones from syllables.

lexicon.txt was gathered once: common words, nouns and adjectives by their neighbours in public-domain
books (a noun follows "the" and precedes "of"), the rest by hand.
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

    def noun(self, r: Random, invented: float = 0.12) -> str:
        if r.random() < invented:
            return self.invented(r)
        # Half of all draws come from the first 600, the everyday words of programs and business.
        return self.nouns[r.randrange(min(600, len(self.nouns) // 4))] if r.random() < 0.5 else r.choice(self.nouns)

    def singular(self, r: Random, invented: float = 0.12) -> str:
        """A noun that "is", not "are"."""
        while is_plural(noun := self.noun(r, invented)):
            pass
        return noun


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
    """Words in the names of everyday functions and their parameters, which no hash divides."""
    lines = _resource("everyday.txt")
    named = [line for line in lines if line.startswith("n: ")]
    named += [line.split(" | ")[1] for line in lines if line.startswith("@ ")]
    return frozenset(re.findall(r"[a-z]+", " ".join(named)))


def _resource(name: str) -> list[str]:
    return files("baltoro.train.synthesis").joinpath(name).read_text("utf-8").splitlines()
