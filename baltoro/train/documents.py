"""Tokenised documents, and a directory of them mapped into memory. synthesis/tokens.py writes such directories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baltoro.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Document:
    ids: NDArray[np.int64]  # (n,)
    learned: NDArray[np.bool_]  # (n,) True where predicting this token is worth a gradient
    kind: str


AGAIN = "write it again; what training made itself, under runs/data, it makes again once it is deleted"


class DocumentFile:
    """An opened directory of documents."""

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        try:
            self.ids = np.load(directory / "ids.npy", mmap_mode="r")
            self.learned = np.load(directory / "mask.npy", mmap_mode="r")
            self.offsets: NDArray[np.int64] = np.load(directory / "offsets.npy")
            self._kinds = np.load(directory / "kinds.npy")
            meta: dict[str, Any] = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
            self.kind_names: list[str] = meta["kinds"]
            self.vocab_size: int = meta["vocab_size"]
            self.tokenizer: str = meta["tokenizer"]  # Tokenizer.digest
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"{directory} does not hold tokenised documents: {error}", hint=AGAIN) from error
        if problem := self._problem():
            raise RecipeError(f"{directory}: {problem}", hint=AGAIN)

    def _problem(self) -> str | None:
        """What in the files contradicts itself: one of them is cut, or of another writing."""
        documents, offsets = len(self._kinds), self.offsets
        if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in (self.ids, self.learned, offsets)):
            return "ids, mask and offsets must be lists of whole numbers"
        if len(offsets) != documents + 1:
            return (
                f"offsets are {len(offsets)} and kinds {documents}, expected one offset more than kinds: they disagree"
            )
        if offsets[0] != 0 or (np.diff(offsets) < 0).any():
            return "offsets do not rise from 0"
        if not offsets[-1] == len(self.ids) == len(self.learned):
            found = f"{len(self.ids)} ids and {len(self.learned)} in the mask"
            return f"{offsets[-1]} tokens by offsets, {found}: they disagree"
        if documents and self._kinds.max() >= len(self.kind_names):
            return f"kind {self._kinds.max()} of a document is not among the {len(self.kind_names)} of meta.json"
        return None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def __getitem__(self, index: int) -> Document:
        piece = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        kind = self.kind_names[int(self._kinds[index])]
        return Document(self.ids[piece].astype(np.int64), np.array(self.learned[piece], dtype=bool), kind)
