"""The processes that take a step together: who they are, what they tell each other, how they are started.

Alone (`World.alone`) every call is a no-op, so the loop has one form. Several processes with one thread each
beat one process with several threads on CPUs: small tensors don't wait for each other. They are started here, on
one machine, or by torchrun, on many.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessException,
    start_processes,  # pyright: ignore[reportUnknownVariableType]
)

from baltoro.errors import BaltoroError, RecipeError

TEXT_BYTES = 1024  # of what processes tell each other in words
PATIENCE = timedelta(hours=6)  # for a peer that evaluates, saves, or makes documents


@dataclass(frozen=True, slots=True)
class World:
    """Some processes, all of them or a group; all of its processes make the same calls."""

    rank: int
    size: int
    group: dist.ProcessGroup | None = None  # None: all processes

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
        parts = list(tensors)
        if self.size == 1 or not parts:
            return
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat, operation, group=self.group)
        for part, summed in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
            part.copy_(summed.view_as(part))

    def exchange(
        self, sends: Sequence[Sequence[Tensor]], receives: Sequence[Sequence[Tensor]], dtype: torch.dtype
    ) -> None:
        """sends[r] go to process r, receives[r] are filled by it, in the same order and shapes; all are of `dtype`."""
        for source, target in zip(sends[self.rank], receives[self.rank], strict=True):
            target.copy_(source)
        if self.size == 1:
            return
        others = [() if rank == self.rank else tensors for rank, tensors in enumerate(sends)]
        places = [() if rank == self.rank else tensors for rank, tensors in enumerate(receives)]
        out = torch.cat([torch.empty(0, dtype=dtype), *(tensor.reshape(-1) for side in others for tensor in side)])
        counts = [[sum(tensor.numel() for tensor in tensors) for tensors in side] for side in (places, others)]
        came = torch.empty(sum(counts[0]), dtype=dtype)
        dist.all_to_all_single(came, out, *counts, group=self.group)
        flat = [tensor for tensors in places for tensor in tensors]
        for tensor, values in zip(flat, torch.split(came, [tensor.numel() for tensor in flat]), strict=True):
            tensor.copy_(values.view_as(tensor))

    def agree(self, flag: bool) -> bool:
        """The leading process's flag, on all of them: when to save, when to stop."""
        return self.any(flag and self.leads)

    def any(self, flag: bool) -> bool:
        """True on all where it is true on one."""
        shared = torch.tensor([float(flag)])
        self.max_([shared])
        return bool(shared.item())

    def first(self, text: str | None) -> str | None:
        """The text of the lowest-numbered process that has one, on all of them; cut at TEXT_BYTES."""
        if self.size == 1:
            return text
        told = torch.zeros(TEXT_BYTES, dtype=torch.uint8)
        encoded = (text or "").encode()[:TEXT_BYTES]
        told[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        heard = torch.empty(self.size, TEXT_BYTES, dtype=torch.uint8)
        dist.all_gather_single(heard.view(-1), told, group=self.group)
        for line in heard:
            if words := bytes(cast("list[int]", line.tolist())).rstrip(b"\0"):
                return words.decode(errors="replace")
        return None

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)


def processes_of(asked: int) -> int:
    """How many processes a run has: those that torchrun started, else as many as are asked for."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return asked
    started = int(os.environ["WORLD_SIZE"])
    if asked not in (1, started):
        raise RecipeError(
            f"torchrun started {started} processes, the recipe has processes = {asked}",
            hint="leave processes out of a recipe for torchrun, or start without it",
        )
    return started


def launch(run: Callable[..., None], processes: int, threads: int, *arguments: object) -> None:
    """run(world, *arguments) on `processes` processes. An exception in one ends all and is raised here.

    Under torchrun this process is one of them, and all must be given `processes_of(...)`.
    SIGINT and SIGTERM go on to the processes, and `run` decides what they mean.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _joined(run, threads, arguments)
        return
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
        except ProcessException:  # raised, or ended by our SIGTERM because another one had raised
            for told in sorted(common.glob("error-*")):  # what a user can repair; the other processes only lost a peer
                raise pickle.loads(told.read_bytes()) from None
            raise


@contextlib.contextmanager
def one_voice() -> Generator[None]:
    """What goes wrong before the processes know each other is the same on all that torchrun started: one says it."""
    try:
        yield
    except BaltoroError:
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
            raise SystemExit(1) from None
        raise


def _joined(run: Callable[..., None], threads: int, arguments: tuple[object, ...]) -> None:
    """As one of torchrun's processes. Of an error that several have, one speaks."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", timeout=PATIENCE)
    store = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
    try:
        run(World(dist.get_rank(), dist.get_world_size()), *arguments)
    except BaltoroError:
        if store.add("errors", 1) > 1:
            raise SystemExit(1) from None
        raise
    finally:
        dist.destroy_process_group()


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
    dist.init_process_group(
        "gloo", init_method=f"file://{common / 'rendezvous'}", rank=rank, world_size=processes,
        timeout=PATIENCE,
    )  # fmt: skip
    try:
        run(World(rank, processes), *arguments)
    except BaltoroError as error:
        (common / f"error-{rank}").write_bytes(pickle.dumps(error))
        raise
    finally:
        dist.destroy_process_group()
