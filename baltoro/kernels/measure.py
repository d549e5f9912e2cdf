"""How fast this machine reads memory and multiplies, and how near the kernels come to that, at Kimi K2's own shapes.

Nothing is loaded: weights are random bytes, far more of them than any cache holds. Roofs are measured beside each row,
since on a shared machine only figures of the same minute compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError
from baltoro.kernels import formats, noise, ops
from baltoro.kernels.formats import FORMATS, Format, Packed
from baltoro.kernels.slab import Slab, aligned
from baltoro.kernels.targets import chosen_target, native

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kernel at one size. Bytes are those of the weights that were touched, each counted once."""

    work: str  # decode: one token through a layer's chosen experts; prefill: many; mla_*: measure_attention.py
    format: str
    tokens: int
    seconds: float
    gbps: float
    roof_gbps: float
    roof_fraction: float
    gflops: float
    peak_gflops: float  # of the instruction that this format multiplies with
    peak_fraction: float
    target: str
    threads: int


def line(row: Row) -> str:
    return (
        f"{row.work:12}{row.format:5}{row.tokens:7,} tokens {row.seconds * 1e3:9.2f} ms   "
        f"{row.gbps:5.1f} of {row.roof_gbps:5.1f} GB/s ({row.roof_fraction:.2f})   "
        f"{row.gflops:6.0f} of {row.peak_gflops:6.0f} GFLOP/s ({row.peak_fraction:.2f})"
    )


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of one layer, and where they lie."""

    gate: Packed
    up: Packed
    down: Packed

    @property
    def expert_bytes(self) -> float:
        assert self.gate.experts is not None
        return (self.gate.nbytes + self.up.nbytes + self.down.nbytes) / self.gate.experts


def random_mixture(config: ModelConfig, format: Format, experts: int) -> Mixture:
    """Random bytes, in huge pages: every weight that a format has, none of them a NaN."""
    hidden, width = config.hidden_size, config.moe_intermediate_size
    shapes = [(width, hidden), (width, hidden), (hidden, width)]
    slab = Slab(sum(aligned(experts * formats.nbytes(format, *shape)) + 128 for shape in shapes))
    gate, up, down = (
        noise.fill(formats.empty(format, *shape, experts=experts, slab=slab), seed=n) for n, shape in enumerate(shapes)
    )
    return Mixture(gate, up, down)


def read_roof(weights: Tensor, target: str) -> float:
    """GB/s of plain reading, on the memory of these weights: a GiB of it, if there is as much."""
    threads = torch.get_num_threads()
    flat = weights.flatten()
    nbytes = min(flat.nbytes, 2**30) // (512 * threads) * (512 * threads)
    return native().read_roof(target, flat.data_ptr(), nbytes, threads) / 1e9


def peak(format: Format, target: str) -> float:
    """GFLOP/s (a product counts as two) of the instruction that this format is multiplied with."""
    return native().multiply_roof(target, FORMATS.index(format), torch.get_num_threads()) / 1e9


def rows(
    config: ModelConfig,
    wanted: tuple[Format, ...],
    *,
    experts: int = 48,
    prefill: tuple[int, ...] = (512,),
    seconds: float = 2.0,
    target: str | None = None,
) -> Iterator[Row]:
    """Each format: decode of one token, then prefill; the best of `seconds` of repetitions each.

    experts: how many the layer has here. A prompt's share for them is prefill tokens * K / 384, as in the whole model.
    """
    target = target or chosen_target()
    if target == "torch":
        raise BaltoroError("there are no native kernels to measure", hint="install a C++ compiler, then baltoro again")
    for format in wanted:
        mixture = random_mixture(config, format, experts)
        peak_gflops = peak(format, target)
        for tokens in (1, *prefill):
            share = max(1, round(tokens * experts / config.n_routed_experts)) if tokens > 1 else 1
            yield row_of(config, mixture, format, tokens, share, peak_gflops, seconds, target)


def row_of(
    config: ModelConfig, mixture: Mixture, format: Format, tokens: int, share: int, peak_gflops: float,
    seconds: float, target: str,
) -> Row:  # fmt: skip
    """The best of `seconds`. share: tokens that go to the experts which are here, K choices each."""
    experts, chosen = mixture.gate.experts, config.num_experts_per_tok
    assert experts is not None
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(share, config.hidden_size, generator=generator)
    weights = torch.full((share, chosen), 1 / chosen)
    if share == 1:  # in turn, so that each expert comes again when all others have been read: from memory, not a cache
        orders = list(torch.randperm(experts, generator=generator)[: experts // chosen * chosen].view(-1, 1, chosen))
    else:
        orders = [torch.rand(share, experts, generator=generator).argsort(-1)[:, :chosen] for _ in range(16)]

    def layer(turn: int) -> int:
        order = orders[turn % len(orders)]
        ops.experts(x, order, weights, mixture.gate, mixture.up, mixture.down, target=target)
        return int((order.flatten().bincount() > 0).sum())

    roofs = [read_roof(mixture.gate.data, target)]
    shortest, touched = best(layer, seconds)
    roofs.append(read_roof(mixture.gate.data, target))
    flops = 2 * 3 * config.hidden_size * config.moe_intermediate_size * chosen * share
    gbps, gflops = touched * mixture.expert_bytes / shortest / 1e9, flops / shortest / 1e9
    return Row(
        work="decode" if tokens == 1 else "prefill", format=format, tokens=tokens, seconds=shortest, gbps=gbps,
        roof_gbps=max(roofs), roof_fraction=gbps / max(roofs), gflops=gflops, peak_gflops=peak_gflops,
        peak_fraction=gflops / peak_gflops, target=target, threads=torch.get_num_threads(),
    )  # fmt: skip


def best(work: Callable[[int], _Result], seconds: float) -> tuple[float, _Result]:
    """The shortest time of one repetition, and what it returned; `work` is told its number."""
    found, turn = work(0), 1
    end, shortest = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        result = work(turn)
        taken = time.perf_counter() - start
        turn += 1
        if taken < shortest:
            shortest, found = taken, result
    return shortest, found
