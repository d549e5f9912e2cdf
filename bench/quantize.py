"""GB of source a second that `baltoro quantize` packs, and how fast what it makes loads, beside packing at every load.

    python bench/quantize.py [--format int4 --experts 8 --directory DIR --out DIR]

Kimi K2's shapes in block-fp8: a dense layer and two mixtures of `--experts` experts, 20,480 rows of vocabulary, one
random matrix for all of one shape. The source is read once before each run, so that it comes from the system's cache;
what is made goes to the disk of `--out` (/dev/shm takes the disk out of the figure). Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.kernels.formats import FORMATS
from baltoro.model.load import load
from baltoro.weights import fp8
from baltoro.weights.quantize.run import quantize
from baltoro.weights.save import write


def weights(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    made: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    shape: tuple[int, ...] = ()
    for spec in counts.tensors(config):
        if spec.name.endswith("_scale_inv"):
            yield spec.name, made[shape][1].clone()
        elif spec.dtype == "F8_E4M3":
            shape = spec.shape
            if shape not in made:
                made[shape] = fp8.quantize(torch.randn(shape) / math.sqrt(shape[-1]))
            yield spec.name, made[shape][0].clone()
        else:
            yield spec.name, torch.randn(spec.shape).to(torch.bfloat16 if spec.dtype == "BF16" else torch.float32)


def read(directory: Path) -> int:
    """Bring the shards into the system's cache; their bytes."""
    buffer, total = bytearray(2**24), 0
    for path in directory.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def load_s(directory: Path, format: str | None) -> float:
    read(directory)
    began = time.perf_counter()
    load(directory, dtype=torch.bfloat16, format=format)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--format", choices=FORMATS, default="int4")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--directory", type=Path, help="where the source is written; a temporary one by default")
    parser.add_argument("--out", type=Path, help="where the packed model goes; beside the source by default")
    args = parser.parse_args()
    config = replace(
        ModelConfig.open("kimi-k2-instruct"), num_hidden_layers=3, n_routed_experts=args.experts, vocab_size=20480,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory(dir=args.directory) as source,
        tempfile.TemporaryDirectory(dir=args.out or args.directory) as out,
    ):
        src, packed = Path(source), Path(out) / "packed"
        write(src, weights(config), config.to_dict(), shard_bytes=10**9)
        source_bytes = read(src)
        began, used = time.perf_counter(), cpu_s()
        made = quantize(str(src), packed, args.format)
        seconds, used = time.perf_counter() - began, cpu_s() - used
        load_source_s = min(load_s(src, args.format) for _ in range(2))
        load_packed_s = min(load_s(packed, None) for _ in range(2))
    figures = {
        "source_gb": source_bytes / 1e9,
        "packed_gb": made.bytes / 1e9,
        "source_gbps": source_bytes / 1e9 / seconds,
        "cpu_s_per_source_gb": used * 1e9 / source_bytes,
        "load_source_s": load_source_s,
        "load_packed_s": load_packed_s,
    }
    row = {
        "work": "quantize", "format": args.format, **{name: round(value, 3) for name, value in figures.items()},
        "errors": made.errors, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": platform.machine(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
