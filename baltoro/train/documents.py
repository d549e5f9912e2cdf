"""Tokenised documents, and a directory of them mapped into memory. synthesis/tokens.py writes such directories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baltoro.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Document:
    ids: NDArray[np.int64]  # (n,)
    learned: NDArray[np.bool_]  # (n,) True where predicting this token is worth a gradient
    kind: str


class DocumentFile:
    """An opened directory of documents."""

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        try:
            self.ids = np.load(directory / "ids.npy", mmap_mode="r")
            self.learned = np.load(directory / "mask.npy", mmap_mode="r")
            self.offsets: NDArray[np.int64] = np.load(directory / "offsets.npy")
            self._kinds = np.load(directory / "kinds.npy")
            self.kind_names: list[str] = json.loads((directory / "meta.json").read_text(encoding="utf-8"))["kinds"]
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(
                f"{directory} does not hold tokenised documents: {error}", hint="delete it: training makes it again"
            ) from error
        if len(self.offsets) == 0 or self.offsets[-1] != len(self.ids) or len(self.learned) != len(self.ids):
            raise RecipeError(
                f"{directory}: offsets, ids and learned disagree", hint="delete it: training makes it again"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def __getitem__(self, index: int) -> Document:
        piece = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        kind = self.kind_names[int(self._kinds[index])]
        return Document(self.ids[piece].astype(np.int64), np.array(self.learned[piece], dtype=bool), kind)
