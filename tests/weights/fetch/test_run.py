"""A whole fetch against a server that behaves, and one that does not. The truth is always the served bytes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from baltoro.errors import FetchError
from baltoro.weights.fetch import run
from baltoro.weights.fetch.http import Patience
from tests.weights.fetch.serving import KB, PACE, REPO, Fault, Site, fetch_in_small_pieces, model, noise, serve, sums

SHARD = "model-2-of-3.safetensors"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


def read(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and ".fetch" not in path.parts
    }


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in (directory / ".fetch").rglob("*.part")]


def fetch_from(site: Site, directory: Path, **changes: Any) -> run.Summary:
    return run.fetch(site.mirror, directory, pace=run.Pace(**(asdict_flat(PACE) | changes)))


def asdict_flat(pace: run.Pace) -> dict[str, Any]:
    return {name: getattr(pace, name) for name in ("jobs", "patience", "request_bytes", "piece_bytes")}


def stop_in_the_middle(site: Site, directory: Path, when: str = SHARD, **changes: Any) -> None:
    """Fail once the shards have begun, as a network that is gone does."""
    site.faults = deque([Fault(drop_after=150 * KB)] * 4 + [Fault(status=503)] * 10_000)
    with pytest.raises(FetchError, match=r"no byte came in"):
        fetch_from(site, directory, patience=Patience(total_s=0.2, first_wait_s=0.01, longest_wait_s=0.05), **changes)
    site.faults.clear()
    assert leftovers(directory)


def test_a_mirror_with_sums_is_fetched_and_a_second_run_reads_and_asks_no_shard(tmp_path: Path) -> None:
    files = model()
    with serve(files | {"SHA256SUMS": sums(files)}) as site:
        first = fetch_from(site, tmp_path)
        assert read(tmp_path) == files
        assert leftovers(tmp_path) == []
        assert (first.files, first.fetched_files, first.unpublished) == (len(files), len(files), [])
        assert first.fetched_bytes == first.bytes == sum(map(len, files.values()))
        site.requests.clear()
        second = fetch_from(site, tmp_path)
        assert (second.files, second.fetched_files, second.fetched_bytes) == (len(files), 0, 0)
        assert site.sent(SHARD) == []


def test_a_mirror_without_sums_lists_by_the_index_and_says_what_is_not_compared(tmp_path: Path) -> None:
    files = model()
    with serve(files) as site:
        summary = fetch_from(site, tmp_path)
        assert read(tmp_path) == files
        assert sorted(summary.unpublished) == sorted(files)


def test_small_files_come_first() -> None:
    from baltoro.weights.fetch.journal import RemoteFile
    from baltoro.weights.fetch.sources import in_order

    names = ["model-10-of-61.safetensors", "model-2-of-61.safetensors", "config.json"]
    files = [RemoteFile(name=name, size=10 if name == "config.json" else 10**10) for name in names]
    assert [file.name for file in in_order(files)] == ["config.json", names[1], names[0]]


def test_one_large_file_is_shared_by_all_workers(tmp_path: Path) -> None:
    files = {"model.safetensors": noise(3000 * KB, 1), "config.json": b"{}"}
    with serve(files, chunk_s=0.001) as site:
        fetch_from(site, tmp_path)
        assert read(tmp_path) == files
        assert len(site.sent("model.safetensors")) >= 3000 // 256


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_the_number_of_jobs_changes_nothing(tmp_path: Path, jobs: int) -> None:
    files = model(5, 300 * KB)
    with serve(files | {"SHA256SUMS": sums(files)}) as site:
        fetch_from(site, tmp_path, jobs=jobs)
    assert read(tmp_path) == files


def test_a_directory_is_a_source(tmp_path: Path) -> None:
    files = model() | {"docs/deploy.md": b"# Deploy\n", "empty.txt": b""}
    for name, content in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    run.fetch(str(tmp_path / "source"), tmp_path / "copy", pace=PACE)
    assert read(tmp_path / "copy") == files
    with pytest.raises(FetchError, match="both the source and the target"):
        run.fetch(str(tmp_path / "source"), tmp_path / "source", pace=PACE)


# --- the hub ------------------------------------------------------------------------------------------------------


def test_the_hub_s_own_client_lists_and_signed_addresses_that_expire_are_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = model(2, 1500 * KB) | {"figures/table one.txt": b"scores"}
    with serve(files, token="hf_secret", uses_of_an_address=2) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.hub)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        summary = run.fetch(REPO, tmp_path, pace=PACE)
        assert read(tmp_path) == files
        assert (summary.source, summary.revision, summary.unpublished) == (REPO, site.sha, [])
        assert site.strangers == []  # the token stays with the hub
        assert max(site.uses.values()) > 2  # an address had expired
        assert run.fetch(f"{site.hub}/{REPO}", tmp_path, pace=PACE).fetched_files == 0


def test_a_new_commit_brings_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = model()
    with serve(files) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.hub)
        run.fetch(REPO, tmp_path, pace=PACE)
        site.files["config.json"] = b'{"model_type": "deepseek_v3"}'
        site.files[SHARD] = noise(len(files[SHARD]), 1234)
        site.sha = "1" * 40
        summary = run.fetch(REPO, tmp_path, pace=PACE)
        assert (summary.fetched_files, summary.revision) == (2, "1" * 40)
        assert read(tmp_path) == site.files


@pytest.mark.parametrize(
    ("repo", "revision", "says"),
    [
        (REPO, "no-such-branch", "no revision no-such-branch"),
        ("moonshotai/Kimi-K3", None, "no model moonshotai/Kimi-K3"),
        ("kimi", None, "expected OWNER/NAME"),
        ("nano", None, "nano is embedded, there is nothing to fetch"),
    ],
)
def test_what_the_hub_does_not_have_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str, revision: str | None, says: str
) -> None:
    with serve(model()) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.hub)
        with pytest.raises(FetchError, match=says):
            run.fetch(repo, tmp_path / "new", revision=revision, pace=PACE)
        assert not (tmp_path / "new").exists()


def test_a_gated_model_asks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(model(), token="hf_secret") as site:
        monkeypatch.setenv("HF_ENDPOINT", site.hub)
        with pytest.raises(FetchError, match="accept its terms") as error:
            run.fetch(REPO, tmp_path, pace=PACE)
        assert "HF_TOKEN" in error.value.hint


def test_a_hub_that_is_busy_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = model()
    with serve(files) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.hub)
        site.faults = deque([Fault(status=429, retry_after="0"), Fault(status=502)])
        run.fetch(REPO, tmp_path, pace=PACE)
        assert read(tmp_path) == files


# --- a network that fails -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connections_and_busy_servers_only_cost_time(tmp_path: Path, ranges: bool) -> None:
    files = model()
    faults = [Fault(drop_after=100_001), Fault(status=503, retry_after="0"), Fault(drop_after=0), Fault(status=429)]
    with serve(files | {"SHA256SUMS": sums(files)}, ranges=ranges, faults=deque(faults * 3)) as site:
        fetch_from(site, tmp_path)
        assert read(tmp_path) == files
        assert not site.faults


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    files = model(1, 100 * KB)
    with serve(files, faults=deque([Fault(status=503, retry_after="1")])) as site:
        began = time.monotonic()
        fetch_from(site, tmp_path)
        assert time.monotonic() - began >= 1.0
        site.files["model-1-of-1.safetensors"] = noise(9, 9)
        site.faults.append(Fault(status=429, retry_after="86400"))
        with pytest.raises(FetchError, match="asks to wait 1,440 minutes"):
            fetch_from(site, tmp_path)


@pytest.mark.parametrize("wrong_at", [0, 200_000, 700 * KB - 1])
def test_wrong_bytes_on_the_way_are_found_and_replaced(tmp_path: Path, wrong_at: int) -> None:
    files = model()
    with serve(files | {"SHA256SUMS": sums(files)}, faults=deque([Fault(wrong_at=wrong_at)])) as site:
        summary = fetch_from(site, tmp_path, jobs=1, request_bytes=1000 * KB)
        assert read(tmp_path) == files
        assert 0 < summary.repaired_bytes <= 512 * KB
        assert summary.fetched_bytes < summary.bytes + 701 * KB  # one shard, and of it no more than needed


def test_a_source_that_never_sends_what_it_publishes_is_given_up(tmp_path: Path) -> None:
    files = model(1)
    with serve(files | {"SHA256SUMS": sums(files)}, always_wrong_at=5) as site:
        with pytest.raises(FetchError, match="published is sha256:"):
            fetch_from(site, tmp_path)
        assert "model-1-of-1.safetensors" not in read(tmp_path)


def test_a_server_that_knows_no_head_is_asked_with_get(tmp_path: Path) -> None:
    files = model()
    with serve(files, head=False) as site:
        fetch_from(site, tmp_path)
    assert read(tmp_path) == files


def test_an_address_without_a_model_is_explained(tmp_path: Path) -> None:
    with serve({"index.html": b"<html>"}) as site, pytest.raises(FetchError, match="shows no model"):
        fetch_from(site, tmp_path)


def test_a_directory_that_is_not_there_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="nowhere: no such directory"):
        run.fetch(str(tmp_path / "nowhere"), tmp_path / "model", pace=PACE)
    assert not (tmp_path / "model").exists()


def test_a_name_that_leaves_the_directory_is_refused(tmp_path: Path) -> None:
    with (
        serve(model() | {"SHA256SUMS": b"0" * 64 + b"  ../../evil\n", "../../evil": b"x"}) as site,
        pytest.raises(FetchError, match="no name of a file inside"),
    ):
        fetch_from(site, tmp_path)


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
def test_what_had_arrived_is_not_fetched_again(tmp_path: Path, ranges: bool) -> None:
    files = model()
    with serve(files | {"SHA256SUMS": sums(files)}, ranges=ranges) as site:
        stop_in_the_middle(site, tmp_path)
        kept = (3 if ranges else 2) * (150 - 16) * KB  # a read that breaks may lose what it had, one may not have begun
        summary = fetch_from(site, tmp_path)
        assert read(tmp_path) == files
        assert leftovers(tmp_path) == []
        assert summary.fetched_bytes <= summary.bytes - kept


def test_bytes_that_rot_in_an_unfinished_file_are_fetched_again_and_only_they(tmp_path: Path) -> None:
    files = model(1, 1000 * KB)
    with serve(files) as site:  # nothing is published: our own journal has to find it
        site.faults = deque([Fault(drop_after=900 * KB)] + [Fault(status=503)] * 10_000)
        with pytest.raises(FetchError):
            fetch_from(
                site, tmp_path, jobs=1, request_bytes=2000 * KB, patience=Patience(total_s=0.1, first_wait_s=0.01)
            )
        site.faults.clear()
        (part,) = (tmp_path / ".fetch").glob("*.part")
        with part.open("r+b") as file:
            for at in (70_000, 400_000):
                file.seek(at)
                file.write(bytes(4))
        summary = fetch_from(site, tmp_path, jobs=1)
        assert read(tmp_path) == files
        assert summary.repaired_bytes == 2 * 64 * KB
        assert summary.fetched_bytes <= 2 * 64 * KB + (100 + 16) * KB


def test_a_source_that_changed_in_between_is_noticed(tmp_path: Path) -> None:
    files = model()
    with serve(files) as site:  # no digests: the ETag tells
        stop_in_the_middle(site, tmp_path)
        site.files = {name: content[::-1] if "of" in name else content for name, content in files.items()}
        fetch_from(site, tmp_path)
        assert read(tmp_path) == site.files
        site.files["config.json"] = site.files["config.json"].upper()
        assert fetch_from(site, tmp_path).fetched_files == 1
        assert read(tmp_path) == site.files


def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    name = "model-1-of-1.safetensors"
    with serve(model(1, 600 * KB)) as site:

        def change() -> None:
            while not site.sent(name):
                time.sleep(0.005)
            site.files[name] = noise(600 * KB, 7)
            site.held.clear()

        site.held.set()
        thread = threading.Thread(target=change)
        thread.start()
        with pytest.raises(FetchError, match="being changed"):
            fetch_from(site, tmp_path, jobs=1, request_bytes=100 * KB)
        thread.join()
        fetch_from(site, tmp_path)
        assert read(tmp_path) == site.files


def test_files_that_another_program_fetched_are_compared_and_kept(tmp_path: Path) -> None:
    files = model()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / SHARD).write_bytes(files[SHARD][:1000])
    with serve(files | {"SHA256SUMS": sums(files)}) as site:
        summary = fetch_from(site, tmp_path)
        assert (summary.fetched_files, summary.fetched_bytes) == (1, len(files[SHARD]))
        assert read(tmp_path) == files


@pytest.mark.parametrize("published", [True, False])
def test_killed_at_any_moment_it_goes_on(tmp_path: Path, published: bool) -> None:
    """kill -9 at ten random moments, with and without published digests: twenty in all."""
    files = model(4, 1000 * KB)
    chance = random.Random(published)
    forks = multiprocessing.get_context("forkserver")  # imports once
    forks.set_forkserver_preload(["tests.weights.fetch.serving"])
    with serve(files | ({"SHA256SUMS": sums(files)} if published else {}), chunk_s=0.03) as site:
        for _ in range(10):
            process = forks.Process(target=fetch_in_small_pieces, args=(site.mirror, str(tmp_path)))
            process.start()
            begun = len(site.requests)
            while len(site.requests) < begun + 20 and process.is_alive():  # the list is read, shards have begun
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.25))
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            there = read(tmp_path)  # a file with its own name is whole, at any moment
            assert there == {name: files[name] for name in there}
        site.chunk_s = 0
        fetch_in_small_pieces(site.mirror, str(tmp_path))
    assert {name: read(tmp_path)[name] for name in files} == files
    assert leftovers(tmp_path) == []


def test_ctrl_c_loses_nothing_and_says_how_to_go_on(tmp_path: Path) -> None:
    files = model(3, 700 * KB)
    with serve(files | {"SHA256SUMS": sums(files)}, hold_at=300 * KB) as site:
        site.held.set()  # the server falls silent in the middle: the workers hang in their reads
        command = [sys.executable, "-m", "baltoro", "fetch", site.mirror, str(tmp_path), "--jobs", "3"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        parts = [tmp_path / ".fetch" / f"{name}.part" for name in files if "of" in name]
        deadline = time.monotonic() + 60
        while not all(part.exists() and part.stat().st_size >= 240 * KB for part in parts):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert err.strip().splitlines()[-1] == "stopped; what has arrived is kept, the same command goes on"
        site.held.clear()
        summary = fetch_from(site, tmp_path)
        assert read(tmp_path) == files
        assert summary.fetched_bytes <= sum(map(len, files.values())) - 3 * 240 * KB


# --- the disk -----------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_before_the_first_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(model()) as site:
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=4096))
        with pytest.raises(FetchError, match=r"needs 2\.2 MB more, and its disk has 41\.0 kB free"):
            fetch_from(site, tmp_path)
        assert site.sent(SHARD) == []
        assert read(tmp_path) == {}


def test_a_disk_that_fills_up_is_explained_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, room, pwrite = model(), 1000 * KB, os.pwrite

    def write(descriptor: int, data: bytes, at: int) -> int:
        nonlocal room
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= len(data)
        return pwrite(descriptor, data, at)

    with serve(files | {"SHA256SUMS": sums(files)}) as site:
        monkeypatch.setattr(os, "pwrite", write)
        with pytest.raises(FetchError, match=r"the disk is full, .* are still to come"):
            fetch_from(site, tmp_path)
        there = read(tmp_path)
        assert there == {name: files[name] for name in there}
        monkeypatch.undo()
        fetch_from(site, tmp_path)
        assert read(tmp_path) == files


def test_a_directory_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with serve(model()) as site, pytest.raises(FetchError, match=r"file.*: (Not a directory|File exists)"):
        fetch_from(site, tmp_path / "file")


def test_two_fetches_do_not_mix_in_one_directory(tmp_path: Path) -> None:
    with serve(model()) as site, run._locked(tmp_path), pytest.raises(FetchError, match=f"process {os.getpid()}"):
        fetch_from(site, tmp_path)


# --- verify, choose -----------------------------------------------------------------------------------------------


def test_verify_finds_a_flipped_bit_offline_and_the_next_fetch_repairs_it(tmp_path: Path) -> None:
    files = model()
    with serve(files | {"SHA256SUMS": sums(files)}) as site:
        fetch_from(site, tmp_path)
        path = tmp_path / SHARD
        when = path.stat()
        with path.open("r+b") as file:
            file.seek(300_000)
            file.write(bytes([files[SHARD][300_000] ^ 1]))
        os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))  # bits rot without a new date
        site.requests.clear()
        verdict = run.verify(site.mirror, tmp_path, pace=PACE)
        assert verdict.wrong == {SHARD: "damaged, first between bytes 262,144 and 327,680"}
        assert site.requests == []
        summary = fetch_from(site, tmp_path)
        assert (summary.fetched_bytes, summary.repaired_bytes) == (64 * KB, 64 * KB)
        assert read(tmp_path) == files
        assert run.verify(site.mirror, tmp_path, pace=PACE).wrong == {}


def test_verify_names_what_is_missing_and_what_is_short(tmp_path: Path) -> None:
    files = model()
    with serve(files | {"SHA256SUMS": sums(files)}) as site:
        fetch_from(site, tmp_path)
        (tmp_path / "config.json").unlink()
        (tmp_path / SHARD).write_bytes(files[SHARD][:5000])
        wrong = run.verify(site.mirror, tmp_path, pace=PACE).wrong
        assert wrong == {"config.json": "missing", SHARD: f"5,000 bytes, expected {len(files[SHARD]):,}"}
        fetch_from(site, tmp_path)
        assert read(tmp_path) == files


def test_verify_asks_the_source_for_files_that_came_another_way(tmp_path: Path) -> None:
    files = model()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with serve(files | {"SHA256SUMS": sums(files)}) as site:
        assert run.verify(site.mirror, tmp_path, pace=PACE).wrong == {}
        assert site.sent(SHARD) == []


def test_patterns_choose_and_one_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    files = model()
    with serve(files) as site:
        run.fetch(site.mirror, tmp_path, include=["*.safetensors", "config*"], exclude=["model-3*"], pace=PACE)
        assert sorted(read(tmp_path)) == ["config.json", "model-1-of-3.safetensors", "model-2-of-3.safetensors"]
        with pytest.raises(FetchError, match=r"called '\*\.gguf'"):
            run.fetch(site.mirror, tmp_path, include=["*.gguf"], pace=PACE)


def test_the_command_prints_one_object_and_its_status_tells_of_damage(tmp_path: Path) -> None:
    files = model(1, 100 * KB)
    with serve(files | {"SHA256SUMS": sums(files)}) as site:
        command = [sys.executable, "-m", "baltoro", "fetch", site.mirror, str(tmp_path)]
        printed = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
        assert json.loads(printed)["fetched_files"] == len(files)
        (tmp_path / "config.json").write_text("{}")
        result = subprocess.run([*command, "--verify"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "config.json: 2 bytes, expected 26" in result.stdout
    assert "without --verify repairs" in result.stderr
