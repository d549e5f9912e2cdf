"""Control groups as the kernel writes them, in a folder of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from baltoro.kernels import cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("3200000 100000", 8),
     ("", 8), ("garbage", 8), ("1 0", 8)],
)  # fmt: skip
def test_the_quota_of_a_v2_group_is_rounded_up(written: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(written)
    assert cpus.usable(tmp_path, tmp_path / "own") == expected


@pytest.mark.parametrize(("quota", "period", "expected"), [(-1, 100000, 8), (300000, 100000, 3), (10000, 100000, 1)])
def test_so_is_that_of_a_v1_group(quota: int, period: int, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(str(quota))
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(str(period))
    assert cpus.usable(tmp_path, tmp_path / "own") == expected


def test_without_control_groups_all_cpus_are_used_that_the_process_is_bound_to(tmp_path: Path) -> None:
    assert cpus.usable(tmp_path, tmp_path / "own") == 8


def test_the_smallest_quota_around_the_process_holds(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("300000 100000")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000")
    assert cpus.usable(tmp_path, tmp_path / "own") == 3
