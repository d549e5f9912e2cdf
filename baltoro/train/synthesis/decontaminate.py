"""What evaluations hold, so that training does not: functions by name and parameters, texts by eight words in a row.

An evaluation is read whole, whatever its layout: every JSON file below a directory, every object in it that looks like
a declared function, every string. Repetitions within the training set are found here, too.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from baltoro.errors import RecipeError

WORDS_IN_A_ROW = 8
_WORD = re.compile(r"\w+")


def signature(name: str, parameters: Iterable[str]) -> int:
    """A hash that is the same for get_weather(City) and getWeather(city)."""
    return _hash(" ".join([_plain(name), *sorted({_plain(each) for each in parameters})]))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def grams(text: str, size: int = WORDS_IN_A_ROW) -> set[int]:
    """Hashes of `size` words in a row, without case and marks; a shorter text is one of its own."""
    words = _WORD.findall(text.lower())
    if not words:
        return set()
    rows = [words[at : at + size] for at in range(max(1, len(words) - size + 1))]
    return {_hash(" ".join(row)) for row in rows}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


@dataclass(slots=True)
class Evaluations:
    """All that must not be trained on, as hashes: whoever trains needs no evaluation at hand."""

    signatures: set[int] = field(default_factory=set[int])
    grams: set[int] = field(default_factory=set[int])  # of 32 bits: of a million texts some are dropped for nothing

    @staticmethod
    def open(path: Path) -> Evaluations:
        """What `write` wrote."""
        try:
            with np.load(path) as arrays:
                return Evaluations(set(arrays["signatures"].tolist()), set(arrays["grams"].tolist()))
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(
                f"{path} does not hold hashes of evaluations: {error}",
                hint="`python -m baltoro.train.synthesis.decontaminate OUT FILE...` makes them",
            ) from error

    def write(self, path: Path) -> None:
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                signatures=np.array(sorted(self.signatures), np.uint64),
                grams=np.array(sorted(self.grams), np.uint32),
            )
        partial.replace(path)

    def read(self, path: Path) -> None:
        """Add a file, or every .json, .jsonl and their .gz below a directory."""
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if ".json" in "".join(p.suffixes))
        if not files:
            raise RecipeError(f"{path} holds no JSON", hint="expected an evaluation's file or directory")
        for file in files:
            text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text("utf-8")
            for value in parsed(text):
                self._add(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, str):
            if len(_WORD.findall(value)) >= WORDS_IN_A_ROW:
                self.grams |= _short(grams(value))
        elif isinstance(value, list):
            for item in cast("list[Any]", value):
                self._add(item)
        elif isinstance(value, Mapping):
            mapping = cast("Mapping[str, Any]", value)
            if found := declared(mapping):
                self.signatures.add(signature(*found))
            for item in mapping.values():
                self._add(item)

    def reason(self, functions: Iterable[tuple[str, Iterable[str]]], texts: Iterable[str]) -> str:
        """Why something with these functions and requests must be dropped; nothing if it need not."""
        if any(signature(name, parameters) in self.signatures for name, parameters in functions):
            return "function of an evaluation"
        long = [text for text in texts if len(_WORD.findall(text)) >= WORDS_IN_A_ROW]
        return "request of an evaluation" if any(self.grams & _short(grams(text)) for text in long) else ""


def _short(hashes: set[int]) -> set[int]:
    return {value & (2**32 - 1) for value in hashes}


def parsed(text: str) -> Iterator[Any]:
    """A JSON document, or one a line."""
    try:
        yield json.loads(text)
    except json.JSONDecodeError:
        yield from (json.loads(line) for line in text.splitlines() if line.strip())


def declared(value: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Name and parameters of a declared function, in any of the forms evaluations have; None for anything else."""
    name, parameters = value.get("name"), value.get("parameters", value.get("arguments"))
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        return None
    schema = cast("Mapping[str, Any]", parameters)
    properties = schema.get("properties", schema)
    return (name, list(cast("Mapping[str, Any]", properties))) if isinstance(properties, Mapping) else None


class Repetitions:
    """Texts seen so far: the same without case and digits, or nearly the same by their triples of words."""

    def __init__(self, likeness: float = 0.75) -> None:
        """`likeness`: share of common triples from which on a text is a repetition."""
        self._likeness = likeness
        self._exact: set[int] = set()
        self._bands: dict[tuple[int, int], list[set[int]]] = {}

    def repeats(self, text: str) -> str:
        """Whether an earlier text was like it, and how; from then on it is an earlier text."""
        plain = re.sub(r"\d+", "0", " ".join(_WORD.findall(text.lower())))
        if (key := _hash(plain)) in self._exact:
            return "repeated"
        self._exact.add(key)
        triples = grams(plain, 3)
        bands = [(band, value) for band, value in enumerate(_least(triples))]
        near = any(_alike(triples, other) >= self._likeness for band in bands for other in self._bands.get(band, ()))
        for band in bands:
            self._bands.setdefault(band, []).append(triples)
        return "nearly repeated" if near else ""


def _least(hashes: set[int], bands: int = 12) -> Sequence[int]:
    """Per band the least hash under another order: equal with the probability of likeness (Broder's min-hash)."""
    odd = [0x9E3779B97F4A7C15 * (2 * band + 1) & (2**64 - 1) for band in range(bands)]
    return [min((value * factor & (2**64 - 1)) ^ (value >> 29) for value in hashes) for factor in odd] if hashes else []


def _alike(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def main() -> None:
    """python -m baltoro.train.synthesis.decontaminate OUT FILE..."""
    parser = argparse.ArgumentParser(description="Hashes of evaluations, for training to leave out what they hold.")
    parser.add_argument("out", type=Path)
    parser.add_argument("evaluations", type=Path, nargs="+", help="files, or directories of them")
    args = parser.parse_args()
    found = Evaluations()
    for path in cast("list[Path]", args.evaluations):
        found.read(path)
    found.write(args.out)
    print(f"{len(found.signatures)} functions, {len(found.grams)} rows of {WORDS_IN_A_ROW} words")


if __name__ == "__main__":
    main()
