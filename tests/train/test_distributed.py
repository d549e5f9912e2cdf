"""Processes that compute one step together, and what happens when one of them fails."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from baltoro.errors import RecipeError
from baltoro.train.distributed import World, launch


def test_alone_nothing_is_changed() -> None:
    world = World.alone()
    tensors = [torch.tensor([1.0, 2.0])]
    world.sum_(tensors)
    world.max_(tensors)
    assert tensors[0].tolist() == [1.0, 2.0]
    assert world.leads and world.agree(True) and not world.agree(False)


def together(world: World, out: Path) -> None:
    """Runs on two processes; what went wrong comes back as the assertion."""
    sums = [torch.full((2, 3), world.rank + 1.0), torch.tensor([10.0 * world.rank])]
    world.sum_(sums)
    assert sums[0].tolist() == [[3.0] * 3] * 2 and sums[1].tolist() == [10.0]
    peaks = torch.tensor([float(world.rank), -float(world.rank)])
    world.max_([peaks])
    assert peaks.tolist() == [1.0, 0.0]
    assert world.agree(world.leads)  # the leading process says yes, the other one no
    assert not world.agree(not world.leads)
    assert torch.get_num_threads() == 1
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    world.sum_([torch.zeros(1)])  # both are ready to hear
    if world.leads:
        os.kill(os.getppid(), signal.SIGINT)  # as `kill -INT` of the command does
    deadline = time.monotonic() + 30
    while not received and time.monotonic() < deadline:
        time.sleep(0.01)
    (out / str(world.rank)).write_text(str(received))
    world.sum_([torch.zeros(1)])
    if world.leads:
        raise RecipeError("the disk is full", hint="make room")
    world.sum_([torch.zeros(1)])  # waits for a peer that is gone


def test_two_processes_reduce_agree_hear_signals_and_give_their_error_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RecipeError, match="the disk is full") as caught:
        launch(together, 2, 1, tmp_path)
    assert caught.value.hint == "make room"
    assert [(tmp_path / rank).read_text() for rank in "01"] == [f"[{signal.SIGTERM.value}]"] * 2
    assert signal.getsignal(signal.SIGINT) is before
