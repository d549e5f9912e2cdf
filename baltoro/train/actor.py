"""The engine that draws rollouts, in the trainer's own process: weights reach it without a copy through disk.

float32          the engine runs the trainer's parameters themselves; log-probabilities agree to float32's rounding
bf16, fp8, ...   it runs a packed copy on the native fast path, packed again in place after every update; they
                 differ by what the format rounds, and what was drawn has the engine's own
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self, cast

import torch

from baltoro.engine.config import EngineConfig
from baltoro.engine.engine import Engine
from baltoro.kernels.formats import Format
from baltoro.model.mirror import mirror, refresh
from baltoro.model.transformer import Transformer
from baltoro.train import rollouts
from baltoro.train.rl_recipe import FLOAT32, RLRecipe
from baltoro.train.rollouts import Group

STUCK_AFTER_S = 86_400.0  # a trainer that was paused for an hour has not failed


class Actor:
    """Used as a context. While it draws, nobody else runs the model."""

    def __init__(self, model: Transformer, recipe: RLRecipe) -> None:
        self._model, self._seed = model, recipe.seed
        self._twin = None
        if recipe.rollout_format != FLOAT32:
            self._twin = mirror(model, cast("Format", recipe.rollout_format))
        config = EngineConfig(
            cache_bytes=recipe.cache_mb * 2**20,
            cache_dtype=torch.bfloat16 if self._twin else torch.float32,
            max_running=recipe.max_running,
            stuck_after_s=STUCK_AFTER_S,
        )
        self.engine = Engine(self._twin or model, config)

    def draw(self, groups: Sequence[Group], *, temperature: float, allowance: int) -> None:
        """See rollouts.run."""
        trained_in, self._model.dtype = self._model.dtype, torch.float32
        try:
            rollouts.run(
                self.engine, groups, temperature=temperature, allowance=allowance, seed=self._seed
            )  # fmt: skip
        finally:
            self._model.dtype = trained_in

    def refresh(self) -> None:
        """The parameters have changed: what is drawn next is drawn by the new ones."""
        if self._twin is not None:
            refresh(self._twin, self._model)
        self.engine.forget_prefixes()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop(drain=False)
