"""One prompt and its answer through a model, timed: the same ids whether its experts are streamed or resident."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from baltoro.model.batch import Batch, LatentCache
from baltoro.model.bench import chunks_of
from baltoro.model.moe import MoE
from baltoro.model.transformer import Transformer
from baltoro.model.watch import Watch

PAGE_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where the seconds went: in one dense layer, in one mixture layer, in the head, and outside."""

    seconds: float  # all
    dense: float
    mixture: float
    head: float

    def outside(self, dense: int, mixtures: int) -> float:
        return max(0.0, self.seconds - dense * self.dense - mixtures * self.mixture - self.head)

    def over(self, steps: int) -> Parts:
        """Of one of so many steps."""
        return Parts(
            seconds=self.seconds / steps, dense=self.dense / steps, mixture=self.mixture / steps, head=self.head / steps
        )


class Session:
    def __init__(self, model: Transformer, *, tokens: int, answer: int) -> None:
        self.model, self.tokens = model, tokens
        self.seconds = 0.0
        self._pages = tuple(range(-(-(tokens + answer) // PAGE_TOKENS)))
        self._cache = LatentCache(model.config, num_pages=len(self._pages), page_tokens=PAGE_TOKENS)
        # Made-up answers too: what a random model would say itself soon repeats, and with it the experts
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(0, model.config.vocab_size, (tokens + answer,), generator=generator)
        self._layers = [isinstance(layer.get_submodule("mlp"), MoE) for layer in model.model.layers]
        names = {f"layer {index}": layer for index, layer in enumerate(model.model.layers)}
        model.by_layer = True  # hooks are to see each
        self._watch = Watch(names | {"head": model.lm_head})

    def prefill(self) -> float:
        """The prompt, chunk after chunk; the seconds until there are logits for the first token."""
        return sum(self._forward(start, end) for start, end in chunks_of(self.tokens))

    def step(self, index: int) -> float:
        """The answer's nth token."""
        return self._forward(self.tokens + index, self.tokens + index + 1)

    def parts(self, *, waited: float = 0.0) -> Parts:
        """Since the last `clear`. waited: seconds in the mixtures that are not to be counted."""
        seconds = self._watch.seconds
        dense = [seconds.get(f"layer {index}", 0.0) for index, moe in enumerate(self._layers) if not moe]
        mixtures = [seconds.get(f"layer {index}", 0.0) for index, moe in enumerate(self._layers) if moe]
        return Parts(
            seconds=self.seconds - waited,
            dense=sum(dense) / max(1, len(dense)),
            mixture=(sum(mixtures) - waited) / max(1, len(mixtures)),
            head=seconds.get("head", 0.0),
        )

    def clear(self) -> None:
        self._watch.clear()
        self.seconds = 0.0

    def _forward(self, start: int, end: int) -> float:
        ids: Tensor = self._ids[start:end]
        last = end - start - 1 if end >= self.tokens else None
        batch = Batch(
            ids=ids,
            positions=torch.arange(start, end),
            edges=(0, end - start),
            pages=(self._pages,),
            logit_rows=torch.tensor([] if last is None else [last], dtype=torch.int64),
        )
        began = time.perf_counter()
        with torch.inference_mode():
            self.model(batch, self._cache)
        taken = time.perf_counter() - began
        self.seconds += taken
        return taken
