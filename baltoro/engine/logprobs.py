"""How likely the model took a token to be, and what it took to be likelier.

One row at a time: a prompt's logits are (T, V) already, and nothing of that size is made a second time.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from baltoro.engine.request import Scored
from baltoro.engine.sampler import largest
from baltoro.engine.sequence import Chunk
from baltoro.errors import EngineError


def score(logits: NDArray[np.float32], token: int, num_top: int, temperature: float = 1.0) -> Scored:
    """`token` among the `num_top` likeliest of `logits` (V,), by the log-softmax of logits / temperature.

    Exponentials are float32, their sum float64: about 1e-7 of an error, whatever the vocabulary.
    """
    best = float(logits.max())
    if not math.isfinite(best):  # max keeps a NaN
        raise EngineError(f"the largest logit is {best}, expected a finite number", hint="the model's weights overflow")
    if temperature != 1.0:
        logits, best = logits / np.float32(temperature), best / temperature
    norm = best + math.log(np.exp(logits - np.float32(best)).sum(dtype=np.float64))
    ids = {token, *(largest(logits, min(num_top, len(logits))).tolist() if num_top else ())}
    top = sorted(((each, float(logits[each]) - norm) for each in ids), key=lambda pair: (-pair[1], pair[0]))
    return Scored(token, float(logits[token]) - norm, tuple(top))


def prompt_rows(chunk: Chunk) -> range:
    """Positions of the chunk after which a prompt's token is to be scored: all but its last, each once."""
    request = chunk.sequence.request
    if request.prompt_logprobs is None:
        return range(0)
    rows = range(max(chunk.start, chunk.sequence.scored), min(chunk.stop, len(request.prompt) - 1))
    assert not rows or rows.start == chunk.sequence.scored, "a prompt to be scored was not computed from its beginning"
    return rows
