"""This machine as a plan's `Machine`: memory, cores, disk and GPUs, measured in a few seconds and without torch."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from baltoro.kernels import cpus, memory
from baltoro.kernels.targets import chosen_target, native
from baltoro.plan.machine import Gpu, Machine

SCRATCH_BYTES = 2**29
DISK_BYTES = 2**28
PIECE = 2**22
READERS = 8
REPEATS = 3  # the best one counts: on a shared machine the others are interrupted
INT8 = 2  # its place in kernels.formats.FORMATS, which imports torch; a test holds them together
MATRIX = {"amx": "amx", "avx512": "avx512"}
Say = Callable[[str], object]


def machine(folder: Path, gpus: Mapping[str, Gpu], say: Say) -> Machine:
    """folder: where the model is, or is to lie; its disk is the one that is measured"""
    threads = cpus.usable()
    say("measuring memory and cores ...")
    bandwidth, flops = _memory_and_cores(threads)
    say(f"measuring the disk of {folder}: a file of {DISK_BYTES >> 20} MiB comes and goes ...")
    disk = disk_bandwidth(folder)
    notes = [] if disk is not None else [f"a disk of 3 GB/s: {folder} has no room to measure"]
    card, count, unknown = gpus_here(gpus)
    if unknown:
        notes.append(f"no GPU: {unknown} is not in the catalogue; --machines FILE adds it")
    if flops is None:
        notes.append("what cores reach: the native kernels are not built")
    return Machine(
        name="this machine", ram_bytes=float(memory.total()), ram_bandwidth=bandwidth, cores=threads,
        matrix=MATRIX.get(chosen_target(), "avx2"), flops=flops, disk_bandwidth=disk or 3e9,
        disk_free_bytes=float(shutil.disk_usage(folder).free), gpu=card, gpus=count, measured=flops is not None,
        assumed=tuple(notes),
    )  # fmt: skip


def _memory_and_cores(threads: int) -> tuple[float, float | None]:
    """Bytes a second of reading what no cache holds; operations a second of int8 products, None without kernels."""
    nbytes = max(2**26, min(SCRATCH_BYTES, memory.free() // 4)) // (512 * threads) * (512 * threads)
    scratch = np.ones(nbytes, dtype=np.uint8)  # pages that were never written are all one page
    target = chosen_target()
    if target == "torch":
        return max(_read_by_numpy(scratch, threads) for _ in range(REPEATS)), None
    kernels = native()
    read = max(kernels.read_roof(target, scratch.ctypes.data, nbytes, threads) for _ in range(REPEATS))
    return read, max(kernels.multiply_roof(target, INT8, threads) for _ in range(REPEATS))


def _read_by_numpy(scratch: np.ndarray, threads: int) -> float:
    parts = np.array_split(scratch.view(np.uint64), threads)
    workers = [threading.Thread(target=part.max) for part in parts]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return scratch.nbytes / (time.perf_counter() - began)


def disk_bandwidth(folder: Path, nbytes: int = DISK_BYTES) -> float | None:
    """Bytes a second, read past the page cache where the file system can; None where it has no room."""
    if shutil.disk_usage(folder).free < 4 * nbytes:
        return None
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".baltoro-plan-") as file:
        block = os.urandom(PIECE)  # some file systems and drives pack what repeats
        for _ in range(nbytes // PIECE):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return max(_read_file(Path(file.name), nbytes) for _ in range(2))


def _read_file(path: Path, nbytes: int) -> float:
    direct = getattr(os, "O_DIRECT", 0)
    try:
        descriptor = os.open(path, os.O_RDONLY | direct)
    except OSError:  # tmpfs and some network file systems
        descriptor = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, nbytes, os.POSIX_FADV_DONTNEED)
    offsets = list(range(0, nbytes, PIECE))

    def work(mine: list[int]) -> None:
        with mmap.mmap(-1, PIECE) as place:  # aligned, as direct reads want it
            for offset in mine:
                os.preadv(descriptor, [place], offset)

    workers = [threading.Thread(target=work, args=(offsets[each::READERS],)) for each in range(READERS)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    taken = time.perf_counter() - began
    os.close(descriptor)
    return nbytes / taken


def described(card: Gpu, count: int) -> Machine:
    """This machine with its GPUs, and nothing measured: to lay a model out on them."""
    return Machine(
        name="this machine", ram_bytes=float(memory.total()), ram_bandwidth=400e9, cores=cpus.usable(), gpu=card,
        gpus=count,
    )  # fmt: skip


def gpus_here(known: Mapping[str, Gpu]) -> tuple[Gpu | None, int, str | None]:
    """The kind of GPU here, how many, and the name of one that the catalogue lacks."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, 0, None
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    names = [line.strip() for line in found.stdout.splitlines() if line.strip()] if found.returncode == 0 else []
    if not names:
        return None, 0, None
    spelled = names[0].upper().replace(" ", "-")
    fitting = sorted((key for key in known if key.upper() in spelled), key=len)
    return (known[fitting[-1]], len(names), None) if fitting else (None, 0, names[0])
