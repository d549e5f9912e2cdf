"""Which weights a directory holds, in 32 bytes: for what is kept on disk and is true for these weights alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from baltoro.weights.checkpoint import find_shards

SAMPLES = 16  # places of a large shard that are read
SAMPLE = 2**16  # bytes at each
DESCRIPTIONS = ("config.json", "tiktoken.model", "tokenizer_config.json")


def identity(directory: Path) -> bytes:
    """Of names, sizes, times and samples of the shards, and of what describes them. A terabyte takes 61 MB of reads.

    A shard that is trained further keeps its name, size and header, so its contents are sampled; one that is patched
    in a few places keeps most samples, but not its time. A copy of a directory is another one unless it keeps times.
    """
    known = hashlib.sha256()
    for path in (directory / name for name in DESCRIPTIONS):
        known.update(hashlib.sha256(path.read_bytes() if path.exists() else b"").digest())
    for shard in sorted(find_shards(directory, [])[0]):
        found = shard.stat()
        known.update(f"{shard.name} {found.st_size} {found.st_mtime_ns}\n".encode())
        with shard.open("rb") as file:
            for index in range(SAMPLES):
                file.seek(index * max(0, found.st_size - SAMPLE) // (SAMPLES - 1))
                known.update(file.read(SAMPLE))
    return known.digest()
