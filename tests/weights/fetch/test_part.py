"""One file under every order of arrival, breaks, crashes and rot. The truth is the bytes of the source."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from baltoro.errors import FetchError
from baltoro.weights.fetch import check
from baltoro.weights.fetch.digest import Digest
from baltoro.weights.fetch.journal import RemoteFile
from baltoro.weights.fetch.part import Lease, Part, Stopped
from tests.weights.fetch.serving import KB, noise

PIECE = 4 * KB
CONTENT = noise(100 * KB + 7, 1)
SHA256 = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())
GIT = Digest("git-sha1", hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest())


def open_part(directory: Path, digest: Digest | None = SHA256, size: int = len(CONTENT)) -> Part:
    file = RemoteFile(name="model.safetensors", size=size, digest=digest, version="1")
    part = Part(directory, file, say=lambda _: None, piece_bytes=PIECE)
    part.open()
    part.ranged = True
    return part


def fill(part: Part, lease: Lease, count: int | None = None, content: bytes = CONTENT) -> None:
    end = lease.end if count is None else min(lease.end, lease.at + count)
    while lease.at < end:
        lease.write(content[lease.at : min(end, lease.at + 1000)])


def complete(part: Part) -> int:
    """Fetch all that is missing; how many bytes that were."""
    fetched = 0
    while not part.finish():
        lease = part.lease(10 * KB)
        assert lease is not None
        fill(part, lease)
        fetched += lease.end - lease.start
        part.release(lease)
        part.advance()
    return fetched


@pytest.mark.parametrize("digest", [SHA256, GIT, None], ids=["sha256", "git", "unpublished"])
@pytest.mark.parametrize("seed", range(25))
def test_any_history_ends_in_the_source_s_bytes(tmp_path: Path, seed: int, digest: Digest | None) -> None:
    """Leases taken and broken in any order, runs stopped or killed, bytes rotting between runs."""
    chance = random.Random(seed)
    part = open_part(tmp_path, digest)
    for _ in range(12):
        leases: list[Lease] = []
        for _ in range(chance.randint(1, 6)):
            if (lease := part.lease(chance.randint(1, 30 * KB))) is not None:
                leases.append(lease)
        chance.shuffle(leases)
        for lease in leases:
            fill(part, lease, chance.choice([None, chance.randint(0, 20 * KB)]))
            if chance.random() < 0.8:
                part.release(lease)
                part.advance()
        match chance.randint(0, 3):
            case 0:  # kill -9: what is not in the journal is forgotten
                part = open_part(tmp_path, digest)
            case 1:  # Ctrl-C
                part.close()
                part = open_part(tmp_path, digest)
            case 2 if part.path.stat().st_size:
                with part.path.open("r+b") as disk:
                    disk.seek(chance.randrange(part.path.stat().st_size))
                    disk.write(b"rot")
                part = open_part(tmp_path, digest)
            case _:
                for lease in leases:
                    if lease in part._leases:
                        part.release(lease)
                part.advance()
        if part.finish():
            break
    if not part.complete:
        part = open_part(tmp_path, digest)
        complete(part)
    assert (tmp_path / "model.safetensors").read_bytes() == CONTENT
    assert check.is_recorded(tmp_path, part.file)
    assert check.verdict(tmp_path, part.file) is None


def test_bytes_in_order_are_hashed_once_and_none_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = open_part(tmp_path)
    monkeypatch.setattr(check, "blocks", lambda *_: pytest.fail("read back"))
    complete(part)
    assert part.complete


def test_a_closed_lease_writes_nothing_more(tmp_path: Path) -> None:
    part = open_part(tmp_path)
    lease = part.lease(10 * KB)
    assert lease is not None
    lease.write(CONTENT[:5000])
    part.close()
    with pytest.raises(Stopped):
        lease.write(CONTENT[5000:6000])
    assert open_part(tmp_path).here_bytes == 5000


def test_a_journal_that_lies_costs_a_range_and_not_the_file(tmp_path: Path) -> None:
    part = open_part(tmp_path, None)
    complete(part)
    lines = part.journal.path.read_text().splitlines()
    fourth = next(index for index, line in enumerate(lines) if f'"prefix": {4 * PIECE},' in line)
    lines[fourth] = lines[fourth].replace('"hex": "', '"hex": "f00')
    torn = [line for line in lines if "whole" not in line and line] + ['{"prefix": 99', "\x00\x00"]
    part.journal.path.write_text("\n".join(torn))
    (tmp_path / "model.safetensors").replace(part.path)
    assert complete(open_part(tmp_path, None)) < len(CONTENT)
    assert (tmp_path / "model.safetensors").read_bytes() == CONTENT


def test_killed_between_comparing_and_moving_it_is_only_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = open_part(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Part, "_move", lambda _: None)
        complete(part)
    assert not part.final.exists()
    assert open_part(tmp_path).complete
    assert part.final.read_bytes() == CONTENT


def test_a_piece_that_came_wrong_is_replaced_without_asking_for_the_rest(tmp_path: Path) -> None:
    wrong = CONTENT[:20_000] + b"!" + CONTENT[20_001:]
    part = open_part(tmp_path)
    lease = part.lease(len(CONTENT))
    assert lease is not None
    fill(part, lease, content=wrong)
    part.release(lease)
    assert not part.finish()
    assert complete(part) <= 40 * KB
    assert part.final.read_bytes() == CONTENT


def test_a_file_that_is_wrong_everywhere_is_replaced_too(tmp_path: Path) -> None:
    part = open_part(tmp_path)
    lease = part.lease(len(CONTENT))
    assert lease is not None
    fill(part, lease, content=bytes(len(CONTENT)))
    part.release(lease)
    assert not part.finish()
    complete(part)
    assert part.final.read_bytes() == CONTENT


def test_what_is_never_right_is_an_error_and_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    part = open_part(tmp_path, Digest("sha256", "0" * 64))
    with pytest.raises(FetchError, match="published is sha256:0000"):
        complete(part)
    assert not part.final.exists()
    assert not part.path.exists()


def test_an_empty_file_is_complete_at_once(tmp_path: Path) -> None:
    part = open_part(tmp_path, Digest("sha256", hashlib.sha256().hexdigest()), size=0)
    assert complete(part) == 0
    assert part.final.read_bytes() == b""


def test_a_link_to_a_shared_file_is_replaced_and_what_it_led_to_is_left_alone(tmp_path: Path) -> None:
    part = open_part(tmp_path)
    complete(part)
    shared = tmp_path / "blob"
    shared.write_bytes(CONTENT[::-1])
    part.final.unlink()
    part.final.symlink_to(shared)
    complete(open_part(tmp_path))
    assert shared.read_bytes() == CONTENT[::-1]
    assert not part.final.is_symlink()
    assert part.final.read_bytes() == CONTENT
