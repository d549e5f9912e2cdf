"""How near latent attention comes to this machine's roofs: one token to a long context, and a prompt to itself.

Numbers are random. A decoded token's context lies elsewhere at each repetition, in more memory than any cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError
from baltoro.kernels import attention, memory
from baltoro.kernels.measure import Row, best, peak, read_roof
from baltoro.kernels.slab import Slab

SMALLEST_CACHE = 2**28  # bytes
NUMBERS = 2**20  # random ones, repeated


@dataclass(frozen=True, slots=True)
class Bench:
    config: ModelConfig
    cache: Tensor  # (rows, C + R) bf16: what is read for the roof, too
    seconds: float
    target: str
    peak_gflops: float

    @property
    def scale(self) -> float:
        return self.config.qk_head_dim**-0.5

    def decode(self, context: int) -> Row:
        """GB/s are of the cached latents."""
        (rows, width), H, C = self.cache.shape, self.config.num_attention_heads, self.config.kv_lora_rank
        q, edges = torch.randn(1, H, width), torch.tensor([0, context])

        def layer(turn: int) -> Tensor:
            first = turn % (rows // context) * context
            slots = torch.arange(first, first + context)
            return attention.mla_decode(q, self.cache, slots, edges, scale=self.scale, latent=C, target=self.target)

        return self._row("mla_decode", context, layer, context * width * 2, 2.0 * H * context * (width + C))

    def prefill(self, prompt: int) -> Row:
        """GB/s are of keys and values."""
        config, H = self.config, self.config.num_attention_heads
        q, k = (torch.randn(prompt, H, config.qk_head_dim) for _ in range(2))
        k, v = k.bfloat16(), torch.randn(prompt, H, config.v_head_dim).bfloat16()

        def layer(_: int) -> Tensor:
            return attention.causal_attention(q, k, v, scale=self.scale, target=self.target)

        pairs = prompt * (prompt + 1) // 2  # of a token and one that it sees
        flops = 2.0 * H * pairs * (config.qk_head_dim + config.v_head_dim)
        return self._row("mla_prefill", prompt, layer, k.nbytes + v.nbytes, flops)

    def _row(self, work: str, tokens: int, layer: Callable[[int], Tensor], nbytes: int, flops: float) -> Row:
        roofs = [read_roof(self.cache, self.target)]
        taken, _ = best(layer, self.seconds)
        roofs.append(read_roof(self.cache, self.target))
        gbps, gflops = nbytes / taken / 1e9, flops / taken / 1e9
        return Row(
            work=work, format="bf16", tokens=tokens, seconds=taken, gbps=gbps, roof_gbps=max(roofs),
            roof_fraction=gbps / max(roofs), gflops=gflops, peak_gflops=self.peak_gflops,
            peak_fraction=gflops / self.peak_gflops, target=self.target, threads=torch.get_num_threads(),
        )  # fmt: skip


def rows(
    config: ModelConfig, *, contexts: tuple[int, ...], prompts: tuple[int, ...], seconds: float, target: str
) -> Iterator[Row]:
    """mla_decode for each context, mla_prefill for each prompt. Raises BaltoroError at once where they do not fit."""
    width = config.kv_lora_rank + config.qk_rope_head_dim
    held = max(*contexts, max(2 * memory.last_cache(), SMALLEST_CACHE) // (2 * width))
    a_token = config.num_attention_heads * (
        10 * config.qk_head_dim + 10 * config.v_head_dim
    )  # q, k, v, made and rounded
    needed, free = 2 * width * held + a_token * max(prompts), memory.free()
    if needed > free:
        raise BaltoroError(
            f"a context of {max(contexts):,} and a prompt of {max(prompts):,} tokens take {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free",
            hint="shorter --context or --tokens",
        )
    return _rows(config, contexts, prompts, held, seconds, target)


def _rows(
    config: ModelConfig, contexts: tuple[int, ...], prompts: tuple[int, ...], held: int, seconds: float, target: str
) -> Iterator[Row]:
    """held: rows of the cache"""
    width = config.kv_lora_rank + config.qk_rope_head_dim
    cache = Slab(held * width * 2).cut((held, width), torch.bfloat16)
    numbers = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0)).bfloat16()
    for piece in torch.split(cache.view(-1), NUMBERS):
        piece.copy_(numbers[: len(piece)])
    bench = Bench(config, cache, seconds, target, peak("bf16", target))
    yield from map(bench.decode, contexts)
    yield from map(bench.prefill, prompts)
