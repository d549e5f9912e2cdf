"""Documents that can only be predicted by copying: each repeats random pieces of one random segment.

Copying from context is what tool calls are made of, and a small model finds it late or never in ordinary text.
On small alphabets, chosen anew for every document, it appears within a few million tokens; docs/log.md has
the runs. Only positions that a copier can know carry loss: from a piece's third token on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baltoro.train.documents import Document

ALPHABET = (8, 64)  # tokens, smallest and largest


def copying_document(rng: np.random.Generator, *, length: int, vocabulary: int, whole_vocabulary: float) -> Document:
    """`length` tokens below `vocabulary`; with probability `whole_vocabulary` drawn from all of them."""
    if rng.random() < whole_vocabulary:
        alphabet: NDArray[np.int64] = np.arange(vocabulary)
    else:
        alphabet = rng.integers(0, vocabulary, rng.integers(*ALPHABET, endpoint=True))
    segment = alphabet[rng.integers(0, len(alphabet), rng.integers(8, length // 2))]
    ids = np.empty(length, dtype=np.int64)
    known = np.zeros(length, dtype=bool)
    filled = len(segment)
    ids[:filled] = segment
    while filled < length:
        start = int(rng.integers(0, len(segment) - 3))
        piece = segment[start : start + int(rng.integers(4, max(len(segment) - start, 4), endpoint=True))]
        piece = piece[: length - filled]
        ids[filled : filled + len(piece)] = piece
        known[filled + 2 : filled + len(piece)] = True
        filled += len(piece)
    return Document(ids, known, kind="copy")
