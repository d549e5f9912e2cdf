"""Asynchronous reads: the bytes are the file's, and nothing is called whole that is not."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from baltoro.errors import BaltoroError, ReadError
from baltoro.kernels import reader
from baltoro.kernels.reader import UNIT, Reader, memory
from baltoro.kernels.slab import Slab
from baltoro.kernels.targets import targets

BACKENDS = reader.backends() if targets()[1:] else ()
pytestmark = pytest.mark.skipif(not BACKENDS, reason="the native kernels were not built")
SIZE = 800 * UNIT + 1234  # the last unit is cut by the end
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("reader") / "bytes"
    file.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return file


@pytest.fixture(scope="module")
def truth(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def slow_pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def descriptor_of(path: Path) -> int:
    """The number under which this process holds a file open."""
    for entry in Path("/proc/self/fd").iterdir():
        if os.path.realpath(entry) == str(path.resolve()):
            return int(entry.name)
    raise AssertionError(f"{path} is not open")


def hold(reading: Reader, path: Path, pipe: tuple[int, int]) -> reader.File:
    """A file whose reads do not come before somebody writes to the pipe: its descriptor becomes the pipe's."""
    file = reading.open(path, direct=False)
    os.dup2(pipe[0], descriptor_of(path))
    return file


def contents(tensor: Tensor, nbytes: int | None = None) -> bytes:
    return tensor.numpy().tobytes()[:nbytes]


@pytest.mark.parametrize("direct", [True, False])
@shared
@given(
    ranges=st.lists(st.tuples(st.integers(0, 800), st.integers(0, 90)), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    piece=st.integers(1, 20),
    depth=st.integers(1, 8),
)
def test_ranges_in_any_order_are_the_bytes_of_the_file(
    ranges: list[tuple[int, int]], order, piece: int, depth: int, direct: bool, backend: str, path: Path, truth: bytes
) -> None:
    with Reader(backend, piece_bytes=piece * UNIT, depth=depth) as reading:
        file = reading.open(path, direct=direct)
        wanted = []
        for first, count in ranges:
            nbytes = min(count * UNIT, SIZE - first * UNIT)
            destination = memory(nbytes).fill_(7)
            wanted.append((first * UNIT, nbytes, reading.submit(file, first * UNIT, destination, nbytes)))
        order.shuffle(wanted)
        for offset, nbytes, ticket in wanted:
            ticket.wait()
            assert ticket.finished
            assert contents(ticket.destination, nbytes) == truth[offset : offset + nbytes]
        found = reading.statistics()
    assert (found.backend, found.reads, found.failed) == (backend, len(ranges), 0)
    assert found.bytes == sum(nbytes for _, nbytes, _ in wanted)
    assert (found.direct_files, found.buffered_files) == ((1, 0) if file.direct else (0, 1))
    assert file.direct <= direct


def test_a_slab_takes_a_block_from_between_others(backend: str, path: Path, truth: bytes) -> None:
    slab = Slab(64 * UNIT)
    before, block, after = (slab.cut((n * UNIT,), torch.uint8) for n in (3, 50, 11))
    with Reader(backend, piece_bytes=4 * UNIT) as reading:
        reading.submit(reading.open(path), 17 * UNIT, block).wait()
    assert contents(block) == truth[17 * UNIT : 67 * UNIT]
    assert not before.any()
    assert not after.any()


def test_a_file_that_ends_early_is_an_error_of_that_ticket_alone(backend: str, path: Path, truth: bytes) -> None:
    with Reader(backend, piece_bytes=2 * UNIT) as reading:
        file = reading.open(path)
        good = reading.submit(file, 0, memory(10 * UNIT))
        cut = reading.submit(file, 796 * UNIT, memory(5 * UNIT))
        beyond = reading.submit(file, 900 * UNIT, memory(UNIT))
        last = reading.submit(file, 799 * UNIT, memory(2 * UNIT), UNIT + 1234)
        for _ in range(2):  # the same at every call
            with pytest.raises(ReadError, match=rf"bytes: 20480 bytes at {796 * UNIT} .* ends at byte {SIZE}"):
                cut.wait()
        with pytest.raises(ReadError, match=f"{900 * UNIT}"):
            beyond.wait()
        good.wait()
        last.wait()
        assert contents(good.destination) == truth[: 10 * UNIT]
        assert contents(last.destination, UNIT + 1234) == truth[799 * UNIT :]
        with pytest.raises(ReadError, match="20480 bytes"):
            reading.wait([good, cut, last, beyond])
        found = reading.statistics()
    assert (found.reads, found.failed, found.bytes) == (2, 2, 11 * UNIT + 1234)


def test_a_file_that_is_cut_while_it_is_open_is_an_error(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "cut"
    file.write_bytes(bytes(100 * UNIT))
    with Reader(backend) as reading:
        opened = reading.open(file)
        opened.check()
        os.truncate(file, 40 * UNIT)
        with pytest.raises(ReadError, match="ends at byte 163840"):
            reading.submit(opened, 0, memory(100 * UNIT)).wait()
        with pytest.raises(ReadError, match="it has 163840 bytes now and had 409600"):
            opened.check()


def test_a_replaced_file_is_noticed_and_the_old_one_read_on(backend: str, tmp_path: Path) -> None:
    file, new = tmp_path / "model", tmp_path / "new"
    file.write_bytes(b"a" * UNIT)
    new.write_bytes(b"b" * UNIT)
    with Reader(backend) as reading:
        opened = reading.open(file)
        new.replace(file)
        with pytest.raises(ReadError, match="another file has its name now"):
            opened.check()
        ticket = reading.submit(opened, 0, memory(UNIT))
        ticket.wait()
        assert contents(ticket.destination) == b"a" * UNIT


def test_a_file_that_was_written_to_is_noticed(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(bytes(UNIT))
    with Reader(backend) as reading:
        opened = reading.open(file)
        os.utime(file, ns=(1, 1))
        with pytest.raises(ReadError, match="it was written to"):
            opened.check()


def test_a_deleted_directory_is_noticed_and_open_files_are_read_on(backend: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "shard").write_bytes(b"a" * UNIT)
    with Reader(backend) as reading:
        opened = reading.open(folder / "shard")
        shutil.rmtree(folder)
        with pytest.raises(ReadError, match="No such file"):
            opened.check()
        ticket = reading.submit(opened, 0, memory(UNIT))
        ticket.wait()
        assert contents(ticket.destination) == b"a" * UNIT
        with pytest.raises(ReadError, match="shard cannot be opened: No such file"):
            reading.open(folder / "shard")


@pytest.mark.skipif(sys.platform != "linux", reason="finds descriptors in /proc")
def test_what_the_kernel_refuses_reaches_the_waiter(backend: str, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(UNIT))
    with Reader(backend) as reading:
        good, bad = reading.open(path), reading.open(other)
        number = descriptor_of(other)
        os.dup2(os.open(tmp_path, os.O_RDONLY), number)  # a directory cannot be read
        ticket = reading.submit(bad, 0, memory(UNIT))
        with pytest.raises(ReadError, match=rf"other: 4096 bytes at 0 .*{os.strerror(errno.EISDIR)}"):
            ticket.wait()
        reading.submit(good, 0, memory(UNIT)).wait()


@pytest.fixture
def other_drive(path: Path) -> Iterator[Path]:
    """A file on another device than `path`."""
    memory_files = Path("/dev/shm")
    if "uring" not in BACKENDS or not memory_files.is_dir() or memory_files.stat().st_dev == path.stat().st_dev:
        pytest.skip("needs a second device, and io_uring: preads of pipes fail at once")
    file = memory_files / f"baltoro-test-{os.getpid()}"
    file.write_bytes(bytes(64 * UNIT))
    yield file
    file.unlink()


def test_a_drive_that_hangs_holds_up_no_other_and_is_not_called_finished(
    path: Path, other_drive: Path, slow_pipe: tuple[int, int]
) -> None:
    with Reader("uring", piece_bytes=UNIT, depth=2) as reading:
        slow = reading.submit(hold(reading, other_drive, slow_pipe), 0, memory(3 * UNIT))
        time.sleep(0.1)  # as much of it is under way as may be
        reading.submit(reading.open(path), 0, memory(100 * UNIT)).wait()
        assert not slow.finished
        os.write(slow_pipe[1], b"x" * 3 * UNIT)
        slow.wait()
        assert contents(slow.destination) == b"x" * 3 * UNIT
        assert reading.statistics().busy_s > 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="finds descriptors in /proc")
def test_close_waits_for_pieces_in_flight_and_fails_what_is_not_whole(
    tmp_path: Path, slow_pipe: tuple[int, int]
) -> None:
    if "uring" not in BACKENDS:
        pytest.skip("preads of pipes fail at once")
    other = tmp_path / "other"
    other.write_bytes(bytes(64 * UNIT))
    reading = Reader("uring", piece_bytes=UNIT, depth=2)
    ticket = reading.submit(hold(reading, other, slow_pipe), 0, memory(64 * UNIT))
    time.sleep(0.2)  # two pieces are on their way
    closing = threading.Thread(target=reading.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    os.write(slow_pipe[1], b"x" * 2 * UNIT)
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(ReadError, match="the reader was closed"):
        ticket.wait()


def test_after_close_everything_is_finished_and_nothing_begins(backend: str, path: Path, truth: bytes) -> None:
    for _ in range(20):
        reading = Reader(backend, piece_bytes=UNIT, depth=3)
        file = reading.open(path)
        tickets = [reading.submit(file, 0, memory(700 * UNIT)) for _ in range(4)]
        reading.close()
        reading.close()
        for ticket in tickets:
            assert ticket.finished
            try:
                ticket.wait()
            except ReadError as error:
                assert "the reader was closed" in error.message
            else:
                assert contents(ticket.destination) == truth[: 700 * UNIT]
        with pytest.raises(ReadError, match="the reader is closed"):
            reading.submit(file, 0, memory(UNIT))
        with pytest.raises(ReadError, match="the reader is closed"):
            reading.open(path)


def test_a_dropped_ticket_keeps_its_memory_until_the_bytes_are_there(backend: str, path: Path) -> None:
    reading = Reader(backend, piece_bytes=UNIT, depth=1)
    file = reading.open(path)
    for _ in range(30):
        reading.submit(file, 0, memory(200 * UNIT))
        gc.collect()
    del reading, file
    gc.collect()


def test_many_threads_wait_for_the_same_and_for_their_own(backend: str, path: Path, truth: bytes) -> None:
    wrong: list[object] = []
    with Reader(backend, piece_bytes=3 * UNIT) as reading:
        file = reading.open(path)
        common = reading.submit(file, 0, memory(790 * UNIT))

        def work(number: int) -> None:
            for turn in range(20):
                offset = (number * 20 + turn) * UNIT
                ticket = reading.submit(file, offset, memory(40 * UNIT))
                reading.wait([ticket, common])
                if contents(ticket.destination) != truth[offset : offset + 40 * UNIT]:
                    wrong.append((number, turn))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert reading.statistics().reads == 16 * 20 + 1
    assert not wrong


def test_waiting_releases_the_interpreter_and_costs_nothing(tmp_path: Path, slow_pipe: tuple[int, int]) -> None:
    if "uring" not in BACKENDS:
        pytest.skip("preads of pipes fail at once")
    other = tmp_path / "other"
    other.write_bytes(bytes(UNIT))
    with Reader("uring") as reading:
        ticket = reading.submit(hold(reading, other, slow_pipe), 0, memory(UNIT))
        threading.Timer(0.5, os.write, (slow_pipe[1], b"x" * UNIT)).start()
        before, began = time.process_time(), time.monotonic()
        ticket.wait()
        assert time.monotonic() - began > 0.4
        assert time.process_time() - before < 0.1


def test_ctrl_c_ends_a_wait(tmp_path: Path) -> None:
    if "uring" not in BACKENDS:
        pytest.skip("preads of pipes fail at once")
    (tmp_path / "other").write_bytes(bytes(UNIT))
    code = """
import os, sys, threading, signal
from pathlib import Path
from baltoro.kernels.reader import *
from tests.kernels.test_reader import hold
pipe = os.pipe()
reading = Reader("uring")
ticket = reading.submit(hold(reading, Path(sys.argv[1]), pipe), 0, memory(UNIT))
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    ticket.wait()
except KeyboardInterrupt:
    print("stopped")
os.write(pipe[1], b"x" * UNIT)
"""
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "other")], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert (found.stdout, found.stderr, found.returncode) == ("stopped\n", "", 0)


def test_a_process_ends_while_reads_are_under_way(backend: str, path: Path) -> None:
    code = """
import sys
from baltoro.kernels.reader import *
reading = Reader(sys.argv[1], piece_bytes=UNIT, depth=2)
file = reading.open(sys.argv[2])
tickets = [reading.submit(file, 0, memory(700 * UNIT)) for _ in range(8)]
raise SystemExit(3)
"""
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code, backend, str(path)], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert (found.returncode, found.stderr) == (3, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_is_refused_and_can_end(backend: str, path: Path) -> None:
    code = """
import os, sys
from baltoro.errors import ReadError
from baltoro.kernels.reader import *
reading = Reader(sys.argv[1])
file = reading.open(sys.argv[2])
if os.fork() == 0:
    try:
        reading.submit(file, 0, memory(UNIT))
    except ReadError as error:
        print(error.message.rpartition(": ")[2], flush=True)
    reading.close()
    del reading, file
    os._exit(0)
os.wait()
reading.submit(file, 0, memory(UNIT)).wait()
print("parent reads on")
"""
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code, backend, str(path)], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert found.stdout == "the reader belongs to the process that was forked\nparent reads on\n", found.stderr


@pytest.mark.parametrize(
    "offset, begin, size, nbytes, said",
    [
        (1, 0, UNIT, None, "offset 1 is no multiple of 4096"),
        (-UNIT, 0, UNIT, None, "offset -4096"),
        (512, 0, UNIT, None, "offset 512"),
        (0, 64, UNIT, None, "address"),
        (0, 0, UNIT - 1, None, "size of the destination 4095"),
        (0, 0, UNIT, UNIT + 1, "4097 bytes at 0 for a destination of 4096"),
        (0, 0, UNIT, -1, "-1 bytes"),
        (2**62, 0, UNIT, None, "4096 bytes at 4611686018427387904"),
    ],
)
def test_what_is_not_aligned_is_refused_at_the_door(
    offset: int, begin: int, size: int, nbytes: int | None, said: str, path: Path
) -> None:
    with Reader() as reading, pytest.raises(ReadError, match=said):
        reading.submit(reading.open(path), offset, memory(3 * UNIT)[begin : begin + size], nbytes)


def test_memory_with_gaps_is_refused(path: Path) -> None:
    with Reader() as reading, pytest.raises(ReadError, match=r"strides \(8192,\)"):
        reading.submit(reading.open(path), 0, memory(8 * UNIT)[:: 2 * UNIT])


def test_what_is_no_file_is_refused(tmp_path: Path, backend: str) -> None:
    with Reader(backend) as reading:
        with pytest.raises(ReadError, match="Is a directory"):
            reading.open(tmp_path)
        with pytest.raises(ReadError, match="Invalid argument"):
            reading.open("/dev/zero")


def test_an_empty_range_is_there_at_once(backend: str, path: Path) -> None:
    with Reader(backend) as reading:
        ticket = reading.submit(reading.open(path), 0, memory(0))
        assert ticket.finished
        ticket.wait()


def test_where_io_uring_is_refused_threads_read() -> None:
    if "uring" not in BACKENDS:
        pytest.skip("it is refused here anyway")
    code = """
import os, resource, sys
from baltoro.errors import BaltoroError
from baltoro.kernels.reader import *
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # a ring is a descriptor
reading = Reader()
try:
    Reader("uring")
except BaltoroError as error:
    print(error.message)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
reading.submit(reading.open(sys.argv[1]), 0, memory(0)).wait()
print(reading.statistics().backend)
"""
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, cwd=root, timeout=60)
    assert found.stdout == "the reader 'uring' does not run here: Too many open files\nthreads\n", found.stderr


def test_the_environment_names_one_and_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALTORO_READER", "threads")
    with Reader() as reading:
        assert reading.statistics().backend == "threads"
    monkeypatch.setenv("BALTORO_READER", "aio")
    with pytest.raises(BaltoroError, match="BALTORO_READER is 'aio', expected one of uring, threads"):
        Reader()
    monkeypatch.delenv("BALTORO_READER")
    with Reader() as reading:
        assert reading.statistics().backend == BACKENDS[0]
    with pytest.raises(BaltoroError, match="pieces of 1000 bytes"):
        Reader(piece_bytes=1000)
    with pytest.raises(BaltoroError, match="0 at a time"):
        Reader(depth=0)
