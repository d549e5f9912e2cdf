"""A model whose next token is a hash of all it has seen, read back from the cache's pages.

It writes ids and positions where the batch says and reads the whole history from there, so a wrong page,
a wrong position or a token lost in a preemption changes everything that follows. `expected` computes the
same from a plain list: the truth that every engine test compares with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.engine import sampler
from baltoro.engine.config import EngineConfig
from baltoro.engine.penalties import Penalties
from baltoro.engine.request import FinishReason, Request, SamplingParams, Step
from baltoro.model.batch import Batch, LatentCache, Layout

VOCAB = 50
CONFIG = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=8,
    intermediate_size=8,
    moe_intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    q_lora_rank=None,
    kv_lora_rank=2,
    qk_nope_head_dim=2,
    qk_rope_head_dim=2,
    v_head_dim=2,
    n_routed_experts=2,
    n_shared_experts=1,
    num_experts_per_tok=1,
    first_k_dense_replace=1,
    max_position_embeddings=1000,
    rope_theta=10000.0,
)
PAGE_TOKENS = 4


def engine_config(num_pages: int = 64, **changes: object) -> EngineConfig:
    """A cache of `num_pages` pages of 4 positions; float32 holds every id exactly."""
    fields: dict[str, object] = {
        "cache_bytes": num_pages * PAGE_TOKENS * 4 * 4,
        "cache_dtype": torch.float32,
        "page_tokens": PAGE_TOKENS,
    }
    return EngineConfig(**(fields | changes))  # type: ignore[arg-type]


def logits_after(history: list[int]) -> NDArray[np.float32]:
    """(VOCAB,) numbers in 0..4 that depend on every id and its place."""
    state = 7
    for token in history:
        state = (state * 1_000_003 + token + 1) % (1 << 61)
    words = np.arange(1, VOCAB + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(state)
    words = (words ^ (words >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return (4.0 * (words >> np.uint64(40)).astype(np.float64) / (1 << 24)).astype(np.float32)


class HashModel:
    """Stands in for the Transformer. `before` is called at the start of every forward, and may raise or wait."""

    def __init__(self, before: Callable[[Batch], None] | None = None) -> None:
        self.config = CONFIG
        self.store = None
        self.before = before
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch, cache: LatentCache, *, layout: Layout) -> Tensor:
        self.batches.append(batch)
        if self.before is not None:
            self.before(batch)
        slots = cache.latents.view(-1, cache.latents.shape[-1])  # one layer: (pages * page_tokens, C + R)
        rows: list[NDArray[np.float32]] = []
        wanted = range(len(batch.ids)) if batch.logit_rows is None else batch.logit_rows.tolist()
        ids, positions = batch.ids.tolist(), batch.positions.tolist()
        places: list[list[int]] = []  # per row, the slots of its history
        for owned, start, end in zip(batch.pages, batch.edges, batch.edges[1:], strict=False):
            assert end > start
            for row in range(start, end):
                place = [owned[p // cache.page_tokens] * cache.page_tokens + p % cache.page_tokens
                         for p in range(positions[row] + 1)]  # fmt: skip
                slots[place[-1], 0] = ids[row]
                slots[place[-1], 1] = positions[row]
                places.append(place)
        for row in wanted:
            seen = slots[places[row]]
            assert seen[:, 1].tolist() == list(range(positions[row] + 1)), "a page holds other positions"
            rows.append(logits_after([int(token) for token in seen[:, 0]]))
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, VOCAB)


class Listener:
    """A sink that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.ended = threading.Event()

    def __call__(self, step: Step) -> None:
        assert not self.ended.is_set(), "a step behind the end"
        self.steps.append(step)
        if step.finish is not None:
            self.ended.set()

    @property
    def tokens(self) -> list[int]:
        return [step.token for step in self.steps if step.token is not None]

    @property
    def finish(self) -> FinishReason | None:
        return self.steps[-1].finish if self.steps else None

    def wait(self, timeout_s: float = 20.0) -> Listener:
        assert self.ended.wait(timeout_s), f"no end within {timeout_s} s, {len(self.steps)} steps so far"
        return self


def request(
    prompt: list[int],
    *,
    constraint: object = None,
    priority: int = 0,
    deadline: float | None = None,
    **sampling: object,
) -> tuple[Request, Listener]:
    listener = Listener()
    params = SamplingParams(**({"max_tokens": 8} | sampling))  # type: ignore[arg-type]
    asked = Request(
        prompt=prompt,
        sampling=params,
        sink=listener,
        constraint=constraint,
        priority=priority,
        deadline=deadline,  # type: ignore[arg-type]
    )
    return asked, listener


def expected(prompt: list[int], sampling: SamplingParams, *, max_context: int = 1000) -> list[int]:
    """What a request must say: the history in a plain list, one token at a time, no engine."""
    history = list(prompt)
    chooser = sampler.Sampler(VOCAB)
    while True:
        index = len(history) - len(prompt)
        draw = sampler.uniform(sampling.seed or 0, index)
        penalties = Penalties(sampling, prompt)
        for token in history[len(prompt) :]:
            penalties.advance(token)
        avoid = sampling.stop_token_ids if index < sampling.min_tokens else ()
        token = chooser.choose(logits_after(history), sampling, mask=None, draw=draw, penalties=penalties, avoid=avoid)
        history.append(token)
        if token in sampling.stop_token_ids or index + 1 == sampling.max_tokens or len(history) == max_context:
            return history[len(prompt) :]
