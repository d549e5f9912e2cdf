"""The rows of one forward through the latent cache, and what each attends to: checked once, used by every layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baltoro.kernels.targets import native

Numbers = NDArray[np.int64]


class Rows:
    """Addresses of arrays that it keeps.

    write_slots: (T,) where each token lies in the cache, no two the same
    decoding:    (B,) rows that attend absorbed, one token each; 0 .. T - 1 where there are no chunks
    slots:       what they attend to, themselves last, one behind the other; `edges` (B + 1,) say where each begins
    chunks:      (., 4) a prompt's new tokens, which attend expanded: first row, rows, first of chunk_slots, how many of
                 them, the rows' own the last
    cache_rows:  how many the cache has
    """

    def __init__(
        self, write_slots: Numbers, *, decoding: Numbers, slots: Numbers, edges: Numbers, chunks: Numbers,
        chunk_slots: Numbers, cache_rows: int,
    ) -> None:  # fmt: skip
        T, B = len(write_slots), len(decoding)
        named = {
            "write_slots": (write_slots, (T,)), "decoding": (decoding, (B,)), "slots": (slots, slots.shape[:1]),
            "edges": (edges, (B + 1,)), "chunks": (chunks, (len(chunks), 4)),
            "chunk_slots": (chunk_slots, chunk_slots.shape[:1]),
        }  # fmt: skip
        for name, (numbers, shape) in named.items():
            if numbers.dtype != np.int64 or numbers.shape != shape or not numbers.flags.c_contiguous:
                raise ValueError(f"{name} is {numbers.dtype} {numbers.shape}, expected int64 {shape}, contiguous")
        for name, numbers, end in (
            ("write_slots", write_slots, cache_rows), ("slots", slots, cache_rows),
            ("chunk_slots", chunk_slots, cache_rows), ("decoding", decoding, T),
        ):  # fmt: skip
            if not native().within(numbers.ctypes.data, len(numbers), end):
                raise ValueError(f"{name} hold {numbers.min()} .. {numbers.max()}, expected 0 .. {end - 1}")
        cuts: list[int] = edges.tolist()
        if cuts[0] != 0 or cuts[-1] != len(slots) or any(a >= b for a, b in zip(cuts, cuts[1:], strict=False)):
            raise ValueError(f"edges are {cuts}, expected to rise from 0 to {len(slots)}")
        taken = B
        for first, tokens, begin, seen in chunks.tolist():
            fits = 0 <= first <= first + tokens <= T and 1 <= tokens <= seen and 0 <= begin <= len(chunk_slots) - seen
            if not fits:
                raise ValueError(
                    f"a chunk is {(first, tokens, begin, seen)}, expected some of {T} rows that see themselves among "
                    f"{len(chunk_slots)} slots"
                )
            taken += tokens
        if taken != T:
            raise ValueError(f"{B} decoding rows and those of {len(chunks)} chunks are {taken}, expected {T}")
        self.tokens, self.cache_rows = T, cache_rows
        self._kept = (write_slots, decoding, slots, edges, chunks, chunk_slots)  # native code has addresses only
        self.native = native().Rows(
            T, write_slots.ctypes.data, decoding.ctypes.data, slots.ctypes.data, edges.ctypes.data, B,
            chunks.ctypes.data, len(chunks), chunk_slots.ctypes.data,
        )  # fmt: skip
