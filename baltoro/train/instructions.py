"""Instructions that code can check: length, words, form. Names and readings follow IFEval (arXiv:2311.07911)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from baltoro.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of `CHECKS` with its value. Raises RecipeError for others."""

    name: str
    value: Any

    def __post_init__(self) -> None:
        if self.name not in CHECKS:
            raise RecipeError(f"{self.name!r} is no instruction", hint=f"there are {', '.join(CHECKS)}")
        kind = CHECKS[self.name].kind
        if type(self.value) is not kind or (kind is int and self.value < 0):
            raise RecipeError(f"instruction {self.name} has {self.value!r}, expected {_EXPECTED[kind]}")


def follows(instruction: Instruction, text: str) -> bool:
    """Whether the text does as it was told. An empty text follows nothing."""
    stripped = text.strip()
    return bool(stripped) and CHECKS[instruction.name].test(stripped, instruction.value)


@dataclass(frozen=True, slots=True)
class Check:
    kind: type  # of the value
    test: Callable[[str, Any], bool]  # stripped text, value


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def sentences(text: str) -> list[str]:
    """A sentence ends with . ! or ? before a blank or the end; "3.5" and "e.g." inside a line do not end one."""
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9À-Þ])", text.strip())
    return [part for part in parts if re.search(r"\w", part)]


def paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def bullets(text: str) -> list[str]:
    return re.findall(r"^\s*[-*•] +\S.*$", text, flags=re.MULTILINE)


def _is_json(text: str, keys: str) -> bool:
    """One JSON value, maybe in a fence; an object that has these keys, where some are named."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n\s*```", text, flags=re.DOTALL)
    try:
        value: Any = json.loads(fenced[1] if fenced else text)
    except (json.JSONDecodeError, RecursionError):
        return False
    wanted = keys.split()
    return not wanted or (isinstance(value, dict) and set(wanted) <= cast("Mapping[str, Any]", value).keys())


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE) is not None


CHECKS: Mapping[str, Check] = {
    "max_words": Check(int, lambda text, n: len(words(text)) <= n),
    "min_words": Check(int, lambda text, n: len(words(text)) >= n),
    "max_characters": Check(int, lambda text, n: len(text) <= n),
    "sentences": Check(int, lambda text, n: len(sentences(text)) == n),
    "paragraphs": Check(int, lambda text, n: len(paragraphs(text)) == n),
    "bullets": Check(int, lambda text, n: len(bullets(text)) == n),
    "contains": Check(str, _has_word),  # a word or a phrase, in any case of letters
    "avoids": Check(str, lambda text, word: not _has_word(text, word)),
    "starts_with": Check(str, lambda text, start: text.startswith(start)),
    "ends_with": Check(str, lambda text, end: text.endswith(end)),
    "json": Check(str, _is_json),  # keys that an object must have, with blanks between; "" takes any value
    "lowercase": Check(bool, lambda text, wanted: (text == text.lower()) == wanted),
    "uppercase": Check(bool, lambda text, wanted: (text == text.upper()) == wanted),
    "no_commas": Check(bool, lambda text, wanted: ("," not in text) == wanted),
}
_EXPECTED: Mapping[type, str] = {int: "a number, at least 0", str: "a string", bool: "true or false"}
