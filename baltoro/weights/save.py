"""Tensors as they come -> a checkpoint directory, one shard in memory at a time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from baltoro.errors import CheckpointError
from baltoro.weights.checkpoint import INDEX
from baltoro.weights.durable import sync

SHARD_BYTES = 4 * 2**30


def write(
    directory: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write shards, index and config.json. Other files (tiktoken.model, ...) are the caller's.

    Everything goes to a hidden directory inside `directory` first and is moved when it is whole, config.json last:
    after an error or Ctrl-C nothing remains, and after a power cut nothing that opens as a checkpoint.
    A shard is closed before it would pass `shard_bytes`; a larger tensor has a shard to itself.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if there := sorted(
        path.name for path in directory.iterdir() if path.suffix == ".safetensors" or path.name == INDEX
    ):
        raise CheckpointError(
            f"{directory} already holds a checkpoint ({there[0]})", hint="delete it, or write to another directory"
        )
    staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=directory))
    moved: list[Path] = []
    try:
        for path in _stage(staging, tensors, config, shard_bytes):
            target = directory / path.name
            if not target.exists():
                moved.append(target)
            path.replace(target)
        sync(directory)
    except BaseException as error:
        for path in moved:
            path.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise CheckpointError(f"{directory}: the checkpoint cannot be written: {error}") from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _stage(
    staging: Path, tensors: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], shard_bytes: int
) -> list[Path]:
    """All files complete and on disk, in the order in which they may appear."""
    readable = staging.parent.stat().st_mode & 0o666  # as open as the directory it goes to
    shard: dict[str, Tensor] = {}
    held = total = 0
    shards: list[list[str]] = []  # names by shard
    seen: set[str] = set()

    def close() -> None:
        path = staging / f"{len(shards)}.safetensors"
        safetensors_torch.save_file(
            shard, path, metadata={"format": "pt"}
        )  # transformers refuses files without this mark
        path.chmod(readable)  # safetensors makes files that only their owner may read
        sync(path)
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if name in seen:
            raise CheckpointError(f"{name} is written twice")
        seen.add(name)
        tensor = tensor.detach().contiguous().cpu()
        nbytes = tensor.numel() * tensor.element_size()
        if shard and held + nbytes > shard_bytes:
            close()
            held = 0
        shard[name] = tensor
        held += nbytes
        total += nbytes
    if not seen:
        raise CheckpointError("a checkpoint without tensors cannot be written")
    close()

    weight_map: dict[str, str] = {}
    paths: list[Path] = []
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        paths.append((staging / f"{index}.safetensors").rename(staging / file))
        weight_map |= dict.fromkeys(names, file)
    for file, content in (
        (INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}),
        ("config.json", config),
    ):
        path = staging / file
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        sync(path)
        paths.append(path)
    return paths
