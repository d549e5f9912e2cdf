"""What an engine may spend, and how long a context that allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine may spend. Only `cache_dtype` can change the text that comes out."""

    cache_bytes: int  # latent cache; Kimi K2 in bf16 costs 70,272 bytes a token
    cache_dtype: torch.dtype = torch.bfloat16
    page_tokens: int = 64  # positions in a page; a sequence wastes half a page on average
    max_running: int = 32  # sequences decoded together
    max_waiting: int | None = None  # requests in the queue; one more is refused with QueueFull. None: no limit
    prefill_tokens: int = 2048  # prompt tokens taken into one step; bounds how long a decoding sequence waits
    prefix_cache: bool = True  # prompts that begin alike share pages, and what others computed is used again
    max_context: int | None = None  # prompt and answer, tokens; None: what the model and the cache allow
    speculate: bool = True  # guess what comes next where grammar or text tell; what is said stays the same
    max_restarts: int = 3  # of an engine that failed, within ten minutes; then it is dead
    restart_after_s: float = 1.0  # before the first of these, twice as long before each other
    stuck_after_s: float = 600.0  # a step that lasts longer never ends, as far as we know: the engine is dead

    def __post_init__(self) -> None:
        for name in (
            "cache_bytes",
            "page_tokens",
            "max_running",
            "max_waiting",
            "prefill_tokens",
            "max_context",
            "stuck_after_s",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise EngineError(f"EngineConfig.{name} is {value}, expected a positive number")
        for name in ("max_restarts", "restart_after_s"):
            if getattr(self, name) < 0:
                raise EngineError(f"EngineConfig.{name} is {getattr(self, name)}, expected at least 0")


def page_bytes(model: ModelConfig, config: EngineConfig) -> int:
    """Bytes of one page, over all layers."""
    return config.page_tokens * counts.cache_bytes_per_token(model, value_bytes=config.cache_dtype.itemsize)


def max_context(model: ModelConfig, config: EngineConfig) -> int:
    """Tokens. A sequence must fit the cache alone, or it could never be admitted."""
    fits = config.cache_bytes // page_bytes(model, config) * config.page_tokens
    wanted = config.max_context
    if fits < 2:
        raise EngineError(
            f"cache_bytes is {config.cache_bytes}, expected at least {page_bytes(model, config)} for one page"
        )
    if wanted is None:
        return min(fits, model.max_position_embeddings)
    if wanted > model.max_position_embeddings:
        raise EngineError(
            f"max_context is {wanted}, expected at most the model's {model.max_position_embeddings} positions"
        )
    if wanted > fits:
        needed = -(-wanted // config.page_tokens) * page_bytes(model, config)
        raise EngineError(
            f"a context of {wanted} tokens does not fit the cache, which holds {fits}",
            hint=f"give at least {needed} cache_bytes, or a smaller max_context",
        )
    return wanted
