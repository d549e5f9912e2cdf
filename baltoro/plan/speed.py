"""Seconds of a step of decode, of a prompt, and of loading, each as a sum over resources.

    decode    for each resource  bytes / (bandwidth * efficiency), and layers * (launches and reductions); they follow
              each other, so the step is their sum. Reading the disk may hide behind them: the band's best end.
    prefill   max(operations / (peak * efficiency), weights read once a chunk) + steps * layers * launches;
              where experts lie in RAM and GPUs are near: on the cores, or carried over PCIe, whichever is less
    serving   a step of decode, and the prompts that come in meanwhile: concurrency * prompt / answer tokens a step

`Band`s are (least, expected, most) tokens a second; seconds are kept the same way round: least belongs to the slowest.
"""

from __future__ import annotations

from dataclasses import dataclass

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.plan import efficiency
from baltoro.plan.efficiency import Band
from baltoro.plan.formats import Format
from baltoro.plan.layout import Layout
from baltoro.plan.layout import cache_per_token as cache_on_gpu
from baltoro.plan.machine import Machine
from baltoro.plan.memory import CHUNK, Memory, Wish
from baltoro.plan.weights import Weights, weights

CARRIED_CHUNK = 32768  # prompt tokens for which a layer's experts are carried to the GPUs once


@dataclass(frozen=True, slots=True)
class Term:
    """One resource's part in a time."""

    resource: str  # GPU memory, RAM, disk, compute, PCIe, launches and network
    seconds: Band
    formula: str


@dataclass(frozen=True, slots=True)
class Time:
    terms: tuple[Term, ...]
    overlaps: bool = False  # at best the longest hides the others

    @property
    def seconds(self) -> Band:
        least, expected, most = (sum(term.seconds[each] for term in self.terms) for each in range(3))
        if self.overlaps:
            most = max(term.seconds.most for term in self.terms)
        return Band(least, expected, most)

    @property
    def binding(self) -> str:
        return max(self.terms, key=lambda term: term.seconds.expected).resource


def per_second(amount: float, seconds: Band) -> Band:
    return Band(*(amount / each if each > 0 else 0.0 for each in seconds))


def decode(
    config: ModelConfig, format: Format, machine: Machine, memory: Memory, wish: Wish, *, context: int, batch: int
) -> Time:
    """A step in which each of `batch` requests, with `context` tokens behind it, gets one more."""
    held = weights(config, format)
    cache = batch * context * counts.cache_bytes_per_token(config, value_bytes=wish.cache_value_bytes)
    if memory.place == "gpu":
        assert memory.layout is not None
        return _on_gpus(config, held, machine, memory.layout, wish, context=context, batch=batch)
    experts = held.read_by(batch)
    layers = config.num_hidden_layers
    if memory.place == "hybrid":
        assert machine.gpu is not None
        assert memory.layout is not None
        ways = memory.layout.tp
        on_gpu = (held.read_resident + memory.gpu_share * experts) / ways + cache
        share = efficiency.of_gpu(machine).memory
        return Time(
            (
                _read("GPU memory", on_gpu, Band(*(machine.gpu.bandwidth * each for each in share))),
                _read("RAM", memory.ram_share * experts, efficiency.ram_bandwidth(machine)),
                _launches(layers, efficiency.hybrid_layer_s(machine)),
            )
        )
    nodes = machine.nodes if machine.unified and memory.place == "ram" else 1
    bandwidth = efficiency.ram_bandwidth(machine)
    launches = efficiency.of_ram(machine).layer_s
    if nodes > 1:
        launches = Band(*(a + b for a, b in zip(launches, efficiency.NETWORK_LAYER_S, strict=True)))
    terms = [
        _read("RAM", (held.read_resident + experts) / nodes + cache, bandwidth),
        _compute(counts.decode_flops(config, context=max(1, context)) * batch / nodes, efficiency.cpu_flops(machine)),
        _launches(layers, launches),
    ]
    if memory.place == "ram":
        return Time((_larger(terms[0], terms[1]), terms[2]))
    hits = efficiency.hit_rate(memory.ram_share)
    disk = Band(*(machine.disk_bandwidth * each for each in efficiency.DISK))
    missed = Band(*((1 - hit) * experts for hit in hits))
    reading = Term(
        "disk",
        Band(*(nbytes / rate for nbytes, rate in zip(missed, disk, strict=True))),
        f"{experts / 1e9:.2f} GB of experts, {hits.expected:.0%} of them in memory, at {disk.expected / 1e9:.2f} GB/s",
    )
    return Time((_larger(terms[0], terms[1]), terms[2], reading), overlaps=True)


def prefill(
    config: ModelConfig, format: Format, machine: Machine, memory: Memory, *, tokens: int, past: int = 0
) -> Time:
    """A prompt of `tokens`, behind `past` that are in the cache: until its last token is read."""
    held, chunk = weights(config, format), CHUNK[memory.place]
    chunks = -(-tokens // chunk)
    flops = counts.prefill_flops(config, tokens=tokens, past=past)
    layers = config.num_hidden_layers
    if memory.place == "gpu":
        assert machine.gpu is not None
        assert memory.layout is not None
        used = memory.layout.width * min(memory.layout.pp, chunks)  # a pipeline is full when it has as many chunks
        eff = efficiency.of_gpu(machine)
        work = _compute(flops, Band(*(used * machine.gpu.bf16_flops * each for each in eff.compute)))
        read = _read(
            "GPU memory",
            chunks * held.whole / memory.layout.width,
            Band(*(machine.gpu.bandwidth * each for each in eff.memory)),
        )
        return Time((_larger(work, read), _launches(chunks * layers, _gpu_launches(machine, memory.layout))))
    cores = efficiency.cpu_flops(machine)
    nodes = machine.nodes if machine.unified and memory.place == "ram" else 1
    here = Band(*(nodes * each for each in cores))
    read = _read("RAM", chunks * held.whole / nodes, efficiency.ram_bandwidth(machine))
    on_cores = _larger(_compute(flops, here), read)
    if memory.place == "hybrid":
        carried = _carried(held, machine, memory, flops, tokens)
        return Time((min(on_cores, carried, key=lambda term: term.seconds.expected),))
    if memory.place == "ram":
        return Time((on_cores,))
    missed = (1 - memory.ram_share) * held.experts * chunks
    disk = Band(*(machine.disk_bandwidth * each for each in efficiency.DISK))
    return Time((_larger(on_cores, _read("disk", missed, disk)),))


def load(held: Weights, machine: Machine, memory: Memory) -> Time:
    """From the disk of each node into its memory; each node reads what it holds."""
    nodes = machine.nodes if memory.place == "gpu" or machine.unified else 1
    nbytes = held.whole
    if memory.place == "disk":
        nbytes = held.resident + memory.ram_share * held.experts
    disk = Band(*(machine.disk_bandwidth * each for each in efficiency.DISK))
    return Time(
        (_read("disk", nbytes / nodes, disk), Term("start", Band(120, 60, 20) if machine.gpus else Band(10, 4, 1), ""))
    )


def serving(step: Band, prompt_s: Band, *, batch: int, answer: int) -> Band:
    """Seconds between two tokens of one of `batch` requests, where each brings a prompt and leaves after its answer.

    prompt_s: of one prompt, read alone
    """
    return Band(*(one + batch / answer * read for one, read in zip(step, prompt_s, strict=True)))


def _on_gpus(
    config: ModelConfig, held: Weights, machine: Machine, layout: Layout, wish: Wish, *, context: int, batch: int
) -> Time:
    """Stages of a pipeline follow each other, so that a token's time counts all of them, whoever computes meanwhile."""
    assert machine.gpu is not None
    eff = efficiency.of_gpu(machine)
    bandwidth = Band(*(machine.gpu.bandwidth * each for each in eff.memory))
    cut = held.read_resident - held.replicated_attention
    mine = -(-batch // layout.dp)
    per_gpu = (
        held.replicated_attention + cut / layout.tp + held.read_by(batch) / layout.width
        + mine * context * cache_on_gpu(config, layout, value_bytes=wish.cache_value_bytes) * layout.pp
    )  # fmt: skip
    flops = counts.decode_flops(config, context=max(1, context)) * batch / layout.width
    peak = Band(*(machine.gpu.bf16_flops * each for each in eff.compute))
    read = _larger(_read("GPU memory", per_gpu, bandwidth), _compute(flops, peak))
    return Time((read, _launches(config.num_hidden_layers, _gpu_launches(machine, layout))))


def _gpu_launches(machine: Machine, layout: Layout) -> Band:
    launches = efficiency.of_gpu(machine).layer_s
    if layout.width > machine.gpus:
        return Band(*(a + b for a, b in zip(launches, efficiency.NETWORK_LAYER_S, strict=True)))
    return launches


def _carried(held: Weights, machine: Machine, memory: Memory, flops: int, tokens: int) -> Term:
    """Prefill on GPUs: experts come over PCIe, a layer at a time, once for each CARRIED_CHUNK tokens."""
    assert machine.gpu is not None
    assert memory.layout is not None
    times, count = -(-tokens // CARRIED_CHUNK), memory.layout.tp
    alone = times * memory.ram_share * held.experts / machine.gpu.pcie + flops / machine.gpu.bf16_flops
    seconds = alone * (efficiency.SERIAL + (1 - efficiency.SERIAL) / count)
    carried = f"{times} x {memory.ram_share * held.experts / 1e9:,.0f} GB over PCIe"
    formula = f"{carried}, then {flops / 1e12:,.0f} TFLOP, on {count} GPUs"
    return Term("PCIe", Band(*(seconds / each for each in efficiency.CARRIED)), formula)


def _read(resource: str, nbytes: float, rate: Band) -> Term:
    return Term(
        resource, Band(*(nbytes / each for each in rate)), f"{nbytes / 1e9:,.2f} GB at {rate.expected / 1e9:,.1f} GB/s"
    )


def _compute(flops: float, rate: Band) -> Term:
    return Term(
        "compute",
        Band(*(flops / each for each in rate)),
        f"{flops / 1e12:,.3g} TFLOP at {rate.expected / 1e12:,.1f} TFLOP/s",
    )


def _launches(layers: int, each: Band) -> Term:
    return Term(
        "launches and network",
        Band(*(layers * one for one in each)),
        f"{layers:,} layers x {each.expected * 1e6:.0f} us",
    )


def _larger(first: Term, second: Term) -> Term:
    return max(first, second, key=lambda term: term.seconds.expected)
