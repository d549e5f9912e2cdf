"""Logits to one token: bias and penalties, mask, temperature, min-p, top-k, top-p, draw.

Every row is chosen by itself, in numpy on one thread, and its randomness is a pure function of the
request's seed and the token's index. So the same seed gives the same tokens whatever else runs,
after preemption, and with any number of threads. Short rows from which nothing is taken away are
chosen several at once: calls of numpy cost more than their arithmetic.

A row of K2's has 163,840 logits, so nothing here sorts one: blocks' maxima tell where the largest
are, blocks' sums where a draw falls.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baltoro.engine.penalties import Penalties
from baltoro.engine.request import SamplingParams
from baltoro.errors import EngineError

_WORD = (1 << 64) - 1
_BLOCK = 512  # about the root of K2's vocabulary
_AT_ONCE = 2**17  # numbers in rows that are chosen together: they stay in a core's own cache
_COLDEST = 1e-30  # below it float32 would divide by what some CPUs flush to 0; colder than any two logits' difference


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits, for the token at `index` of a request with `seed`.

    Source: SplitMix64 (Steele, Lea, Flood 2014); the seed is mixed first so that neighbours do not share a stream.
    """
    return (_mix(_mix(seed) + (index + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def choice_seed(seed: int, choice: int) -> int:
    """The seed of an answer's choice 0, 1, ...: the first has the request's own, the others 64 bits made of both."""
    return seed if choice == 0 else _mix(_mix(_mix(seed) ^ 0xD1B54A32D192ED03) + choice)


def _mix(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def is_plain(sampling: SamplingParams) -> bool:
    """Whether every token may come, by the model's own probabilities at some temperature."""
    return sampling.temperature == 0.0 or (sampling.top_k == 0 and sampling.min_p == 0.0 and sampling.top_p == 1.0)


class PlainRow(NamedTuple):
    """What a row of logits is chosen with."""

    row: int
    mask: NDArray[np.bool_] | None  # True where a token is allowed; None: everywhere
    temperature: float  # 0: the likeliest
    draw: float  # as for `choose`


class Sampler:
    """Chooses tokens for one thread: it keeps room for a few rows: new memory costs more than the arithmetic."""

    def __init__(self, vocab_size: int) -> None:
        self._room = np.empty(vocab_size, np.float32)
        self._rooms = np.empty((max(1, _AT_ONCE // vocab_size), vocab_size), np.float32)

    @property
    def most(self) -> int:
        """Rows that are chosen together, at most."""
        return len(self._rooms)

    def choose_plain(self, logits: NDArray[np.float32], wanted: Sequence[PlainRow]) -> list[int | None]:
        """`choose` for some rows of `logits` (., V), where `is_plain` holds and nothing but a mask changes them.

        None stands for a row of which `choose` knows what is wrong.
        """
        chosen: list[int | None] = []
        for first in range(0, len(wanted), len(self._rooms)):
            chosen += self._choose_some(logits, wanted[first : first + len(self._rooms)])
        return chosen

    def _choose_some(self, logits: NDArray[np.float32], wanted: Sequence[PlainRow]) -> list[int | None]:
        room = self._rooms[: len(wanted)]
        np.take(logits, [each.row for each in wanted], 0, out=room)
        for row, each in zip(room, wanted, strict=True):
            if each.mask is not None and each.mask.shape == row.shape:
                np.copyto(row, np.float32(-np.inf), where=~each.mask)
            elif each.mask is not None:
                row[0] = np.nan  # for `choose`, which says what was expected
        best = room.argmax(1)
        tops = room[np.arange(len(room)), best]
        finite = np.isfinite(tops)
        chosen: list[int | None] = [
            each if good else None for each, good in zip(best.tolist(), finite.tolist(), strict=True)
        ]
        temperatures = np.array([each.temperature for each in wanted])
        drawn = np.flatnonzero((temperatures > 0.0) & finite)
        if len(drawn):
            if len(drawn) < len(room):
                room = room[drawn]
            room -= tops[drawn, None]
            _exponentials(room, temperatures[drawn, None])
            draws = np.array([wanted[row].draw for row in drawn.tolist()])
            for row, token in zip(drawn.tolist(), _draws(room.astype(np.float64), draws), strict=True):
                chosen[row] = token
        return chosen

    def choose(
        self,
        logits: NDArray[np.float32],
        sampling: SamplingParams,
        *,
        mask: NDArray[np.bool_] | None,
        draw: float,
        penalties: Penalties | None = None,
        avoid: Collection[int] = (),
    ) -> int:
        """The token for one row of `logits` (V,), which stays as it is. Ties go to the lowest id.

        draw: in [0, 1), settles a sampled one
        avoid: ids that come only where `mask` allows no others
        """
        row = self._allowed(logits, mask, penalties, avoid)
        best = int(row.argmax())
        top = float(row[best])
        if not math.isfinite(top):  # argmax stops at a NaN, so one look finds NaN, +inf and "nothing but -inf"
            if mask is not None and not mask.any():
                raise EngineError("the constraint allows no token at all", hint="its grammar has a dead end")
            raise EngineError(
                f"the largest logit is {top}, expected a finite number", hint="the model's weights overflow"
            )
        if sampling.temperature == 0.0 or sampling.top_k == 1:
            return best

        ids = _ranked(row, top, sampling)
        weights = self._weights(row, top, sampling.temperature) if ids is None else _few(row[ids], top, sampling)
        if sampling.top_p < 1.0:
            places = _nucleus(weights, sampling.top_p)
            weights = weights[places]
            ids = places if ids is None else ids[places]
        drawn = _draws(weights[None].astype(np.float64), np.array([draw]))[0]
        return drawn if ids is None else ids.item(drawn)

    def _allowed(
        self,
        logits: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
        penalties: Penalties | None,
        avoid: Collection[int],
    ) -> NDArray[np.float32]:
        """(V,) with -inf where nothing may come."""
        if mask is None and penalties is None and not avoid:
            return logits
        row = self._room
        np.copyto(row, logits)
        if penalties is not None:
            penalties.apply(row)
        if mask is not None:
            if mask.shape != logits.shape:
                raise EngineError(f"the constraint's mask has shape {mask.shape}, expected {logits.shape}")
            np.copyto(row, np.float32(-np.inf), where=~mask)
        if avoid:
            ids = list(avoid)
            kept = row[ids]
            row[ids] = -np.inf
            if row.max() == -np.inf:
                row[ids] = kept
        return row

    def _weights(self, row: NDArray[np.float32], top: float, temperature: float) -> NDArray[np.float32]:
        """(V,) probabilities up to one factor, the largest is 1. float32 is exact to 1e-7 of each."""
        np.subtract(row, np.float32(top), out=self._room)
        _exponentials(self._room, np.float64(temperature))
        return self._room


def _exponentials(falls: NDArray[np.float32], temperatures: NDArray[np.float64] | np.float64) -> None:
    """exp(falls / temperatures), in place. falls: how far each logit is below its row's largest"""
    with np.errstate(over="ignore"):  # to -inf, as it should
        np.divide(falls, np.maximum(temperatures, _COLDEST).astype(np.float32), out=falls)
    np.exp(falls, out=falls)


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Where the `count` largest of `values` are, rising, the first ones among equals. 1 <= count <= len(values)."""
    maxima = np.maximum.reduceat(values, np.arange(0, len(values), _BLOCK))
    places: NDArray[np.intp] | None = None
    if count <= len(maxima):  # so many blocks have one at least as large as the count-th of these
        places = np.flatnonzero(values >= np.partition(maxima, -count)[-count])
        values = values[places]
    smallest = np.partition(values, -count)[-count]
    above, equal = np.flatnonzero(values > smallest), np.flatnonzero(values == smallest)
    found = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    return found if places is None else places[found]


def _ranked(row: NDArray[np.float32], top: float, sampling: SamplingParams) -> NDArray[np.intp] | None:
    """Ids that top-k and min-p keep, rising; None: all. Both look at ranks and ratios, so logits tell as well."""
    ids = largest(row, sampling.top_k) if 0 < sampling.top_k < len(row) else None
    if sampling.min_p > 0.0:
        least = top + sampling.temperature * math.log(sampling.min_p)
        ids = np.flatnonzero(row >= least) if ids is None else ids[row[ids] >= least]
    return ids


def _few(logits: NDArray[np.float32], top: float, sampling: SamplingParams) -> NDArray[np.float64]:
    return np.exp((logits.astype(np.float64) - top) / max(sampling.temperature, _COLDEST))


def _nucleus(weights: NDArray[np.floating], top_p: float) -> NDArray[np.intp]:
    """Places of the fewest weights that reach `top_p` of the sum, rising."""
    total = float(weights.sum(dtype=np.float64))
    # What lies below (1 - top_p) / n adds up to less than 1 - top_p, so the nucleus is among the rest: mostly a few
    # tokens instead of 163,840. Half of it, to be safe from rounding.
    inside = np.flatnonzero(weights >= total * (1.0 - top_p) / (2 * len(weights)))
    weights = weights[inside]
    count, smallest = _fewest(weights, top_p * total)
    above, equal = np.flatnonzero(weights > smallest), np.flatnonzero(weights == smallest)
    return inside[np.sort(np.concatenate([above, equal[: count - len(above)]]))]


def _fewest(values: NDArray[np.floating], wanted: float) -> tuple[int, float]:
    """How many of the largest reach `wanted` in sum, all if none do, and the least of these.

    A flat distribution's nucleus has 10,000s of tokens. So halves are set aside, by a pivot, that belong to it or not.
    """
    count = 0
    while len(values) > 4 * _BLOCK:
        pivot = np.sort(values[:: len(values) // 64])[32]
        larger = values[values > pivot]
        reached = float(larger.sum(dtype=np.float64))
        rest = larger if reached >= wanted else values[values <= pivot]
        if len(rest) == len(values):  # half of the values are the largest one
            break
        if reached < wanted:
            wanted -= reached
            count += len(larger)
        values = rest
    falling = np.sort(values)[::-1]
    last = min(int(falling.cumsum(dtype=np.float64).searchsorted(wanted, side="left")), len(falling) - 1)
    return count + last + 1, float(falling[last])


def _draws(weights: NDArray[np.float64], draws: NDArray[np.float64]) -> list[int]:
    """For each row the place where the running sum passes `draw` of the total; never one of weight 0.

    A draw is at most 1 - 2^-53, so draw * total is below the total even when rounded, and some block's end is above it.
    float64 comes in: a sum that numpy has to convert for is cut anywhere, and its bits depend on the other rows.
    """
    rows, width = np.arange(len(weights)), weights.shape[1]
    block = min(_BLOCK, width)
    if width % block:
        weights = np.pad(weights, ((0, 0), (0, -width % block)))
    blocks = weights.reshape(len(weights), -1, block)
    ends = blocks.sum(2).cumsum(1)
    wanted = draws * ends[:, -1]
    chosen = (ends <= wanted[:, None]).sum(1)
    before = np.where(chosen > 0, ends[rows, chosen - 1], 0.0)
    inside = blocks[rows, chosen]
    places = (inside.cumsum(1) <= (wanted - before)[:, None]).sum(1)
    last = (places == block).nonzero()[0]
    for row in last.tolist():  # this sum was rounded otherwise than the block's
        places[row] = np.flatnonzero(inside[row])[-1]
    return (chosen * block + places).tolist()
