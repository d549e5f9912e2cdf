"""Experts on disk: ours beside llama.cpp's mmap, the same layers under the same memory limit, one after the other.

    python bench/stream.py DIR [--llama-bench PROGRAM --model FILE.gguf] [--memory 6GiB] [--prompt 512 --answer 64]
        [--rounds 2 --threads 2]

DIR: a packed checkpoint, as `baltoro bench stream` makes it; FILE.gguf: the same shapes, by bench/peers/k2_gguf.py.
Each run is a process in a control group of its own, whose limit counts what the system caches of its files, too; both
files are dropped from the cache before it. Ours gets the experts' memory that `--expert-memory` finds by itself in
that group. llama.cpp does not repack its weights, which would be a copy of them all in memory. Both do each work
twice, and the second time counts: the first one waits for the system to give out memory. CPU seconds are of one time,
the mean of both; llama.cpp's are its whole process's, since it maps its file at once and reads it as it goes, and so
are its bytes, of both times; ours are of the second. Needs root and Linux.
Prints a JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from baltoro.sizes import parse_bytes

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
Run = dict[str, Any]


@contextmanager
def group(limit: int) -> Iterator[Path]:
    """A control group of this much memory, files that are cached included."""
    old = V1.is_dir()
    folder = (V1 if old else V2) / f"bench-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit), encoding="ascii")
        yield folder
    finally:
        folder.rmdir()


def limited(command: list[str], limit: int, files: list[Path]) -> tuple[str, Run]:
    """What it printed, its CPU seconds, and the most memory that its group held."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with group(limit) as folder:

        def enter() -> None:
            (folder / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

        started = time.perf_counter()
        # One thread here, and the child must be in its group before it runs
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=enter)
        assert child.stdout is not None
        printed = child.stdout.read()
        read_bytes = 0
        with contextlib.suppress(OSError, ValueError, IndexError):  # a process that has ended is still listed
            read_bytes = int((Path("/proc") / str(child.pid) / "io").read_text().split("read_bytes:")[1].split()[0])
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{command[0]} ended with status {status}")
        peak = next(folder / name for name in ("memory.max_usage_in_bytes", "memory.peak") if (folder / name).exists())
        return printed, {
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "wall_s": time.perf_counter() - started,
            "read_bytes": read_bytes,
            "peak_bytes": int(peak.read_text(encoding="ascii")),
            "anonymous_bytes": usage.ru_maxrss * 1024,
        }


def theirs(given: argparse.Namespace) -> Run:
    found: Run = {}
    for work, sizes in (("prefill", (given.prompt, 0)), ("decode", (0, given.answer))):
        command = [str(given.llama_bench), "-m", str(given.model), "-t", str(given.threads), "-r", "2", "--no-warmup",
                   "-o", "json", "-lm", "mmap", "--repack", "0", "-p", str(sizes[0]), "-n", str(sizes[1])]  # fmt: skip
        printed, used = limited(command, given.memory, [given.model])
        used["cpu_s"] /= 2
        found[work] = {"tokens_per_s": json.loads(printed)[0]["samples_ts"][-1], **used}
    return found


def ours(given: argparse.Namespace) -> Run:
    command = [sys.executable, __file__, str(given.directory), "--inside", "--prompt", str(given.prompt), "--answer",
               str(given.answer), "--threads", str(given.threads)]  # fmt: skip
    printed, used = limited(command, given.memory, sorted(given.directory.glob("*.safetensors")))
    found = json.loads(printed.splitlines()[-1])
    for work in ("prefill", "decode"):
        found[work] |= {name: used[name] for name in ("peak_bytes", "anonymous_bytes")}
    return found


def inside(given: argparse.Namespace) -> None:
    """Our run, in its group: prompt and answer once, as llama-bench does them."""
    import torch

    from baltoro.config import ModelConfig
    from baltoro.model.load import load
    from baltoro.model.streaming.session import Session
    from baltoro.weights import fit

    torch.set_num_threads(given.threads)
    config = ModelConfig.open(given.directory)
    budget = fit.expert_budget(fit.Need.of(config), 0)
    model = load(given.directory, expert_memory=budget)
    session = Session(model, tokens=given.prompt, answer=given.answer)
    found: Run = {"expert_memory_bytes": budget}
    for work, count in (("prefill", given.prompt), ("decode", given.answer)):
        cpu, seconds, nbytes = time.process_time(), 0.0, 0
        for _ in range(2):
            began, before = time.perf_counter(), model.store.reader.statistics().bytes if model.store else 0
            if work == "prefill":
                session.prefill()
            else:
                for index in range(count):
                    session.step(index)
            seconds = time.perf_counter() - began
            nbytes = model.store.reader.statistics().bytes - before if model.store else 0
        used = (time.process_time() - cpu) / 2
        found[work] = {"tokens_per_s": count / seconds, "cpu_s": used, "wall_s": seconds, "read_bytes": nbytes}
    if model.store is not None:
        found["hit_rate"] = model.store.statistics.hits / max(
            1, model.store.statistics.hits + model.store.statistics.misses
        )
        model.store.close()
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--memory", type=parse_bytes, default=parse_bytes("6GiB"))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside(given)
        return
    if (given.llama_bench is None) != (given.model is None):
        parser.error("--llama-bench and --model go together")
    row: Run = {"bench": "stream", "memory": given.memory, "prompt": given.prompt, "answer": given.answer}
    mine: list[Run] = []
    peer: list[Run] = []
    for _ in range(given.rounds):
        mine.append(ours(given))
        if given.llama_bench is not None:
            peer.append(theirs(given))
    row["expert_memory_bytes"] = mine[0]["expert_memory_bytes"]
    for work in ("prefill", "decode"):
        best = max((each[work] for each in mine), key=lambda each: each["tokens_per_s"])
        row |= {f"{work}_{name}": round(value, 3) for name, value in best.items()}
        if peer:
            other = max((each[work] for each in peer), key=lambda each: each["tokens_per_s"])
            row |= {f"{work}_llama_cpp_{name}": round(value, 3) for name, value in other.items()}
            row[f"{work}_ratio"] = round(best["tokens_per_s"] / other["tokens_per_s"], 2)
            row[f"{work}_cpu_ratio"] = round(best["cpu_s"] / other["cpu_s"], 2)
    row |= {"threads": given.threads, "cpu": platform.processor() or platform.machine(),
            "date": datetime.now(UTC).date().isoformat()}  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
