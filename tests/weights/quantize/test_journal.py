"""Stopped at any moment, the next run goes on and makes the bytes of one that was not."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baltoro.errors import BaltoroError, CheckpointError
from baltoro.model.load import load
from baltoro.weights.checkpoint import INDEX
from baltoro.weights.quantize import run, shard
from baltoro.weights.quantize.journal import STATE
from baltoro.weights.quantize.run import quantize
from tests.weights.quantize.sources import INTERRUPTED, files_of, source_of


def _quantize_in_child(src: str, directory: str, started: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # threads of many short runs wait for one another on a machine that is busy
    started()
    quantize(src, Path(directory), "int4")


def test_killed_at_twenty_moments_the_next_run_makes_the_same_bytes(tmp_path: Path) -> None:
    source_of(INTERRUPTED, tmp_path / "src", shard_bytes=500_000)
    quantize(str(tmp_path / "src"), tmp_path / "whole", "int4")
    expected = files_of(tmp_path / "whole")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "baltoro.weights.quantize.run"])

    def child(directory: Path, after_s: float | None) -> float:
        """Seconds that a run took that nobody killed."""
        started = processes.Event()
        process = processes.Process(
            target=_quantize_in_child, args=(str(tmp_path / "src"), str(directory), started.set)
        )
        process.start()
        assert started.wait(60)
        began = time.monotonic()
        if after_s is not None:
            time.sleep(after_s)
            process.kill()
        process.join(60)
        assert after_s is not None or process.exitcode == 0
        return time.monotonic() - began

    lasts_s = min(child(tmp_path / f"measured {number}", None) for number in range(2))
    moments = random.Random(0)
    kills = unfinished = 0
    while kills < 20:
        directory = tmp_path / f"{kills}"
        for _ in range(2):  # the second time, behind what the first has finished
            child(directory, moments.uniform(0, lasts_s))
            kills += 1
            if (directory / "config.json").exists():
                break
            unfinished += 1
            with pytest.raises(BaltoroError):
                load(directory)
        if not (directory / "config.json").exists() or (directory / STATE / "journal").exists():
            child(directory, None)
        found = files_of_all(directory)
        assert found == expected, kills
    assert unfinished >= 4  # that runs were killed, and not only processes that had ended


def files_of_all(directory: Path) -> dict[str, bytes]:
    """A run that was killed as it removed its own folder may leave that empty."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


class Stop(Exception):
    pass


def stop_after(count: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `count`th shard and all later ones fail in the middle."""
    original, begun = shard.write, 0

    def failing(path: Path, *args: object) -> object:
        nonlocal begun
        begun += 1
        if begun >= count:
            path.write_bytes(b"half")
            raise error
        return original(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(shard, "write", failing)


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError, "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), CheckpointError, "Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_what_fails_in_the_middle_leaves_no_checkpoint_and_is_finished_later(
    error: BaseException,
    raised: type[BaseException],
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source_of(INTERRUPTED, tmp_path / "src")
    with monkeypatch.context() as patch, pytest.raises(raised, match=message):
        stop_after(3, error, patch)
        quantize(str(tmp_path / "src"), tmp_path / "dir", "int4")
    assert [path.name for path in (tmp_path / "dir").iterdir()] == [STATE]
    assert not (tmp_path / "dir" / STATE / "model-00003-of-00005.safetensors").exists()
    with pytest.raises(BaltoroError):
        load(tmp_path / "dir")
    made = quantize(str(tmp_path / "src"), tmp_path / "dir", "int4")
    assert made.made_bytes < made.bytes
    whole = quantize(str(tmp_path / "src"), tmp_path / "whole", "int4")
    assert files_of(tmp_path / "dir") == files_of(tmp_path / "whole")
    assert made.errors == whole.errors


def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards of five are made; the source."""
    source_of(INTERRUPTED, tmp_path / "src", shard_bytes=500_000)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(4, Stop(), patch)
        quantize(str(tmp_path / "src"), tmp_path / "dir", "int4")
    return tmp_path / "src"


def test_a_shard_that_lost_bytes_and_a_torn_line_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = begun(tmp_path, monkeypatch)
    state = tmp_path / "dir" / STATE
    second, journal = state / "model-00002-of-00005.safetensors", state / "journal"
    second.write_bytes(second.read_bytes()[:-1])
    journal.write_bytes(journal.read_bytes()[:-20])
    quantize(str(src), tmp_path / "dir", "int4")
    quantize(str(src), tmp_path / "whole", "int4")
    assert files_of(tmp_path / "dir") == files_of(tmp_path / "whole")


def test_another_format_or_a_changed_source_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = begun(tmp_path, monkeypatch)
    with pytest.raises(CheckpointError, match=r"another format \(int4, not int8\)"):
        quantize(str(src), tmp_path / "dir", "int8")
    file = max(src.glob("*.safetensors"))
    file.rename(tmp_path / file.name)
    with pytest.raises(CheckpointError, match=rf"{file.name} is missing"):
        quantize(str(src), tmp_path / "dir", "int4")
    (tmp_path / file.name).rename(file)
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match=rf"{file.name} of .* has changed"):
        quantize(str(src), tmp_path / "dir", "int4")


def test_discarding_deletes_what_nothing_needs_and_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = source_of(INTERRUPTED, tmp_path / "src", shard_bytes=500_000)
    quantize(str(src), tmp_path / "whole", "int4")
    shards = len(list(src.glob("*.safetensors")))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(4, Stop(), patch)
        quantize(str(src), tmp_path / "dir", "int4", discard=True)
    assert 0 < len(list(src.glob("*.safetensors"))) < shards
    quantize(str(src), tmp_path / "dir", "int4", discard=True)
    assert files_of(tmp_path / "dir") == files_of(tmp_path / "whole")
    assert {path.name for path in src.iterdir()} == {"config.json", INDEX, "tiktoken.model"}


def test_a_single_source_shard_is_discarded_at_the_very_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = source_of(INTERRUPTED, tmp_path / "src")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(run._Run, "publish", lambda *_: (_ for _ in ()).throw(Stop()))
        quantize(str(src), tmp_path / "dir", "int4", discard=True)
    assert list(src.glob("*.safetensors"))
    quantize(str(src), tmp_path / "dir", "int4", discard=True)
    assert not list(src.glob("*.safetensors"))
