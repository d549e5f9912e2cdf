"""This machine as the planner sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baltoro.doctor import here
from baltoro.kernels import cpus, memory
from baltoro.kernels.formats import FORMATS
from baltoro.plan.machine import catalogue

GPUS = catalogue().gpus


def test_the_measured_product_is_int8s() -> None:
    assert FORMATS[here.INT8] == "int8"


def test_what_is_measured_is_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "SCRATCH_BYTES", 2**26)
    monkeypatch.setattr(here, "DISK_BYTES", 2**24)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    said: list[str] = []
    found = here.machine(tmp_path, GPUS, said.append)
    assert (found.ram_bytes, found.cores, found.gpu) == (memory.total(), cpus.usable(), None)
    assert found.ram_bandwidth > 1e8
    assert found.disk_bandwidth > 1e5
    assert found.flops is None or found.flops > 1e8
    assert not list(tmp_path.iterdir()), "the file is gone"
    assert any(str(tmp_path) in line for line in said), "that something is written is said"


def test_a_full_disk_is_not_written_to(tmp_path: Path) -> None:
    assert here.disk_bandwidth(tmp_path, 2**60) is None


def test_what_is_read_is_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece, once, each at its own place."""
    seen: list[tuple[int, int]] = []
    read = os.preadv

    def noted(descriptor: int, places: list[memoryview], offset: int) -> int:
        seen.append((offset, read(descriptor, places, offset)))
        return seen[-1][1]

    monkeypatch.setattr(os, "preadv", noted)
    assert here.disk_bandwidth(tmp_path, 3 * here.PIECE)
    assert sorted(seen) == [(piece * here.PIECE, here.PIECE) for piece in range(3) for _ in range(2)]


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["NVIDIA H100 80GB HBM3"] * 8, ("H100", 8, None)),
        (["NVIDIA GeForce RTX 4090"], ("RTX-4090", 1, None)),
        (["NVIDIA RTX PRO 6000 Blackwell Workstation Edition"] * 2, ("RTX-PRO-6000", 2, None)),
        (["NVIDIA H200"], ("H200", 1, None)),
        (["NVIDIA H20"], ("H20", 1, None)),
        (["Tesla T4"], (None, 0, "Tesla T4")),
        ([], (None, 0, None)),
    ],
)
def test_gpus_are_known_by_nvidia_smis_names(
    lines: list[str], expected: tuple[str | None, int, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    card, count, unknown = here.gpus_here(GPUS)
    assert (card and card.name, count, unknown) == expected
