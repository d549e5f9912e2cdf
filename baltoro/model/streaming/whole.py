"""From a few streamed layers to a whole model, on this machine and on described ones.

    computing  the seconds of each measured layer, as often as the model has it; decode goes with the bandwidth of the
               memory, prefill with the cores
    reading    decode: experts that a token uses * (1 - hit rate) * bytes of one; prefill: every expert that the prompt
               chooses, once a chunk; over the disk's speed
    speed      between 1 / (reading + computing), where nothing overlaps, and 1 / max of the two, where all does

The hit rate is that of made-up choices (weights/trace.py) with what the machine's RAM has left for experts. A real
model's is not known before it was traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.kernels import measure, memory
from baltoro.kernels.formats import Format
from baltoro.kernels.slab import Slab
from baltoro.kernels.targets import chosen_target
from baltoro.model.bench import chunks_of
from baltoro.model.measure import scratch_bytes
from baltoro.model.slices import nbytes
from baltoro.model.streaming.run import Found
from baltoro.model.streaming.session import Parts
from baltoro.model.whole import ON_PAPER, expected_experts
from baltoro.weights import simulate, trace
from baltoro.weights.display import Counted
from baltoro.weights.experts import LEAST_SLOTS, POLICY

SKEW, STICKY = 0.7, 0.3
TRACED = 200  # made-up tokens whose misses are counted, after as many that fill the memory
RESERVED = 4e9  # bytes of RAM for everything else


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    name: str
    bandwidth_gbps: float  # that reading memory reaches
    ram_bytes: float
    disk_gbps: float  # that reading blocks reaches
    cores: float  # like one of this machine's


DESCRIBED = (
    Machine(name="desktop, 2 x DDR5-6000, NVMe 5.0", bandwidth_gbps=ON_PAPER * 96.0, ram_bytes=192e9, disk_gbps=12,
            cores=16),
    Machine(name="server, 8 x DDR5-4800, 2 NVMe 5.0", bandwidth_gbps=ON_PAPER * 307.2, ram_bytes=256e9, disk_gbps=24,
            cores=64),
    Machine(name="server, 12 x DDR5-4800, 4 NVMe", bandwidth_gbps=ON_PAPER * 460.8, ram_bytes=384e9, disk_gbps=48,
            cores=96),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """All layers on one machine. The speeds are None where its RAM does not even hold what is always wanted."""

    work: str
    layer: str = "all"
    format: str
    tokens: int
    machine: str
    layers: int
    tokens_per_s: float | None  # reading, then computing
    limit_tokens_per_s: float | None  # both at once
    limited_by: str
    compute_seconds: float  # of a token, or of the prompt
    read_seconds: float | None
    hit_rate: float | None
    hit_rate_from: str
    misses_per_token: float | None
    budget_bytes: float  # for experts
    resident_bytes: int  # everything else
    expert_bytes: int  # of all experts
    bandwidth_gbps: float
    disk_gbps: float
    ram_bytes: float
    cores: float


def everywhere(config: ModelConfig, found: Found) -> list[Whole]:
    """Nothing where what was measured has other layers than this model, or no disk was."""
    if found.disk_gbps is None or not _same_layers(config, found.config):
        return []
    threads = found.rows[0].threads
    scratch = Slab(scratch_bytes()).cut((scratch_bytes(),), torch.uint8).fill_(1)
    roof = max(measure.read_roof(scratch, chosen_target()) for _ in range(3))
    here = Machine(
        name=f"here, {threads} thread{'s' if threads > 1 else ''}", bandwidth_gbps=roof, ram_bytes=memory.total(),
        disk_gbps=found.disk_gbps, cores=threads,
    )  # fmt: skip
    return [each for machine in (here, *DESCRIBED) for each in of(config, found, machine, here)]


def _same_layers(config: ModelConfig, made: ModelConfig) -> bool:
    """But for how many layers, experts and words there are."""
    free = ("num_hidden_layers", "first_k_dense_replace", "moe_layer_freq", "n_routed_experts", "vocab_size",
            "bos_token_id", "eos_token_id", "weight_block_size", "packed_format")  # fmt: skip
    return config == replace(made, **{name: getattr(config, name) for name in free})


def of(config: ModelConfig, found: Found, machine: Machine, here: Machine) -> Iterator[Whole]:
    prompt, answer = found.rows
    mixtures = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
    block = answer.expert_bytes
    all_experts = mixtures * config.n_routed_experts * block
    others = nbytes(config, cast("Format", answer.format), experts=0)
    others += (prompt.tokens + answer.tokens) * counts.cache_bytes_per_token(config)
    budget = min(machine.ram_bytes - others - RESERVED, all_experts)
    fits = budget >= LEAST_SLOTS * block
    hit_rate = _hit_rate(config, int(budget // block), block) if fits else None
    slower = {"decode": here.bandwidth_gbps / machine.bandwidth_gbps, "prefill": here.cores / machine.cores}
    for row, parts in ((prompt, found.prefill), (answer, found.decode)):
        tokens = row.tokens if row.work == "prefill" else 1
        computing = _seconds(config, found.config, parts) * slower[row.work]
        reading = misses = None
        if hit_rate is not None:
            if row.work == "decode":
                misses = mixtures * config.num_experts_per_tok * (1 - hit_rate)
            else:  # a sweep over more experts than memory holds finds none of them there
                swept = sum(expected_experts(config, end - start) for start, end in chunks_of(tokens))
                misses = mixtures * swept if budget < all_experts else 0.0
            reading = misses * block / machine.disk_gbps / 1e9
        yield Whole(
            work=row.work, format=row.format, tokens=tokens, machine=machine.name, layers=config.num_hidden_layers,
            tokens_per_s=None if reading is None else tokens / (reading + computing),
            limit_tokens_per_s=None if reading is None else tokens / max(reading, computing),
            limited_by="memory" if reading is None else "disk" if reading > computing else "compute",
            compute_seconds=computing, read_seconds=reading, hit_rate=hit_rate if row.work == "decode" else None,
            hit_rate_from=f"made-up choices, skew {SKEW}, sticky {STICKY}",
            misses_per_token=None if misses is None else misses / tokens, budget_bytes=max(0.0, budget),
            resident_bytes=others, expert_bytes=all_experts, bandwidth_gbps=machine.bandwidth_gbps,
            disk_gbps=machine.disk_gbps, ram_bytes=machine.ram_bytes, cores=machine.cores,
        )  # fmt: skip


def _seconds(config: ModelConfig, made: ModelConfig, parts: Parts) -> float:
    """Of computing one forward of all layers."""
    dense, mixtures = _layers(config)
    head = parts.head * config.vocab_size / made.vocab_size
    return dense * parts.dense + mixtures * parts.mixture + head + parts.outside(*_layers(made))


def _layers(config: ModelConfig) -> tuple[int, int]:
    """Dense ones and mixtures."""
    mixtures = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
    return config.num_hidden_layers - mixtures, mixtures


def _hit_rate(config: ModelConfig, room: int, expert_bytes: int) -> float:
    """Of the store's policy, once its memory is full."""
    header = replace(trace.Header.of(config, "made up"), expert_bytes=expert_bytes)
    if room >= len(header.layers) * header.experts:
        return 1.0
    counted: list[tuple[int, int]] = []
    for tokens in (TRACED, 2 * TRACED):
        uses = simulate.Uses.of(header, trace.synthetic(header, tokens=tokens, skew=SKEW, sticky=STICKY, seed=0))
        with Counted(f"made-up choices, {room:,} experts in memory") as display:
            result = simulate.run(uses, POLICY, room, progress=display.update)
        counted.append((result.uses, result.misses))
    (before, missed_before), (uses_in_all, missed) = counted
    return 1 - (missed - missed_before) / (uses_in_all - before)


def line(result: Whole) -> str:
    """For people."""
    where = f"all {result.layers} {result.work:8}{result.machine:34}"
    if result.tokens_per_s is None or result.limit_tokens_per_s is None:
        return (
            f"{where} DOES NOT FIT: {result.resident_bytes / 1e9:,.0f} GB without routed experts and "
            f"{RESERVED / 1e9:.0f} GB for the rest, has {result.ram_bytes / 1e9:,.0f}"
        )
    hits = "" if result.hit_rate is None else f"{result.hit_rate:.0%} hit ({result.hit_rate_from}), "
    return (
        f"{where} {result.tokens_per_s:.2f} to {result.limit_tokens_per_s:.2f} tokens/s; {hits}"
        f"{result.budget_bytes / 1e9:,.0f} of {result.expert_bytes / 1e9:,.0f} GB of experts in memory, "
        f"disk {result.disk_gbps:.1f} GB/s; {result.limited_by}"
    )
