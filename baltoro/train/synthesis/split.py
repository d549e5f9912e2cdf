"""Held out by construction: a word belongs to training or to evaluation by its own hash, for ever.

A word that falls to the held-out side never occurs in a training function name, parameter name or
value, and every held-out name and word-like value contains one that does. Numbers, verbs and a few
parameter suffixes (`_id`, `_name`) are shared: they are the grammar, not the content.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Literal, TypeVar

Split = Literal["train", "heldout"]
T = TypeVar("T")

HELDOUT_SHARE = 0.12  # of all words

# The functions and values that the model card and the ten hand-written evaluation tools use. They are
# never generated, whatever their hash says; names are compared without case and separators.
RESERVED_FUNCTIONS = frozenset({
    "getweather", "getstockprice", "sendemail", "bookflight", "convertcurrency", "searchrestaurants",
    "setalarm", "translatetext", "createcalendarevent", "playmusic", "findhotel",
})  # fmt: skip
RESERVED_VALUES = frozenset({
    "aapl", "amsterdam", "beijing", "bohemian", "boston", "chf", "coldplay", "delmar", "dentist", "hurt", "japanese",
    "kyoto", "lisbon", "nok", "nvda", "otis", "pills", "pln", "polish", "queen", "quillon", "qxlr", "rhapsody", "sek",
    "thai", "turin", "vegan", "yoga",
})  # fmt: skip


@lru_cache(maxsize=200_000)
def side(word: str) -> Split:
    """The split that owns `word`; case does not matter."""
    word = word.lower()
    if word in RESERVED_VALUES:
        return "heldout"
    digest = hashlib.blake2b(word.encode(), digest_size=4, salt=b"baltoro-nano").digest()
    return "heldout" if int.from_bytes(digest) < HELDOUT_SHARE * 2**32 else "train"


def is_reserved(function: str) -> bool:
    return re.sub(r"[^a-z]", "", function.lower()) in RESERVED_FUNCTIONS


def keep(phrases: list[T], split: Split) -> list[T]:
    """The phrases all of whose words belong to `split`."""
    return [phrase for phrase in phrases if all(side(word) == split for word in str(phrase).split())]
