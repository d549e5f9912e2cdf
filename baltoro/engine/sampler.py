"""Logits to one token: mask, temperature, top-k, top-p, draw.

Every row is chosen alone, in numpy on one thread, and its randomness is a pure function of the
request's seed and the token's index. So the same seed gives the same tokens whatever else runs,
after preemption, and with any number of threads.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from baltoro.engine.request import SamplingParams
from baltoro.errors import EngineError

_WORD = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits, for the token at `index` of a request with `seed`.

    Source: SplitMix64 (Steele, Lea, Flood 2014); the seed is mixed first so that neighbours do not share a stream.
    """
    return (_mix(_mix(seed) + (index + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def _mix(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def choose(
    logits: NDArray[np.float32], sampling: SamplingParams, *, mask: NDArray[np.bool_] | None, draw: float
) -> int:
    """The token for one row of `logits` (V,). `draw` in [0, 1) settles a sampled one; ties go to the lowest id."""
    if mask is None:
        ids = None
        best = int(logits.argmax())
        top = float(logits[best])
    else:
        ids = _allowed(mask, logits)
        logits = logits[ids]
        place = int(logits.argmax())
        best, top = ids.item(place), float(logits[place])
    if not math.isfinite(top):  # argmax stops at a NaN, so one look finds NaN, +inf and "nothing but -inf"
        raise EngineError(f"the largest logit is {top}, expected a finite number", hint="the model's weights overflow")
    if sampling.temperature == 0.0 or sampling.top_k == 1:
        return best

    weights = np.exp((logits.astype(np.float64) - top) / sampling.temperature)  # float64: any temperature > 0 works
    places = _kept(weights, sampling)
    if places is not None:
        weights = weights[places]
        ids = places if ids is None else ids[places]
    drawn = _draw(weights, draw)
    return drawn if ids is None else ids.item(drawn)


def _allowed(mask: NDArray[np.bool_], logits: NDArray[np.float32]) -> NDArray[np.intp]:
    if mask.shape != logits.shape:
        raise EngineError(f"the constraint's mask has shape {mask.shape}, expected {logits.shape}")
    ids = np.flatnonzero(mask)
    if ids.size == 0:
        raise EngineError("the constraint allows no token at all", hint="its grammar has a dead end")
    return ids


def _kept(weights: NDArray[np.float64], sampling: SamplingParams) -> NDArray[np.intp] | None:
    """Places that top-k and top-p keep, rising; top-p counts what top-k kept. None: all."""
    places: NDArray[np.intp] | None = None
    if 0 < sampling.top_k < len(weights):
        places = _largest(weights, sampling.top_k, float(np.partition(weights, -sampling.top_k)[-sampling.top_k]))
        weights = weights[places]
    if sampling.top_p < 1.0:
        total = float(weights.sum())
        # What lies below (1 - top_p) / n adds up to less than 1 - top_p, so the nucleus is among the rest, and only
        # the rest is sorted: a few tokens instead of 163,840. Half of it, to be safe from rounding.
        inside = np.flatnonzero(weights >= total * (1.0 - sampling.top_p) / (2 * len(weights)))
        weights = weights[inside]
        falling = np.sort(weights)[::-1]
        count = int(falling.cumsum().searchsorted(sampling.top_p * total, side="left")) + 1
        if count < len(weights):
            inside = inside[_largest(weights, count, float(falling[count - 1]))]
        places = inside if places is None else places[inside]
    return places


def _largest(values: NDArray[np.float64], count: int, smallest: float) -> NDArray[np.intp]:
    """Where the `count` largest values are, rising, the first ones among equals. `smallest` is the least of them."""
    above, equal = np.flatnonzero(values > smallest), np.flatnonzero(values == smallest)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _draw(weights: NDArray[np.float64], draw: float) -> int:
    """The place where the running sum passes `draw` of the total; never one of weight 0.

    `draw` is at most 1 - 2^-53, so draw * total is below the total even when rounded, and some sum is above it.
    """
    sums = weights.cumsum()
    return int(sums.searchsorted(draw * float(sums[-1]), side="right"))
