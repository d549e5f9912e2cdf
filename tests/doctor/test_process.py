"""What the system says, from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from baltoro.doctor.process import look, queued_s
from baltoro.kernels.targets import targets


def test_a_process_is_read_from_the_system_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, huge = tmp_path / "proc", tmp_path / "enabled"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "status").write_text("Name:\tbaltoro\nRssAnon:\t    2048 kB\nVmSwap:\t       0 kB\nThreads:\t9\n")
    (proc / "self" / "smaps_rollup").write_text("5600-7ffe ---p 00000000 [rollup]\nAnonHugePages:     1024 kB\n")
    (proc / "meminfo").write_text("MemFree:  9 kB\nCached:          77 kB\nHugePages_Total:       0\n")
    huge.write_text("always [madvise] never\n")
    monkeypatch.setenv("BALTORO_CPU", "scalar")
    found = look(proc, huge)
    assert (found.anonymous_bytes, found.swapped_bytes, found.huge_bytes) == (2048 * 1024, 0, 1024 * 1024)
    assert (found.page_cache_bytes, found.huge_pages, found.forced_target) == (77 * 1024, "madvise", "scalar")
    assert found.best_target == targets()[-1]
    assert 1 <= found.usable_cpus <= found.cpus and found.free_bytes <= found.ram_bytes


def test_a_system_that_says_nothing_is_no_error(tmp_path: Path) -> None:
    found = look(tmp_path, tmp_path / "none")
    assert (found.anonymous_bytes, found.swapped_bytes, found.huge_bytes, found.huge_pages) == (None,) * 4


def test_threads_that_wait_for_a_cpu_are_summed(tmp_path: Path) -> None:
    for name, line in (("1", "5 1500000000 2\n"), ("2", "0 500000000 1\n"), ("3", "")):
        (tmp_path / "self" / "task" / name).mkdir(parents=True)
        (tmp_path / "self" / "task" / name / "schedstat").write_text(line)
    assert queued_s(tmp_path) == 2.0
    assert queued_s(tmp_path / "none") is None
