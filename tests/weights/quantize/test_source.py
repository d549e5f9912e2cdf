"""Packing what lies elsewhere. The truth is what packing the same files from a directory makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from baltoro.errors import BaltoroError, FetchError
from baltoro.weights.quantize import shard
from baltoro.weights.quantize.journal import STATE
from baltoro.weights.quantize.run import quantize
from baltoro.weights.save import write
from tests import tiny
from tests.weights.fetch.serving import PACE, REPO, serve, sums
from tests.weights.quantize.sources import files_of

CONFIG = tiny.config(num_hidden_layers=4, v_head_dim=16, weight_block_size=(128, 128))


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "src", tiny.weights(CONFIG), CONFIG.to_dict(), shard_bytes=200_000)
    (tmp_path / "src" / "tiktoken.model").write_bytes(b"YQ== 0\n")
    return tmp_path / "src"


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> dict[str, bytes]:
    quantize(str(source), tmp_path / "expected", "int4")
    return files_of(tmp_path / "expected")


def watch_source(directory: Path, monkeypatch: pytest.MonkeyPatch, *, stop_at: int = 0) -> list[int]:
    """How many of the source's shards are here as each packed one is made; the `stop_at`th fails."""
    original, seen = shard.write, []

    def watching(*args: object) -> object:
        seen.append(len(list((directory / STATE / "source").glob("*.safetensors"))))
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shard, "write", watching)
    return seen


@pytest.mark.parametrize("with_sums", [True, False])
def test_a_mirror_is_packed_without_ever_being_here_whole(
    with_sums: bool, source: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(source)
    there = sum(name.endswith(".safetensors") for name in files)
    with serve(files | ({"SHA256SUMS": sums(files)} if with_sums else {})) as site:
        seen = watch_source(tmp_path / "dir", monkeypatch)
        quantize(site.mirror, tmp_path / "dir", "int4", pace=PACE)
    assert files_of(tmp_path / "dir") == expected
    assert len(seen) == 4 and max(seen) <= there - 2


def test_a_model_of_the_hub_goes_on_where_it_was_stopped_at_the_same_commit(
    source: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(files_of(source)) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.hub)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            watch_source(tmp_path / "dir", patch, stop_at=3)
            quantize(REPO, tmp_path / "dir", "int4", pace=PACE)
        first = len(site.requests)
        made = quantize(REPO, tmp_path / "dir", "int4", pace=PACE)
        again = {path for _, path, _ in site.requests[first:] if path.endswith(".safetensors")}
    assert made.revision == site.sha and 0 < made.made_bytes < made.bytes
    first_shard = min(path.name for path in source.glob("*.safetensors"))
    assert again and not any(path.endswith(first_shard) for path in again)
    assert files_of(tmp_path / "dir") == expected


def test_a_model_in_one_file_is_fetched_whole(tmp_path: Path) -> None:
    write(tmp_path / "src", tiny.weights(CONFIG), CONFIG.to_dict())
    (file,) = (tmp_path / "src").glob("*.safetensors")
    (tmp_path / "src" / "model.safetensors.index.json").unlink()
    file.rename(tmp_path / "src" / "model.safetensors")
    quantize(str(tmp_path / "src"), tmp_path / "expected", "int8")
    with serve(files_of(tmp_path / "src")) as site:
        quantize(site.mirror, tmp_path / "dir", "int8", pace=PACE)
    assert files_of(tmp_path / "dir") == files_of(tmp_path / "expected")


def test_what_names_no_model_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with serve({"index.html": b"<html>"}) as site, pytest.raises(FetchError, match="shows no model"):
        quantize(site.mirror, tmp_path / "dir", "int4", pace=PACE)
    with pytest.raises(BaltoroError, match="no such directory"):
        quantize(str(tmp_path / "nowhere"), tmp_path / "dir", "int4", pace=PACE)
    with pytest.raises(BaltoroError, match="has no revisions"):
        quantize(str(source), tmp_path / "dir", "int4", revision="main")
    assert not (tmp_path / "dir").exists()
