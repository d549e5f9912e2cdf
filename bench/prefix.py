"""A prompt's beginning: computed, found in memory, and read from disk after a restart; the time to the first token.

    python bench/prefix.py [--model kimi-k2-instruct] [--tokens 2000] [--own 32] [--rounds 3] [--threads 2]
        [--format int4 --mixtures 1 --experts 96]

A large model is a slice of it: one dense layer and `--mixtures` of random weights with the first `--experts` experts,
between which all tokens choose. What a token costs to compute and what it takes on disk both grow with the layers, so
the ratios are those of the whole model. Each round has other tokens: `--tokens` that are shared, and `--own` that are
not. Between the second engine and the third the files are dropped from the system's cache. `peak_bytes` is the most
that the process took beside weights and latent cache. Prints a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from baltoro.config import ModelConfig
from baltoro.engine.config import EngineConfig, page_bytes
from baltoro.engine.engine import Engine
from baltoro.engine.prefix_files import PageShape, PrefixFiles
from baltoro.engine.request import Request, SamplingParams
from baltoro.kernels.formats import Format
from baltoro.model import slices
from baltoro.model.load import load
from baltoro.model.transformer import Transformer

PAGE_TOKENS = 64


def model_of(given: argparse.Namespace) -> Transformer:
    if given.model == "nano":
        from baltoro.config import resolve

        return load(resolve("nano"), dtype=torch.float32, format="bf16")
    config = ModelConfig.open(given.model)
    short = slices.shorten(config, dense=1, mixtures=given.mixtures, vocabulary=4096)
    format: Format = given.format
    return slices.make(short, format, experts=given.experts)


class Session:
    """An engine over some files, asked one thing after the other."""

    def __init__(self, model: Transformer, folder: Path, tokens: int) -> None:
        config = EngineConfig(cache_bytes=1, page_tokens=PAGE_TOKENS)
        one = page_bytes(model.config, config)
        config = EngineConfig(cache_bytes=(2 * tokens // PAGE_TOKENS + 8) * one, page_tokens=PAGE_TOKENS)
        self.cache_bytes = config.cache_bytes
        shape = PageShape(fingerprint=bytes(32), page_tokens=PAGE_TOKENS, page_bytes=one)
        self.engine = Engine(model, config, files=PrefixFiles(folder, shape, budget_bytes=2**36))

    def first_token_s(self, prompt: list[int]) -> tuple[float, int]:
        """Seconds, and how many of the prompt's tokens were not computed."""
        times: list[float] = []
        reused: list[int] = []
        over, began = threading.Event(), time.perf_counter()

        def sink(step: Any) -> None:
            times.append(time.perf_counter() - began)
            reused.append(step.cached_tokens)
            if step.finish is not None:
                if step.error is not None:
                    print(repr(step.error))
                over.set()

        self.engine.submit(Request(prompt=prompt, sampling=SamplingParams(max_tokens=1), sink=sink))
        over.wait()
        return times[0], reused[0]

    def close(self) -> None:
        self.engine.stop()


def drop(folder: Path) -> int:
    """Forget what the system has cached of the files; their bytes."""
    size = 0
    for file in folder.rglob("*"):
        if file.is_file():
            size += file.stat().st_size
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def measure(model: Transformer, given: argparse.Namespace) -> dict[str, Any]:
    chance, vocabulary = random.Random(0), min(model.config.vocab_size, 1700)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def ids(count: int) -> list[int]:
        return [chance.randrange(300, vocabulary) for _ in range(count)]

    found: dict[str, list[float]] = {"computed": [], "memory": [], "disk": []}
    read = cache = 0
    for _ in range(given.rounds):
        folder = Path(tempfile.mkdtemp(prefix="baltoro-prefix-", dir=given.folder))
        try:
            shared, own = ids(given.tokens), ids(3 * given.own)
            session = Session(model, folder, given.tokens)
            cache = session.cache_bytes
            session.first_token_s(ids(given.own))
            for name, at in (("computed", 0), ("memory", 1)):
                prompt = shared + own[at * given.own : (at + 1) * given.own]
                seconds, _ = session.first_token_s(prompt)
                found[name].append(seconds)
            session.close()
            read = drop(folder)
            session = Session(model, folder, given.tokens)
            session.first_token_s(ids(given.own))
            seconds, reused = session.first_token_s(shared + own[2 * given.own :])
            found["disk"].append(seconds)
            session.close()
            assert reused >= given.tokens // PAGE_TOKENS * PAGE_TOKENS, reused
        finally:
            shutil.rmtree(folder)
    times = {name: median(seconds) for name, seconds in found.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        **{f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in times.items()},
        "memory_of_computed": round(times["memory"] / times["computed"], 4),
        "disk_of_computed": round(times["disk"] / times["computed"], 4),
        "file_bytes": read,
        "cache_bytes": cache,
        "peak_bytes": max(0, peak - before - cache),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="kimi-k2-instruct")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--own", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--format", default="int4")
    parser.add_argument("--mixtures", type=int, default=1)
    parser.add_argument("--experts", type=int, default=96)
    parser.add_argument("--folder", type=Path, help="where files go; default: the system's temporary folder")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = measure(model_of(given), given)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": given.threads}
    asked = {"model": given.model, "tokens": given.tokens, "own": given.own, "layers": 1 + given.mixtures}
    when = {"when": datetime.now(UTC).isoformat(timespec="seconds")}
    print(json.dumps(machine | asked | when | found))


if __name__ == "__main__":
    main()
