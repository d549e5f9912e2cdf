"""What the system says about memory, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

from baltoro.kernels import memory

NONE = Path("/nowhere")


def test_free_memory_is_what_the_kernel_says_or_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000 kB\nMemAvailable:    600 kB\n")
    assert memory.free(meminfo, tmp_path, NONE) == 600 * 1024
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\ninactive_file 50000\n")
    assert memory.free(meminfo, tmp_path, NONE) == 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(meminfo, tmp_path, NONE) == 600 * 1024


def test_limits_of_all_groups_around_the_process_hold(tmp_path: Path) -> None:
    """Version 1's tree: a folder a controller, the process in a group inside a group."""
    own = tmp_path / "own"
    own.write_text("5:memory:/a/b\n1:cpu:/elsewhere\n0::/\n")
    for group, limit, used in (("", 2**63 - 4096, 900_000), ("a", 700_000, 400_000), ("a/b", 600_000, 100_000)):
        folder = tmp_path / "memory" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 20000\n")
    assert memory.free(NONE, tmp_path, own) == 700_000 - 400_000 + 20_000
    (tmp_path / "memory" / "a" / "memory.limit_in_bytes").unlink()
    assert memory.free(NONE, tmp_path, own) == 600_000 - 100_000 + 20_000


def test_so_do_those_of_version_2(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/slice/unit\n")
    folder = tmp_path / "slice" / "unit"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("500000\n")
    (folder / "memory.current").write_text("100000\n")
    (folder / "memory.stat").write_text("inactive_file 0\n")
    assert memory.free(NONE, tmp_path, own) == 400_000
    own.write_text("0::/../../host/unit\n")  # what a container may be told
    (tmp_path / "memory.max").write_text("300000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    assert memory.free(NONE, tmp_path, own) == 200_000


def test_without_files_all_memory_counts_as_free(tmp_path: Path) -> None:
    assert memory.free(NONE, tmp_path, NONE) == memory.total() > 0


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    assert memory.last_cache(tmp_path) == 64 * 2**20  # nobody says
    for index, size in enumerate(["48K", "2048K", "36M", "odd"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert memory.last_cache(tmp_path) == 36 * 2**20
