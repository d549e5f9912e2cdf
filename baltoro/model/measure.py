"""How fast Kimi K2's layers run on this machine, without its checkpoint: random weights, the model's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError
from baltoro.kernels import memory
from baltoro.kernels.formats import Format
from baltoro.kernels.slab import Slab
from baltoro.kernels.targets import chosen_target
from baltoro.model import slices
from baltoro.model.batch import LatentCache
from baltoro.model.bench import CHUNK_TOKENS, Bench
from baltoro.model.rows import Row, compared

PAGE_TOKENS = 64
VOCABULARY = 8192  # rows of embedding and head that are made: the head's time is scaled to all of them
EXPERTS = 48  # made of each mixture unless a budget is given
SMALLEST_SCRATCH = 2**28  # bytes that are read for the roof


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is measured, and what it may cost."""

    contexts: tuple[int, ...] = (4096,)
    batches: tuple[int, ...] = ()  # beside 1
    prompts: tuple[int, ...] = (512,)
    memory: int | None = None  # bytes for weights, cache and what is read for the roof; None: half of what is free
    seconds: float = 2.0  # of steps for each size


def layers(
    config: ModelConfig, format: Format, wanted: Wanted, *, progress: Callable[[str], None], target: str | None = None
) -> Iterator[tuple[Row, ...]]:
    """For each size the rows of a dense layer, a mixture and the head: decode, batches, prefill; the best of the steps.

    Raises BaltoroError where native kernels are missing or the memory is too little.
    """
    target = target or chosen_target()
    if target == "torch":
        raise BaltoroError("there are no native kernels to measure", hint="install a C++ compiler, then baltoro again")
    for context in (*wanted.contexts, *wanted.prompts):
        if context > config.max_position_embeddings:
            raise BaltoroError(
                f"a context of {context} tokens is beyond the model's {config.max_position_embeddings}",
                hint="name a shorter --context or --tokens",
            )
    dense = sum(not config.is_moe(layer) for layer in range(config.num_hidden_layers))
    mixtures = config.num_hidden_layers - dense
    short = slices.shorten(config, dense=min(dense, 1), mixtures=min(mixtures, 1), vocabulary=VOCABULARY)
    experts = experts_that_fit(short, format, wanted)
    made = slices.nbytes(short, format, experts=experts)
    progress(f"{format}: making {made / 1e9:.1f} GB of random weights, {experts} of {config.n_routed_experts} experts")
    scratch = Slab(scratch_bytes()).cut((scratch_bytes(),), torch.uint8).fill_(1)
    cache = random_cache(short, num_pages=cache_pages(wanted))
    bench = Bench(config, slices.make(short, format, experts=experts), format, cache, scratch, target)
    with torch.inference_mode():
        for context in wanted.contexts:
            alone: tuple[Row, ...] = ()
            for tokens in (1, *wanted.batches):
                progress(f"{format}: decode, {tokens} at context {context:,}")
                rows = bench.decode(tokens, context, wanted.seconds)
                if alone:
                    rows = tuple(map(compared, rows, alone))
                alone = alone or rows
                yield rows
        for tokens in wanted.prompts:
            progress(f"{format}: prefill, {tokens:,} tokens")
            yield bench.prefill(tokens, wanted.seconds)


def experts_that_fit(short: ModelConfig, format: Format, wanted: Wanted) -> int:
    """How many experts of a mixture a budget has room for."""
    free = memory.free()
    budget = free // 2 if wanted.memory is None else wanted.memory
    none, one = (slices.nbytes(short, format, experts=experts) for experts in (0, 1))
    cache = cache_pages(wanted) * PAGE_TOKENS * counts.cache_bytes_per_token(short)
    fixed = none + cache + scratch_bytes() + work_bytes(short, wanted)
    fit = (budget - fixed) // max(one - none, 1)
    least = min(2 * short.num_experts_per_tok, short.n_routed_experts)  # fewer would not change from token to token
    if budget > free or fit < least:
        raise BaltoroError(
            f"{format} layers take {(fixed + least * (one - none)) / 1e9:.1f} GB with {least} experts, "
            f"a cache of {cache / 1e9:.1f} GB and {scratch_bytes() / 1e9:.1f} GB to empty the CPU's caches; "
            f"{budget / 1e9:.1f} GB were to be used and {free / 1e9:.1f} GB are free",
            hint="raise --memory, or measure a smaller --format, --context, --batch or --tokens",
        )
    return min(fit, short.n_routed_experts, *(() if wanted.memory is not None else (max(EXPERTS, least),)))


def scratch_bytes() -> int:
    return max(2 * memory.last_cache(), SMALLEST_SCRATCH)


def cache_pages(wanted: Wanted) -> int:
    decoded = [batch * -(-context // PAGE_TOKENS) for context in wanted.contexts for batch in (1, *wanted.batches)]
    return max([*decoded, *(-(-tokens // PAGE_TOKENS) for tokens in wanted.prompts)], default=0)


def work_bytes(config: ModelConfig, wanted: Wanted) -> int:
    """What a prompt's last chunk takes at once, at most: prepared latents, keys and values of heads, wide layers."""
    longest = max(wanted.prompts, default=0)
    heads = min(config.num_attention_heads, 4 * torch.get_num_threads())  # see csrc/attention.cpp
    keys = config.kv_lora_rank + heads * (config.qk_head_dim + config.v_head_dim)
    return longest * keys * 2 + min(longest, CHUNK_TOKENS) * max(config.intermediate_size, config.hidden_size) * 16


def random_cache(config: ModelConfig, *, num_pages: int) -> LatentCache:
    """Full of numbers: zeros that were never written would all be one page of memory."""
    cache = LatentCache(config, num_pages=num_pages, page_tokens=PAGE_TOKENS)
    numbers = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16()
    for piece in torch.split(cache.latents.view(-1), len(numbers)):
        piece.copy_(numbers[: len(piece)])
    return cache
