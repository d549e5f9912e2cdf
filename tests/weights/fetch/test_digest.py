from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from baltoro.weights.fetch.digest import Digest, new_hash, parse_sums

ONE, TWO = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()


def test_sums_of_every_tool_are_read() -> None:
    text = f"# comment\n{ONE}  config.json\n{TWO.upper()} *./a b.safetensors\nSHA256 (x/(y)) = {ONE}\n\nnot a sum  z\n"
    assert parse_sums(text) == {
        "config.json": Digest("sha256", ONE),
        "a b.safetensors": Digest("sha256", TWO),
        "x/(y)": Digest("sha256", ONE),
    }


def test_a_page_that_says_not_found_holds_no_sums() -> None:
    assert parse_sums("<html><body>not found</body></html>") == {}


def test_sha256sum_s_own_output_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"1")
    out = subprocess.run(["sha256sum", "a.txt"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert parse_sums(out) == {"a.txt": Digest("sha256", ONE)}


def test_a_git_blob_hashes_as_git_does() -> None:
    state = new_hash("git-sha1", 12)
    state.update(b"hello world\n")
    assert state.hexdigest() == "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"  # git hash-object


@pytest.mark.parametrize("etag", [None, "", '"abc"', 'W/"5f"', '"' + "g" * 64 + '"'])
def test_an_etag_that_is_no_digest_is_none(etag: str | None) -> None:
    assert Digest.of_etag(etag) is None


def test_digests_survive_text() -> None:
    for digest in (Digest("sha256", ONE), Digest("git-sha1", "a" * 40)):
        assert Digest.parse(str(digest)) == digest
        assert Digest.of_etag(f'"{digest.hex}"') == digest
    assert Digest.parse(f"md5:{ONE}") is None
