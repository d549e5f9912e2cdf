"""How near latent attention comes to this machine's roofs: one token to a long context, and a prompt to itself.

Numbers are random. A decoded token's context lies elsewhere at each repetition, in more memory than any cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from baltoro.config import ModelConfig
from baltoro.kernels import attention, memory
from baltoro.kernels.measure import Row, best, peak, read_roof
from baltoro.kernels.slab import Slab

SMALLEST_CACHE = 2**28  # bytes
NUMBERS = 2**20  # random ones, repeated


def rows(
    config: ModelConfig, *, contexts: tuple[int, ...], prompts: tuple[int, ...], seconds: float, target: str
) -> Iterator[Row]:
    """mla_decode for each context, mla_prefill for each prompt; GB/s are of cached latents, or of keys and values."""
    peak_gflops, scale = peak("bf16", target), config.qk_head_dim**-0.5
    H, C, width = config.num_attention_heads, config.kv_lora_rank, config.kv_lora_rank + config.qk_rope_head_dim
    held = max(*contexts, max(2 * memory.last_cache(), SMALLEST_CACHE) // (2 * width)) if contexts else 0
    cache = Slab(held * width * 2).cut((held, width), torch.bfloat16)
    numbers = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0)).bfloat16()
    for piece in torch.split(cache.view(-1), NUMBERS):
        piece.copy_(numbers[: len(piece)])

    def row(work: str, tokens: int, layer: Callable[[int], object], nbytes: int, flops: float) -> Row:
        roofs = [read_roof(cache, target)] if contexts else [read_roof(numbers, target)]
        taken, _ = best(layer, seconds)
        roofs.append(read_roof(cache if contexts else numbers, target))
        gbps, gflops = nbytes / taken / 1e9, flops / taken / 1e9
        return Row(
            work=work, format="bf16", tokens=tokens, seconds=taken, gbps=gbps, roof_gbps=max(roofs),
            roof_fraction=gbps / max(roofs), gflops=gflops, peak_gflops=peak_gflops,
            peak_fraction=gflops / peak_gflops, target=target, threads=torch.get_num_threads(),
        )  # fmt: skip

    for context in contexts:
        q, edges = torch.randn(1, H, width), torch.tensor([0, context])
        places = held // context

        def decode(turn: int, q: torch.Tensor = q, edges: torch.Tensor = edges, places: int = places) -> object:
            first = turn % places * int(edges[1])
            slots = torch.arange(first, first + int(edges[1]))
            return attention.mla_decode(q, cache, slots, edges, scale=scale, latent=C, target=target)

        yield row("mla_decode", context, decode, context * width * 2, 2.0 * H * context * (width + C))
    for prompt in prompts:
        q, k = (torch.randn(prompt, H, config.qk_head_dim) for _ in range(2))
        k, v = k.bfloat16(), torch.randn(prompt, H, config.v_head_dim).bfloat16()

        def prefill(_: int, q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v) -> object:
            return attention.causal_attention(q, k, v, scale=scale, target=target)

        pairs = prompt * (prompt + 1) // 2  # of a token and one that it sees
        flops = 2.0 * H * pairs * (config.qk_head_dim + config.v_head_dim)
        yield row("mla_prefill", prompt, prefill, k.nbytes + v.nbytes, flops)
