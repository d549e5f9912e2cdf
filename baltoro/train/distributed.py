"""Data parallelism on one machine: the same step on every process, gradients summed in between.

Alone (`World.alone`) every call is a no-op, so the loop has one form. Several processes with one thread each
beat one process with several threads on CPUs: small tensors don't wait for each other.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import tempfile
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessRaisedException,
    start_processes,  # pyright: ignore[reportUnknownVariableType]
)

from baltoro.errors import BaltoroError


@dataclass(frozen=True, slots=True)
class World:
    rank: int
    size: int

    @staticmethod
    def alone() -> World:
        return World(0, 1)

    @property
    def leads(self) -> bool:
        """True on the one process that writes files and talks."""
        return self.rank == 0

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum each float32 tensor over the processes, in place, as one message."""
        self._reduce(tensors, dist.ReduceOp.SUM)

    def max_(self, tensors: Iterable[Tensor]) -> None:
        self._reduce(tensors, dist.ReduceOp.MAX)

    def _reduce(self, tensors: Iterable[Tensor], operation: Any) -> None:
        if self.size == 1:
            return
        parts = list(tensors)
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat, operation)
        for part, summed in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
            part.copy_(summed.view_as(part))

    def agree(self, flag: bool) -> bool:
        """The leading process's flag, on all of them: when to save, when to stop."""
        if self.size == 1:
            return flag
        shared = torch.tensor([float(flag)])
        dist.broadcast(shared, 0)
        return bool(shared.item())


def launch(run: Callable[..., None], processes: int, threads: int, *arguments: object) -> None:
    """run(world, *arguments) on `processes` processes. An exception in one ends all and is raised here.

    SIGINT and SIGTERM go on to the processes, and `run` decides what they mean.
    """
    if processes == 1:
        torch.set_num_threads(threads)
        run(World.alone(), *arguments)
        return
    with tempfile.TemporaryDirectory() as directory:
        common = Path(directory)
        context = start_processes(
            _child, (run, processes, threads, common, arguments), processes, join=False, start_method="spawn"
        )
        assert context is not None  # join=False
        try:
            with _passing_signals_on(context):
                while not context.join():
                    pass
        except ProcessRaisedException:
            for told in sorted(common.glob("error-*")):  # what a user can repair; the other processes only lost a peer
                raise pickle.loads(told.read_bytes()) from None
            raise


@contextlib.contextmanager
def _passing_signals_on(context: ProcessContext) -> Generator[None]:
    def pass_on(_number: int, _frame: FrameType | None) -> None:
        for process in cast("list[BaseProcess]", context.processes):
            process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _child(
    rank: int, run: Callable[..., None], processes: int, threads: int, common: Path, arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{common / 'rendezvous'}", rank=rank, world_size=processes)
    try:
        run(World(rank, processes), *arguments)
    except BaltoroError as error:
        (common / f"error-{rank}").write_bytes(pickle.dumps(error))
        raise
    finally:
        dist.destroy_process_group()
