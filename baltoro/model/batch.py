"""What one forward runs, and where it keeps what it has seen.

Every forward is packed: the tokens of all its sequences lie one behind the other in (T, ...)
tensors, and `Batch` says which rows belong to whom. Training packs whole documents and has no
cache; serving packs prefill chunks and single decode tokens, and reads the past from `LatentCache`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.kernels.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One forward. Sequence b owns rows edges[b] : edges[b + 1] of `ids` and `positions`.

    Through a cache, attention has two forms, which differ in their last bits: a prompt's tokens attend expanded, those
    that were generated attend absorbed, however many of them are in one forward. A token's latents and logits depend on
    its form and on what is before it, and on nothing else: not on how a prompt was cut, nor on who else is here.
    """

    ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, counted from 0 in each sequence; consecutive inside a sequence
    edges: tuple[int, ...]  # (B + 1,) row bounds, rising from 0 to T; no sequence is empty
    pages: tuple[tuple[int, ...], ...] = ()  # per sequence, pages holding positions 0, 1, ...; () without a cache
    logit_rows: Tensor | None = None  # rows whose logits are wanted; None: all
    generated: tuple[bool, ...] | None = None  # per sequence: its rows attend absorbed; None: single rows do

    @staticmethod
    def of(sequences: list[list[int]]) -> Batch:
        """Whole sequences from position 0, without a cache."""
        edges = [0]
        for sequence in sequences:
            edges.append(edges[-1] + len(sequence))
        return Batch(
            ids=torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64),
            positions=torch.cat([torch.arange(len(sequence)) for sequence in sequences]),
            edges=tuple(edges),
        )


class LatentCache:
    """MLA's memory of past tokens: per layer and token the normed latent (C) and the rotated shared key (R).

    `latents`: (layers, num_pages, page_tokens, C + R). Which page belongs to whom is not known here;
    engine/cache.py hands pages out.
    """

    def __init__(
        self, config: ModelConfig, *, num_pages: int, page_tokens: int = 64, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.page_tokens = page_tokens
        width = config.kv_lora_rank + config.qk_rope_head_dim
        self.latents = torch.zeros(config.num_hidden_layers, num_pages, page_tokens, width, dtype=dtype)
        self.slots = self.latents.flatten(1, 2)  # (layers, num_pages * page_tokens, C + R), the same memory


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one sequence's prompt, attending to all its cached ones."""

    rows: slice  # rows of the batch
    past: int  # tokens of the sequence that were cached before
    read_slots: Tensor  # (S,) where positions 0 .. past + rows lie in the cache


@dataclass(frozen=True)
class Decode:
    """B generated tokens, each attending by itself; several may be of one sequence."""

    rows: Tensor  # (B,)
    slots: Tensor  # where positions 0 .. its own lie, of all tokens one behind the other
    edges: Tensor  # (B + 1,) where each begins in `slots`

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Slots (B, S), beyond a sequence's end any of its own, and where that is, for plain torch.

        Padding weighs 0, but 0 times another sequence's NaN would be NaN.
        """
        lengths = self.edges.diff()
        columns = torch.arange(int(lengths.max()))  # (S,)
        unseen = columns >= lengths[:, None]
        return self.slots[self.edges[:-1, None] + columns.masked_fill(unseen, 0)], unseen


class Layout:
    """A batch's rows as attention needs them: worked out once a forward, used by every layer."""

    def __init__(self, batch: Batch, cache: LatentCache | None) -> None:
        lengths = [end - start for start, end in zip(batch.edges, batch.edges[1:], strict=False)]
        self.sequences, self.longest = len(lengths), max(lengths)
        self.even = len(batch.ids) == self.sequences * self.longest
        self.decode: Decode | None = None
        self.chunks: list[Chunk] = []
        self.positions = 0  # that a table of angles must hold, through a cache
        self._cache_rows = 0 if cache is None else cache.slots.shape[1]
        if cache is not None:
            self._place_in_cache(batch, cache.page_tokens)
        elif not self.even:
            starts = torch.tensor(batch.edges[:-1]).repeat_interleave(torch.tensor(lengths))
            base = torch.arange(self.sequences).repeat_interleave(torch.tensor(lengths)) * self.longest
            self.padded_rows = base + torch.arange(len(batch.ids)) - starts  # (T,) row of each token when padded

    def pad(self, x: Tensor) -> Tensor:
        """(T, H, n) -> (B, L, H, n), zeros behind the shorter sequences."""
        if not self.even:
            x = x.new_zeros(self.sequences * self.longest, *x.shape[1:]).index_copy(0, self.padded_rows, x)
        return x.view(self.sequences, self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """(B, L, H, n) -> (T, H, n)."""
        x = x.flatten(0, 1)
        return x if self.even else x[self.padded_rows]

    @cached_property
    def rows(self) -> Rows:
        """As native steps read it."""
        none = np.empty(0, np.int64)
        decode, seen = self.decode, [chunk.read_slots.numpy() for chunk in self.chunks]
        begin, chunks = 0, list[tuple[int, int, int, int]]()
        for chunk, slots in zip(self.chunks, seen, strict=True):
            chunks.append((chunk.rows.start, chunk.rows.stop - chunk.rows.start, begin, len(slots)))
            begin += len(slots)
        return Rows(
            self.write_slots.numpy(),
            decoding=none if decode is None else decode.rows.numpy(),
            slots=none if decode is None else decode.slots.numpy(),
            edges=np.zeros(1, np.int64) if decode is None else decode.edges.numpy(),
            chunks=np.array(chunks, np.int64).reshape(-1, 4),
            chunk_slots=np.concatenate(seen) if seen else none,
            cache_rows=self._cache_rows,
        )

    def _place_in_cache(self, batch: Batch, page_tokens: int) -> None:
        """In numpy: for every sequence of a step, a handful of torch's small operations cost more than a layer does."""
        pages = np.fromiter(chain.from_iterable(batch.pages), np.int64)
        every = (pages[:, None] * page_tokens + np.arange(page_tokens)).ravel()  # slots of all pages of all sequences
        positions: NDArray[np.int64] = batch.positions.numpy()
        writes: list[NDArray[np.int64]] = []
        rows: list[int] = []
        seen: list[NDArray[np.int64]] = []  # by each of `rows`
        first = 0
        for index, (start, end) in enumerate(pairwise(batch.edges)):
            past = int(positions[start])
            self.positions = max(self.positions, past + end - start)
            slots = every[first : first + past + end - start]
            first += len(batch.pages[index]) * page_tokens
            writes.append(slots[past:])
            if end - start == 1 if batch.generated is None else batch.generated[index]:
                rows += range(start, end)
                seen += [slots[: past + 1 + row] for row in range(end - start)]
            else:
                self.chunks.append(Chunk(slice(start, end), past, torch.from_numpy(slots)))
        self.write_slots = torch.from_numpy(np.concatenate(writes))  # (T,)
        if rows:
            self.decode = Decode(
                rows=torch.tensor(rows),
                slots=torch.from_numpy(np.concatenate(seen)),
                edges=torch.tensor([0, *map(len, seen)]).cumsum(0),
            )
