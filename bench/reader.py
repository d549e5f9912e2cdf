"""Bytes a second and CPU seconds a GB of our reader beside fio's io_uring: the same file and pieces, past the cache.

    python bench/reader.py [--gb 4 --block-mb 24 --piece-kb 2048 --depth 16 --rounds 6]

The block is an expert's; both ask the drive for pieces of one size with the same number under way, in random order and
into huge pages: into small ones (`fio_small_pages`) a piece is a list of many segments, and a drive takes short lists.
All take turns, forwards and backwards, so that a drive that slows down does so for each; the median round counts. CPU
is that of the whole process, ours with the thread that asks, fio's without its start. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from baltoro.kernels.reader import DEPTH, PIECE, Reader
from baltoro.kernels.slab import Slab

Figures = dict[str, float]
TOGETHER = 8  # blocks that are wanted at the same time: K2's experts of one token and layer


def write(path: Path, nbytes: int) -> None:
    """Bytes that no drive can shorten."""
    with path.open("wb") as file:
        block = bytearray(os.urandom(2**24))
        for start in range(0, nbytes, len(block)):
            block[:8] = start.to_bytes(8)
            file.write(block[: nbytes - start])
        file.flush()
        os.fsync(file.fileno())


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ours(path: Path, backend: str, block: int, options: argparse.Namespace) -> Figures:
    slab = Slab(TOGETHER * block)
    blocks = [slab.cut((block,), torch.uint8).fill_(1) for _ in range(TOGETHER)]
    offsets = list(range(0, path.stat().st_size - block + 1, block))
    random.shuffle(offsets)
    with Reader(backend, piece_bytes=options.piece_kb * 1024, depth=options.depth) as reader:
        file = reader.open(path)
        assert file.direct, f"{path} cannot be read past the page cache"
        cpu, began = cpu_s(), time.perf_counter()
        tickets = []
        for index, offset in enumerate(offsets):
            if len(tickets) == TOGETHER:
                tickets.pop(0).wait()
            tickets.append(reader.submit(file, offset, blocks[index % TOGETHER]))
        reader.wait(tickets)
        seconds, cpu = time.perf_counter() - began, cpu_s() - cpu
    gb = len(offsets) * block / 1e9
    return {"gb_per_s": gb / seconds, "cpu_s_per_gb": cpu / gb}


def fio(path: Path, huge_pages: bool, options: argparse.Namespace) -> Figures:
    command = ["fio", "--name=read", f"--filename={path}", "--direct=1", "--rw=randread", "--ioengine=io_uring"]
    command += [f"--bs={options.piece_kb}k", f"--iodepth={options.depth}", "--output-format=json"]
    environment = os.environ | ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {})
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment).stdout
    job = json.loads(out[out.index("{") :])["jobs"][0]
    gb = job["read"]["io_bytes"] / 1e9
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return {"gb_per_s": job["read"]["bw_bytes"] / 1e9, "cpu_s_per_gb": cpu / gb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--block-mb", type=int, default=24)
    parser.add_argument("--piece-kb", type=int, default=PIECE // 1024)
    parser.add_argument("--depth", type=int, default=DEPTH)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="on the drive to measure; default: the temporary folder")
    options = parser.parse_args()
    if not shutil.which("fio"):
        sys.exit("fio is not installed (Debian, Ubuntu: apt install fio)")
    block = options.block_mb * 2**20
    rounds: dict[str, list[Figures]] = {"uring": [], "fio": [], "threads": [], "fio_small_pages": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "blocks")
        write(path, int(options.gb * 1e9))
        ours(path, "uring", block, options)  # what a drive gives in a burst is over after this
        for turn in range(options.rounds):
            for name in list(rounds)[:: 1 if turn % 2 == 0 else -1]:
                peer = name.startswith("fio")
                found = fio(path, name == "fio", options) if peer else ours(path, name, block, options)
                rounds[name].append(found)
    result = {
        name: {key: round(statistics.median(found[key] for found in all_of), 4) for key in all_of[0]}
        for name, all_of in rounds.items()
    }
    fractions = [a["gb_per_s"] / b["gb_per_s"] for a, b in zip(rounds["uring"], rounds["fio"], strict=True)]
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat()}
    sizes = {"gb": options.gb, "block_mb": options.block_mb, "piece_kb": options.piece_kb, "depth": options.depth}
    print(
        json.dumps(
            {
                "bench": "reader",
                **sizes,
                "fraction": round(statistics.median(fractions), 3),
                "fractions": [round(each, 3) for each in fractions],
                **result,
                **machine,
            }
        )
    )


if __name__ == "__main__":
    main()
