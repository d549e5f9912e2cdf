"""Held-out scores during training: the model as it is, greedy and unconstrained, on words it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from baltoro.chat.tokenizer import Tokenizer
from baltoro.engine.config import EngineConfig
from baltoro.engine.engine import Engine
from baltoro.eval.run import CACHE_BYTES, scores
from baltoro.eval.score import summary
from baltoro.eval.tasks import nano
from baltoro.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Callable on a model that is being trained. Picklable: training processes are handed one."""

    tokenizer: str  # directory of tiktoken.model
    examples: int  # a kind

    def __call__(self, model: Transformer) -> dict[str, Any]:
        """kind -> {"mean", "low", "high"} of right answers, and the parts of the verdict beside it."""
        tokenizer = Tokenizer.open(self.tokenizer)
        trained_in, model.dtype = model.dtype, torch.float32
        try:
            with Engine(model, EngineConfig(cache_bytes=CACHE_BYTES, cache_dtype=torch.float32)) as engine:
                found = scores(engine, tokenizer, nano.examples(self.examples), constrained=False)
        finally:
            model.dtype = trained_in
        table: dict[str, Any] = {}
        for kind, checks in summary(found).items():
            right = checks["right"]
            table[kind] = {"mean": round(right.share, 4), "low": round(right.low, 4), "high": round(right.high, 4)}
            table[kind] |= {name: round(share.share, 4) for name, share in checks.items() if name != "right"}
        return table
