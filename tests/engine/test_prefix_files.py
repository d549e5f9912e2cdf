from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from baltoro.engine.prefix import ROOT, digest
from baltoro.engine.prefix_files import PageShape, PrefixFiles
from baltoro.errors import EngineError

SHAPE = PageShape(fingerprint=b"f" * 32, page_tokens=3, page_bytes=5000)
ROOMY = 100 * SHAPE.file_bytes


def latents(seed):
    return np.random.default_rng(seed).integers(0, 256, (2, 3, 2500 // 3 + 1), dtype=np.uint8).reshape(-1)[:5000]


def opened(directory, shape=SHAPE, budget_bytes=ROOMY):
    return PrefixFiles(directory, shape, budget_bytes=budget_bytes)


def fill(files, count):
    """A chain of pages, the last one first, as they are evicted. Their names in the order of positions."""
    names, pages, parent = [], [], ROOT
    for index in range(count):
        ids = (index, 7, 160_000)
        pages.append((parent, ids, latents(index)))
        parent = digest(parent, ids)
        names.append(parent)
    for page in reversed(pages):
        files.write(*page)
    return names


def content(files, name):
    return np.frombuffer(files.path(name).read_bytes(), dtype=np.uint8)


def test_what_was_written_is_there_for_the_next_process(tmp_path):
    first = opened(tmp_path)
    names = fill(first, 4)
    first.close()
    again = opened(tmp_path)
    assert len(again) == 4
    for index, name in enumerate(names):
        assert name in again
        found = content(again, name)
        assert again.problem(found, name) is None
        assert (found[SHAPE.header_bytes :] == latents(index)).all()
    assert digest(ROOT, (9, 9, 9)) not in again
    again.close()


def test_the_longest_unused_ones_make_room_and_a_smaller_budget_removes_them(tmp_path):
    files = opened(tmp_path, budget_bytes=4 * SHAPE.file_bytes + 5)
    names = fill(files, 4)  # the last position is the oldest
    files.touch([names[3]])
    files.write(ROOT, (8, 8, 8), latents(8))
    new = digest(ROOT, (8, 8, 8))
    assert [name in files for name in (*names, new)] == [True, True, False, True, True]
    files.close()
    stamps = {name: files.path(name).stat().st_mtime_ns for name in (names[1], names[0], names[3], new)}
    assert sorted(stamps, key=stamps.__getitem__) == list(stamps)
    files = opened(tmp_path, budget_bytes=2 * SHAPE.file_bytes)
    assert [name in files for name in (*names, new)] == [False, False, False, True, True]
    assert len(list(files.folder.glob("*.page"))) == 2
    files.close()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw[:-1], "cut off"),
        (lambda raw: b"", "cut off"),
        (lambda raw: raw + b"x", "cut off"),
        (lambda raw: b"baltoro0" + raw[8:], "version"),
        (lambda raw: raw[:10] + b"g" + raw[11:], "another model"),
        (lambda raw: raw[:50] + bytes([raw[50] ^ 1]) + raw[51:], "ids"),
        (lambda raw: raw[:90] + bytes([raw[90] ^ 16]) + raw[91:], "ids"),
    ],
)
def test_a_file_that_cannot_be_used_is_removed_at_the_start_with_a_line_that_says_why(tmp_path, caplog, damage, reason):
    files = opened(tmp_path)
    names = fill(files, 3)
    files.close()
    path = files.path(names[1])
    path.write_bytes(damage(path.read_bytes()))
    (files.folder / "notes.txt").write_text("not ours")
    again = opened(tmp_path)
    assert [name in again for name in names] == [True, False, True]
    assert not path.exists()
    assert (files.folder / "notes.txt").exists()
    assert len(caplog.records) == 1
    assert "1 files are discarded" in caplog.text and reason in caplog.text
    again.close()


def test_files_of_another_model_go_with_one_line_for_all_of_them(tmp_path, caplog):
    files = opened(tmp_path)
    fill(files, 5)
    files.close()
    other = opened(tmp_path, PageShape(fingerprint=b"g" * 32, page_tokens=3, page_bytes=5000))
    assert len(other) == 0
    assert not list(files.folder.glob("*.page"))
    assert [record.getMessage().count("5 files") for record in caplog.records] == [1]
    other.close()


def test_every_flipped_bit_of_a_page_is_noticed(tmp_path):
    files = opened(tmp_path)
    (name,) = fill(files, 1)
    whole = content(files, name)
    used = 8 + 32 + 32 + 4 + 8 + 4 + 3 * 4  # the header's own, behind which zeros lie
    for place in [*range(used), *range(SHAPE.header_bytes, len(whole), 97), len(whole) - 1]:
        damaged = whole.copy()
        damaged[place] ^= 1 << place % 8
        assert files.problem(damaged, name) is not None, place
    assert files.problem(whole, digest(name, (0, 7, 160_000))) is not None, "another's content under its name"
    files.close()


def test_two_processes_do_not_share_a_directory(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(EngineError, match=f"another prefix cache .process {os.getpid()}."):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_a_budget_below_one_page_and_a_directory_that_is_a_file_are_refused(tmp_path):
    with pytest.raises(EngineError, match="one page takes"):
        opened(tmp_path, budget_bytes=SHAPE.file_bytes - 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be written"):
        opened(tmp_path / "file")


def killed_at(call, directory):
    """Write three pages in a child that is killed at its `call`-th call of the system; how many calls it made."""
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(name):
            original = getattr(os, name)

            def wrapper(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == call:
                    if name == "write":
                        original(args[0], memoryview(args[1])[: len(args[1]) // 2])  # a torn write
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            setattr(os, name, wrapper)

        for name in ("write", "fsync", "replace", "unlink", "posix_fadvise", "rename"):
            counted(name)
        try:
            fill(opened(directory, budget_bytes=2 * SHAPE.file_bytes), 3)  # so that one is removed, too
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_writer_killed_at_any_moment_leaves_whole_pages_only(tmp_path, caplog):
    call, left = 1, set()
    while killed_at(call, tmp_path / str(call)):
        files = opened(tmp_path / str(call), budget_bytes=2 * SHAPE.file_bytes)
        there = sorted(files.folder.glob("*.page*"))
        assert len(there) == len(files) <= 2
        for path in there:
            assert files.problem(content(files, bytes.fromhex(path.stem)), bytes.fromhex(path.stem)) is None
        left.add(len(there))
        assert len(fill(files, 3)) == 3  # and goes on
        assert len(files) == 2
        files.close()
        call += 1
    assert call > 12, "this tests nothing"
    assert left == {0, 1, 2}
    assert not caplog.records, "nothing was damaged"
