"""A packed checkpoint of random weights: what a large model asks of a disk, without the large model.

Names, blocks and shards are those of `baltoro quantize`. Every expert has bytes of its own, routers are random, so that
experts are chosen all alike. It is whole or not at all: made under another name beside its place, then renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.counts import TensorSpec
from baltoro.errors import CheckpointError
from baltoro.kernels import noise
from baltoro.kernels.formats import Format, Packed
from baltoro.weights import layout
from baltoro.weights.checkpoint import DTYPES, INDEX
from baltoro.weights.display import Display, size
from baltoro.weights.durable import sync
from baltoro.weights.layout import PAGE, Shard, Stored
from baltoro.weights.lock import locked
from baltoro.weights.quantize.shard import Sink, bytes_of, header, room

HEADER_BYTES = 256  # of a shard's header for each tensor, about


def invent(config: ModelConfig, format: Format, directory: Path, *, seed: int = 0) -> bool:
    """Make it, or find it there: False where nothing had to be made.

    Raises CheckpointError where something else is there, or the disk has no room for it.
    """
    config = replace(config, weight_block_size=None, packed_format=format)
    if (directory / "config.json").is_file():
        if ModelConfig.open(directory) != config:
            raise CheckpointError(
                f"{directory} holds another model than the one asked for", hint="name another directory, or delete it"
            )
        return False
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory} holds other files", hint="name a directory that is new or empty")
    shards = layout.shards(config, format)
    _check_disk(shards, directory)
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    with locked(unfinished, "bench stream", CheckpointError):
        try:
            for old in unfinished.glob("*.safetensors"):  # of a run that was killed
                old.unlink()
            _write(shards, unfinished, config, seed)
            (unfinished / "lock").unlink()
            sync(unfinished)
            unfinished.replace(directory)
            sync(directory.parent)
        except BaseException as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            wrong = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
            raise CheckpointError(f"{directory} cannot be written: {wrong}", hint="nothing was kept") from error
    return True


def _check_disk(shards: list[Shard], directory: Path) -> None:
    specs = [spec for shard in shards for spec in shard.specs()]
    needed = sum(spec.nbytes + HEADER_BYTES for spec in specs)
    nearest = next(path for path in directory.absolute().parents if path.exists())
    disk = os.statvfs(nearest)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise CheckpointError(
            f"{directory} needs {size(needed)}, and its disk has {size(free)} free",
            hint="choose a directory on a larger disk, or make fewer --layers or --experts",
        )


def _write(shards: list[Shard], directory: Path, config: ModelConfig, seed: int) -> None:
    total, moved = sum(spec.nbytes for shard in shards for spec in shard.specs()), 0
    with Display("making random weights") as display:

        def tell(count: int) -> None:
            nonlocal moved
            moved += count
            display.update(here=min(moved, total), total=total, moved=moved)

        for number, shard in enumerate(shards):
            path = directory / shard.file
            with Sink(path, tell) as sink:
                sink.put([header(shard.specs())])
                for parts in _tensors(shard, seed + number):
                    sink.put(parts)
            sync(path)
    weight_map = {spec.name: shard.file for shard in shards for spec in shard.specs()}
    for name, content in (
        (INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}),
        ("config.json", config.to_dict()),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        sync(directory / name)


def _tensors(shard: Shard, seed: int) -> Iterator[list[Tensor]]:
    """In the order of the file; what was yielded may be written to again after the next."""
    seeds = iter(range(seed << 32, (seed + 1) << 32))
    stored = [part for block in shard.blocks[:1] for matrix in block.matrices for part in matrix.parts]
    rooms = [room(stored) for _ in range(2)]  # experts are alike: one is filled while the other is written
    for number in range(len(shard.blocks)):
        places = rooms[number % 2]
        parts = [part for place in places for part in bytes_of(noise.fill(place, seed=next(seeds)))]
        padding = -sum(part.nbytes for part in parts) % PAGE
        yield [*parts, torch.zeros(padding, dtype=torch.uint8)]
    for matrix in shard.matrices:
        yield [part for place in _filled(matrix.parts, next(seeds)) for part in bytes_of(place)]
    for spec in shard.kept:
        yield [_kept(spec, next(seeds))]


def _filled(parts: tuple[Stored, ...], seed: int) -> list[Packed]:
    places = room(parts)
    if len(places) == 1:
        noise.fill(places[0], seed=seed)
    else:
        noise.fill_heads(places, seed=seed)
    return places


def _kept(spec: TensorSpec, seed: int) -> Tensor:
    """Norms change nothing, no expert is preferred; embedding and routers are random."""
    if spec.name.endswith("e_score_correction_bias"):
        return torch.zeros(spec.shape)
    if len(spec.shape) == 1:
        return torch.ones(spec.shape, dtype=DTYPES[spec.dtype])
    numbers = torch.randn(spec.shape, generator=torch.Generator().manual_seed(seed))
    return (numbers if "embed_tokens" in spec.name else numbers * spec.shape[1] ** -0.5).to(DTYPES[spec.dtype])
