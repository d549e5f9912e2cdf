"""From a few measured layers to a whole model, on this machine and on described ones.

    decode    seconds = bytes that a step reads / (GB/s of the machine * the fraction of the roof measured here)
    prefill   seconds = operations / (cores * a core's peak here * the fraction of the peak measured here),
              but never less than reading the weights once for each chunk of the prompt

Bytes, operations and seconds of a whole step are those of each measured layer, as often as the model has it, and those
of the head. In a batch the mixture counts the experts that its tokens are expected to choose of all there are.
What does not scale with bandwidth or cores (Python, one thread's work) is scaled along, and a machine of several
sockets reaches its bandwidth only where weights lie beside the cores that read them. At long contexts attention is
arithmetic: there decode is faster than this says on a machine with more cores for its bandwidth, and slower with fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.kernels import memory
from baltoro.model.rows import Row

ON_PAPER = 0.8  # of channels * transfers/s * 8 bytes is what servers read in practice


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    name: str
    bandwidth_gbps: float  # that reading reaches
    ram_bytes: float
    cores: float | None = None  # like one of this machine's; None: nothing is said about prefill


DESCRIBED = (
    Machine(name="desktop, 2 x DDR5-6000", bandwidth_gbps=ON_PAPER * 96.0, ram_bytes=192e9, cores=16),
    Machine(name="server, 12 x DDR5-4800", bandwidth_gbps=ON_PAPER * 460.8, ram_bytes=768e9, cores=96),
    Machine(name="server, 24 x DDR5-6400", bandwidth_gbps=ON_PAPER * 1228.8, ram_bytes=1536e9, cores=192),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """All layers on one machine, whether or not its RAM holds them."""

    work: str
    layer: str = "all"
    format: str
    tokens: int  # as in Row
    context: int
    machine: str
    layers: int
    seconds: float | None  # a step of decode, or the prompt
    tokens_per_s: float | None
    bytes: int  # read in a step, or for the prompt
    roof_fraction: float
    peak_fraction: float
    bandwidth_gbps: float
    cores: float | None
    needed_bytes: int  # weights and cache
    ram_bytes: float
    fits: bool


def this_machine(rows: Sequence[Row]) -> Machine:
    roof, threads = rows[0].roof_gbps, rows[0].threads
    name = f"here, {threads} thread{'s' if threads > 1 else ''}"
    return Machine(name=name, bandwidth_gbps=roof, ram_bytes=memory.total(), cores=threads)


def whole(config: ModelConfig, rows: Sequence[Row], machine: Machine, *, model_bytes: int) -> Whole:
    """rows: of one work and size, each layer once. model_bytes: all weights in this format."""
    row = rows[0]
    dense = sum(not config.is_moe(layer) for layer in range(config.num_hidden_layers))
    times = {"dense": dense, "mixture": config.num_hidden_layers - dense, "head": 1}
    here, nbytes, gflop = 0.0, 0.0, 0.0
    for each in rows:
        read = _bytes(config, each)
        here += times[each.layer] * each.seconds * (read / each.bytes if each.work == "decode" else 1.0)
        nbytes += times[each.layer] * read
        gflop += times[each.layer] * each.gflops * each.seconds
    if row.work == "decode":
        seconds = here * row.roof_gbps / machine.bandwidth_gbps
    elif machine.cores is not None:
        seconds = max(here * row.threads / machine.cores, nbytes / machine.bandwidth_gbps / 1e9)
    else:
        seconds = None
    cached = (row.tokens if row.work == "decode" else 1) * row.context
    needed = model_bytes + cached * counts.cache_bytes_per_token(config)
    return Whole(
        work=row.work, format=row.format, tokens=row.tokens, context=row.context, machine=machine.name,
        layers=config.num_hidden_layers, seconds=seconds, tokens_per_s=row.tokens / seconds if seconds else None,
        bytes=round(nbytes), roof_fraction=nbytes / here / 1e9 / row.roof_gbps,
        peak_fraction=gflop / here / row.peak_gflops, bandwidth_gbps=machine.bandwidth_gbps, cores=machine.cores,
        needed_bytes=needed, ram_bytes=machine.ram_bytes, fits=needed <= machine.ram_bytes,
    )  # fmt: skip


def expected_experts(config: ModelConfig, tokens: int) -> float:
    """Distinct ones that tokens choose which choose independently of each other, each as likely as any."""
    experts = config.n_routed_experts
    return experts * (1 - (1 - config.num_experts_per_tok / experts) ** tokens)


def _bytes(config: ModelConfig, row: Row) -> float:
    """What this layer reads where all experts are there; in prefill the row was scaled already."""
    if row.layer != "mixture" or row.work != "decode":
        return row.bytes
    return row.bytes + (expected_experts(config, row.tokens) - row.touched) * row.expert_bytes


def line(result: Whole) -> str:
    """For people."""
    ram, needed = result.ram_bytes / 1e9, result.needed_bytes / 1e9
    if result.tokens_per_s is None:
        speed = "        - tokens/s (--cores says how many)"
    else:
        speed = f"{result.tokens_per_s:9.2f} tokens/s"
    room = f"needs {needed:,.0f} of its {ram:,.0f} GB"
    if not result.fits:
        speed, room = f"{speed} if it had the RAM", f"DOES NOT FIT: needs {needed:,.0f} GB, has {ram:,.0f}"
    return f"all {result.layers:<4}{result.machine:26}{result.bandwidth_gbps:6.0f} GB/s {speed}; {room}"
