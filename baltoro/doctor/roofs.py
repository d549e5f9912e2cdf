"""What memory, cores and disk reach at best."""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from baltoro.config import ModelConfig
from baltoro.doctor.facts import Disk, Roof
from baltoro.kernels import measure, memory, reader
from baltoro.kernels.formats import FORMATS, Format
from baltoro.kernels.reader import File, Reader, Ticket
from baltoro.kernels.slab import Slab
from baltoro.kernels.targets import chosen_target, targets
from baltoro.weights.blocks import expert_block
from baltoro.weights.checkpoint import Checkpoint

SCRATCH_BYTES = 2**30
REPEATS = 3  # the best one counts: on a shared machine the others are interrupted
AHEAD_BYTES = 256 * 2**20  # of experts on their way from disk
DISK_SECONDS = 2.0
SIDE = 1024  # of the float32 product whose speed is the peak where nothing is packed


def roof(format: str, *, threads: int, target: str) -> Roof:
    """Of memory that no cache holds."""
    if target == "torch":
        return Roof(threads=threads, target=target, read_gbps=None, peak_gflops=None)
    nbytes = max(memory.last_cache(), min(SCRATCH_BYTES, memory.free() // 4))
    scratch = Slab(nbytes).cut((nbytes,), torch.uint8).fill_(1)  # pages that were never written are all one page
    with _threads(threads):
        return Roof(
            threads=threads,
            target=target,
            read_gbps=max(measure.read_roof(scratch, target) for _ in range(REPEATS)),
            peak_gflops=max(_peak(format, target) for _ in range(REPEATS)),
        )


def roofs(format: str, threads: int, usable: int) -> tuple[Roof, ...]:
    """As the run is; then with as many threads as there are CPUs, and with the best instruction set, if they differ."""
    target, best = chosen_target(), targets()[-1]
    wanted = dict.fromkeys([(threads, target), (usable, target), (threads, best)])
    return tuple(roof(format, threads=count, target=name) for count, name in wanted)


def disk(checkpoint: Checkpoint, config: ModelConfig, *, seconds: float = DISK_SECONDS) -> Disk:
    """Experts of a packed checkpoint in random order, each by one read, as many at a time as a store keeps coming."""
    moe = [layer for layer in range(config.num_hidden_layers) if config.is_moe(layer)]
    keys = list(itertools.product(moe, range(config.n_routed_experts)))
    random.Random(0).shuffle(keys)
    nbytes = expert_block(checkpoint, *keys[0]).nbytes
    ahead = max(1, min(len(keys), AHEAD_BYTES // nbytes, 64))
    files: dict[Path, File] = {}
    places = Slab(ahead * nbytes).cut((ahead, nbytes), torch.uint8).fill_(0)
    under_way: deque[Ticket] = deque()
    done = 0
    with Reader() as reading:
        began = time.perf_counter()
        for turn, key in enumerate(itertools.cycle(keys)):
            block = expert_block(checkpoint, *key)
            if len(under_way) == ahead:
                under_way.popleft().wait()
                done += nbytes
            if time.perf_counter() - began > seconds:
                break
            if block.shard not in files:
                files[block.shard] = reading.open(block.shard)
            under_way.append(reading.submit(files[block.shard], block.offset, places[turn % ahead]))
        reading.wait(under_way)
        taken = time.perf_counter() - began
        found = reading.statistics()
    return Disk(
        read_gbps=(done + len(under_way) * nbytes) / taken / 1e9,
        backend=found.backend,
        best_backend=reader.backends()[0],
        direct=not found.buffered_files,
    )


def _peak(format: str, target: str) -> float:
    if format in FORMATS:
        wanted: Format = FORMATS[FORMATS.index(format)]
        return measure.peak(wanted, target)
    x = torch.ones(SIDE, SIDE)
    began = time.perf_counter()
    torch.mm(x, x)
    return 2 * SIDE**3 / (time.perf_counter() - began) / 1e9


@contextmanager
def _threads(count: int) -> Generator[None]:
    """torch has one number for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
