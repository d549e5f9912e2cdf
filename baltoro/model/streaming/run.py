"""A packed checkpoint run with its experts on disk, and beside it what the disk and the arithmetic would allow.

    limit    tokens / max(missed bytes / the disk's speed, seconds of computing)

The disk is read between the steps, block by block as the store reads it. Computing is timed with the same session on
the resident model where memory has room for it, otherwise it is the time that the streamed one did not wait.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError, CheckpointError
from baltoro.kernels import memory
from baltoro.model import slices
from baltoro.model.load import format_to_load, load
from baltoro.model.measure import VOCABULARY
from baltoro.model.streaming.disk import Disk
from baltoro.model.streaming.rows import Row
from baltoro.model.streaming.session import Parts, Session
from baltoro.model.transformer import Transformer
from baltoro.weights.blocks import ExpertBlock, expert_block
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.experts import ExpertStore

ROUND = 8  # steps between two looks at the disk
SPARE = 2**30  # bytes that a resident run leaves free
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows, and per forward where computing spends its time, for what is said of the whole model."""

    rows: tuple[Row, ...]
    prefill: Parts
    decode: Parts
    config: ModelConfig  # of the checkpoint
    disk_gbps: float | None


@dataclass(frozen=True, slots=True)
class Marks:
    """The store's and its reader's counters at one moment, or what was counted between two."""

    hits: int
    misses: int
    guesses: int
    foreseen: int
    waited_s: float
    nbytes: int
    busy_s: float
    cpu_s: float

    @staticmethod
    def of(store: ExpertStore) -> Marks:
        seen, read = store.statistics, store.reader.statistics()
        counted = (seen.hits, seen.misses, seen.guesses, seen.foreseen)
        return Marks(*counted, seen.waited_s, read.bytes, read.busy_s, read.cpu_s)

    def since(self, before: Marks) -> Marks:
        return Marks(
            self.hits - before.hits, self.misses - before.misses, self.guesses - before.guesses,
            self.foreseen - before.foreseen, self.waited_s - before.waited_s, self.nbytes - before.nbytes,
            self.busy_s - before.busy_s, self.cpu_s - before.cpu_s,
        )  # fmt: skip


class Opened(NamedTuple):
    """Seconds from a cold start."""

    model: float
    first_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One work of one session."""

    work: str
    tokens: int
    seconds: float
    parts: Parts  # per forward, without waiting
    marks: Marks | None = None
    disk_gbps: float | None = None


def measure(
    directory: Path, *, budget_bytes: int | None, tokens: int, answer: int, resident: bool, progress: Progress
) -> Found:
    """budget_bytes: for experts; None: a third of them. resident: nothing is streamed."""
    config = ModelConfig.open(directory)
    if format_to_load(config, None, directory) is None:
        raise CheckpointError(
            f"{directory} is not packed, and its experts cannot be read one by one",
            hint="`baltoro quantize SRC DIR --format int4` makes a directory from which they can",
        )
    if tokens + answer > config.max_position_embeddings:
        raise BaltoroError(
            f"{tokens} and {answer} tokens are beyond the model's context of {config.max_position_embeddings}",
            hint="a shorter --tokens or --answer",
        )
    blocks = _blocks(directory, config)
    memory.forget_peak()
    if resident:
        opened, works = _resident(directory, config, tokens, answer, progress)
        rows = tuple(_row(config, blocks, each, each, opened, None, memory.peak()) for each in works)
        return Found(rows=rows, prefill=works[0].parts, decode=works[1].parts, config=config, disk_gbps=None)
    budget = budget_bytes if budget_bytes is not None else len(blocks) * blocks[0].nbytes // 3
    opened, works = _streamed(directory, blocks, budget, tokens, answer, progress)
    peak = memory.peak()
    beside = works
    if _fits(config):
        beside = _resident(directory, config, tokens, answer, progress)[1]
    rows = tuple(
        _row(config, blocks, each, compute, opened, budget, peak) for each, compute in zip(works, beside, strict=True)
    )
    return Found(
        rows=rows, prefill=beside[0].parts, decode=beside[1].parts, config=config, disk_gbps=works[1].disk_gbps
    )


def shortened(config: ModelConfig, *, mixtures: int, experts: int | None) -> ModelConfig:
    """A dense layer and some mixtures, each of fewer experts. experts: None: a quarter of them."""
    short = slices.shorten(config, dense=1, mixtures=mixtures, vocabulary=VOCABULARY)
    count = max(config.n_routed_experts // 4, config.num_experts_per_tok) if experts is None else experts
    if not config.num_experts_per_tok <= count <= config.n_routed_experts:
        raise BaltoroError(
            f"{count} experts of a layer of {config.n_routed_experts}, of which a token takes "
            f"{config.num_experts_per_tok}",
            hint="a number of --experts between these two",
        )
    return replace(short, n_routed_experts=count)


def place_of(directory: Path | None, model: str, format: str, short: ModelConfig) -> Path:
    """Where a checkpoint of this shape is made, and found the next time."""
    if directory is None:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baltoro"
    name = Path(model).stem
    return directory / f"{name}-{format}-{short.num_hidden_layers - 1}x{short.n_routed_experts}"


def _streamed(
    directory: Path, blocks: list[ExpertBlock], budget: int, tokens: int, answer: int, progress: Progress
) -> tuple[Opened, list[Timed]]:
    began = time.perf_counter()
    model = load(directory, expert_memory=budget)
    opened = time.perf_counter() - began
    store, disk = model.store, Disk(blocks)
    assert store is not None
    try:
        session = Session(model, tokens=tokens, answer=answer)
        progress(f"prefill of {tokens:,} tokens with {store.slots:,} of {len(blocks):,} experts in memory")
        first = opened + session.prefill()  # the system gives out the memory now, which may take longer than reading
        session.clear()
        bursts = [disk.burst()]
        before = Marks.of(store)
        seconds = session.prefill()
        marks = Marks.of(store).since(before)
        bursts.append(disk.burst())
        prefill = Timed(
            work="prefill", tokens=tokens, seconds=seconds, parts=session.parts(waited=marks.waited_s), marks=marks,
            disk_gbps=_gbps(bursts),
        )  # fmt: skip
        session.clear()
        before, bursts = Marks.of(store), bursts[1:]
        progress(f"decode of {answer:,} tokens")
        for index in range(answer):
            session.step(index)
            if index % ROUND == ROUND - 1:
                bursts.append(disk.burst())
        marks = Marks.of(store).since(before)
        decode = Timed(
            work="decode", tokens=answer, seconds=session.seconds,
            parts=session.parts(waited=marks.waited_s).over(answer), marks=marks, disk_gbps=_gbps(bursts),
        )  # fmt: skip
    finally:
        store.close()
        disk.close()
    return Opened(opened, first), [prefill, decode]


def _resident(
    directory: Path, config: ModelConfig, tokens: int, answer: int, progress: Progress
) -> tuple[Opened, list[Timed]]:
    gc.collect()  # the streamed model is gone before this one comes
    progress(f"the same with everything in memory: {_resident_bytes(config) / 1e9:.1f} GB")
    began = time.perf_counter()
    model: Transformer = load(directory)
    opened = time.perf_counter() - began
    session = Session(model, tokens=tokens, answer=answer)
    first = opened + session.prefill()
    session.clear()
    seconds = session.prefill()
    prefill = Timed(work="prefill", tokens=tokens, seconds=seconds, parts=session.parts())
    session.clear()
    for index in range(answer):
        session.step(index)
    decode = Timed(work="decode", tokens=answer, seconds=session.seconds, parts=session.parts().over(answer))
    return Opened(opened, first), [prefill, decode]


def _row(
    config: ModelConfig, blocks: list[ExpertBlock], each: Timed, compute: Timed, opened: Opened, budget: int | None,
    peak: int,
) -> Row:  # fmt: skip
    marks, disk = each.marks, each.disk_gbps
    nbytes, missed = (marks.nbytes, marks.misses * blocks[0].nbytes) if marks else (0, 0)
    computing = compute.seconds if compute.marks is None else compute.seconds - compute.marks.waited_s
    reading = missed / disk / 1e9 if disk else 0.0
    limit = each.tokens / max(reading, computing) if marks else None
    speed = each.tokens / each.seconds
    read = nbytes / each.seconds / 1e9 if marks else None
    uses = marks.hits + marks.misses if marks else 0
    return Row(
        work=each.work, format=str(config.packed_format), tokens=each.tokens, layers=config.num_hidden_layers,
        experts=len(blocks), seconds=each.seconds, tokens_per_s=speed, limit_tokens_per_s=limit,
        limit_fraction=speed / limit if limit else None, limited_by="disk" if reading > computing else "compute",
        compute_seconds=computing, compute_from="resident" if compute.marks is None else "not waited",
        read_gbps=read, busy_gbps=nbytes / marks.busy_s / 1e9 if marks and marks.busy_s else None, disk_gbps=disk,
        disk_fraction=read / disk if read is not None and disk else None,
        hit_rate=marks.hits / uses if marks and uses else 1.0,
        guesses_per_token=marks.guesses / each.tokens if marks else 0.0,
        foreseen_fraction=marks.foreseen / marks.guesses if marks and marks.guesses else None,
        misses_per_token=marks.misses / each.tokens if marks else 0.0, bytes_per_token=nbytes / each.tokens,
        waited_fraction=marks.waited_s / each.seconds if marks else 0.0,
        cpu_s_per_gb=marks.cpu_s / nbytes * 1e9 if marks and nbytes else None,
        open_seconds=opened.model, first_token_seconds=opened.first_token, peak_memory_bytes=peak,
        budget_bytes=budget, expert_bytes=blocks[0].nbytes, threads=torch.get_num_threads(),
    )  # fmt: skip


def _gbps(bursts: list[tuple[int, float]]) -> float:
    return sum(nbytes for nbytes, _ in bursts) / sum(seconds for _, seconds in bursts) / 1e9


def _blocks(directory: Path, config: ModelConfig) -> list[ExpertBlock]:
    checkpoint = Checkpoint.open(directory)
    layers = [layer for layer in range(config.num_hidden_layers) if config.is_moe(layer)]
    return [expert_block(checkpoint, layer, expert) for layer in layers for expert in range(config.n_routed_experts)]


def _resident_bytes(config: ModelConfig) -> int:
    format = format_to_load(config, None, Path())
    assert format is not None
    return slices.nbytes(config, format, experts=config.n_routed_experts)


def _fits(config: ModelConfig) -> bool:
    return _resident_bytes(config) + SPARE <= memory.free()
