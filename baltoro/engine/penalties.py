"""Logits changed for single ids: bias, and penalties for ids that occurred.

A row of K2's has 163,840 logits; only those of ids that are named or occurred are touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baltoro.engine.request import SamplingParams


class Penalties:
    """What one sequence's logits are changed by. It follows the sequence: a pure function of prompt and output.

    Sources: CTRL, arXiv:1909.05858, section 4.1 (repetition); OpenAI's API reference (presence, frequency); order and
    reach as in vLLM: repetition counts the prompt too, the other two only what was generated.
    """

    def __init__(self, sampling: SamplingParams, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float64)
        self._ids = np.unique(np.asarray(prompt, np.int64))  # that occurred; longer than what is used, to grow
        if sampling.repetition_penalty == 1.0:
            self._ids = self._ids[:0]  # the prompt does not count
        self._counts = np.zeros(len(self._ids), np.float64)  # in the output
        self._places = {token: place for place, token in enumerate(self._ids.tolist())}

    @classmethod
    def of(cls, sampling: SamplingParams, prompt: Sequence[int]) -> Penalties | None:
        """None: nothing is changed."""
        neutral = (
            sampling.repetition_penalty == 1.0
            and sampling.presence_penalty == sampling.frequency_penalty == 0.0
            and not sampling.logit_bias
        )
        return None if neutral else cls(sampling, prompt)

    def advance(self, token: int) -> None:
        """The output goes on with `token`."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            room = max(64, place)
            self._ids = np.concatenate([self._ids, np.zeros(room, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, np.float64)])
        self._ids[place] = token
        self._counts[place] += 1.0

    def apply(self, row: NDArray[np.float32]) -> None:
        """Change the logits `row` (V,) in place."""
        row[self._bias_ids] = row[self._bias_ids] + self._bias
        used = len(self._places)
        ids, counts = self._ids[:used], self._counts[:used]
        repetition = self._sampling.repetition_penalty
        logits = row[ids].astype(np.float64)
        logits = np.where(logits > 0.0, logits / repetition, logits * repetition)
        logits -= self._sampling.frequency_penalty * counts + self._sampling.presence_penalty * (counts > 0.0)
        row[ids] = logits
