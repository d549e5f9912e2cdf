"""One packed shard: its header, then matrix after matrix, packed here while the one before is hashed and written."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.counts import TensorSpec
from baltoro.errors import CheckpointError
from baltoro.kernels import formats
from baltoro.kernels.formats import Packed
from baltoro.kernels.slab import ALIGNMENT, Slab, aligned
from baltoro.weights import pack
from baltoro.weights.checkpoint import DTYPES, Checkpoint
from baltoro.weights.durable import sync
from baltoro.weights.layout import PAGE, Block, Shard, Stored
from baltoro.weights.quantize.journal import Finished
from baltoro.weights.quantize.loss import SAMPLED_EXPERTS, Losses

PIECE = 2**24  # values of a kept tensor that are checked and written together
SOON = 2**26  # bytes that are written before the disk is told to begin


def write(
    path: Path, shard: Shard, config: ModelConfig, checkpoint: Checkpoint, moved: Callable[[int], None]
) -> Finished:
    """Make the file and put it on disk. `moved` hears of the bytes that are written."""
    split = [config.qk_nope_head_dim, config.v_head_dim]
    kept = [_as_in_source(spec, checkpoint) for spec in shard.kept]
    specs = [spec for part in (*shard.blocks, *shard.matrices) for spec in part.specs()] + kept
    losses = Losses()
    with Sink(path, moved) as sink:
        sink.put([header(specs)])
        _write_blocks(shard.blocks, checkpoint, sink, losses)
        for matrix in shard.matrices:
            checkpoint.expect(matrix.source)
            places = room(matrix.parts)
            if len(places) == 1:
                pack.fill(places[0], matrix.source, checkpoint)
                losses.matrix(places[0], matrix.source, checkpoint)
            else:
                pack.fill_heads(places, matrix.source, checkpoint, split)
                losses.heads(places, matrix.source, checkpoint, split)
            pack.release(matrix.source, checkpoint)
            sink.put([part for place in places for part in bytes_of(place)])
        for spec in kept:
            _copy(spec.name, checkpoint, sink)
    sync(path)
    return Finished(
        file=shard.file,
        nbytes=path.stat().st_size,
        sha256=sink.sha256,
        tensor_bytes=sum(spec.nbytes for spec in specs),
        losses=losses.sums,
    )


def header(specs: Sequence[TensorSpec]) -> Tensor:
    """safetensors: the length, then JSON; with spaces, so that the data begin at a page."""
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without this mark
    at = 0
    for spec in specs:
        offsets = [at, at + spec.nbytes]
        content[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
        at += spec.nbytes
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return torch.frombuffer(bytearray(struct.pack("<Q", len(text)) + text), dtype=torch.uint8)


class Sink:
    """A file that is written and hashed by another thread; leaving it waits for the last byte."""

    def __init__(self, path: Path, moved: Callable[[int], None]) -> None:
        self._moved = moved
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._written = self._advised = 0  # bytes
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def put(self, parts: list[Tensor]) -> None:
        """Write these next. When it returns, everything put before is written: its memory may be used again."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
        self._moved(sum(part.nbytes for part in parts))
        self._last = self._thread.submit(self._write, parts)

    def _write(self, parts: list[Tensor]) -> None:
        for part in parts:
            data = part.reshape(-1).view(torch.uint8).numpy().data
            self._hash.update(data)
            while data:
                data = data[self._file.write(data) :]
        self._written += sum(part.nbytes for part in parts)
        if hasattr(os, "posix_fadvise") and self._written - self._advised > SOON:
            # The disk begins now instead of at the end, and the source, not this, stays in the system's cache.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._advised = self._written

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.put([])
                assert self._last is not None
                self._last.result()
        finally:
            self._thread.shutdown()
            self._file.close()


def _write_blocks(blocks: list[Block], checkpoint: Checkpoint, sink: Sink, losses: Losses) -> None:
    """Two rooms, since experts are alike: one is filled while the other is written."""
    names = [matrix.source for block in blocks for matrix in block.matrices]
    following = dict(zip(names, names[1:], strict=False))
    stored = [part for block in blocks[:1] for matrix in block.matrices for part in matrix.parts]
    rooms = [room(stored) for _ in range(2)]
    for number, block in enumerate(blocks):
        places = rooms[number % 2]
        for matrix, place in zip(block.matrices, places, strict=True):
            if matrix.source in following:
                checkpoint.expect(following[matrix.source])
            pack.fill(place, matrix.source, checkpoint)
            if number % max(1, len(blocks) // SAMPLED_EXPERTS) == 0:
                losses.matrix(place, matrix.source, checkpoint)
                pack.release(matrix.source, checkpoint)
        parts = [part for place in places for part in bytes_of(place)]
        padding = -sum(part.nbytes for part in parts) % PAGE
        sink.put([*parts, torch.zeros(padding, dtype=torch.uint8)])


def room(parts: Sequence[Stored]) -> list[Packed]:
    """Memory for matrices that will lie behind one another in the file."""
    nbytes = sum(spec.nbytes for part in parts for spec in part.specs())
    slab = Slab(aligned(nbytes) + 2 * len(parts) * ALIGNMENT)
    return [formats.empty(part.format, part.outputs, part.inputs, slab=slab, experts=part.experts) for part in parts]


def bytes_of(packed: Packed) -> list[Tensor]:
    """In the order of the file."""
    return [packed.data, packed.scales] if packed.scales.numel() else [packed.data]


def _as_in_source(spec: TensorSpec, checkpoint: Checkpoint) -> TensorSpec:
    found = checkpoint.dtype(spec.name)
    return spec._replace(dtype=next(name for name, dtype in DTYPES.items() if dtype is found))


def _copy(name: str, checkpoint: Checkpoint, sink: Sink) -> None:
    for piece in torch.split(checkpoint.read(name).reshape(-1), PIECE):
        low, high = torch.aminmax(piece)  # several times as fast as isfinite; nan is found too
        if not bool(low.isfinite() & high.isfinite()):
            raise CheckpointError(
                f"{checkpoint.entry(name).shard.name}: {name} holds inf or nan",
                hint="the file is damaged, or the training run that wrote it has diverged; fetch it again",
            )
        sink.put([piece])
    sink.put([])  # the file's pages have been read
    pack.release(name, checkpoint)
