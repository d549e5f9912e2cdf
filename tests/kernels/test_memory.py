"""What the system says about memory, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

from baltoro.kernels import memory


def test_free_memory_is_what_the_kernel_says_or_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000 kB\nMemAvailable:    600 kB\n")
    assert memory.free(meminfo, tmp_path) == 600 * 1024
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\ninactive_file 50000\n")
    assert memory.free(meminfo, tmp_path) == 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(meminfo, tmp_path) == 600 * 1024


def test_without_files_all_memory_counts_as_free(tmp_path: Path) -> None:
    assert memory.free(tmp_path / "none", tmp_path) == memory.total() > 0


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    assert memory.last_cache(tmp_path) == 64 * 2**20  # nobody says
    for index, size in enumerate(["48K", "2048K", "36M", "odd"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert memory.last_cache(tmp_path) == 36 * 2**20
