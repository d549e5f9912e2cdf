"""A model's bytes from the headers of its shards, over HTTP, without a weight."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from baltoro import counts
from baltoro.cli import app
from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError, FetchError
from baltoro.weights.fetch import headers
from baltoro.weights.fetch.http import Patience
from tests import tiny
from tests.weights.fetch.serving import FAST, REPO, Fault, serve

NANO = Path(__file__).parents[3] / "baltoro" / "nano"


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def shard(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    def at(site: Any) -> str:
        monkeypatch.setenv("HF_ENDPOINT", site.hub)
        monkeypatch.setattr(headers, "Patience", lambda **_: FAST)
        return REPO

    return at


def test_nano_over_http_is_what_its_files_say(hub: Any) -> None:
    files = files_of(NANO)
    with serve(files) as site:
        for repo in (site.mirror, hub(site)):
            found = headers.read(repo)
            assert found.config == ModelConfig.open(NANO)
            assert (found.tensor_bytes, found.mismatches) == (counts.tensor_bytes(found.config), ())
            (name,) = [name for name in files if name.endswith(".safetensors")]
            with safe_open(NANO / name, framework="numpy") as truth:
                assert found.tensors == len(list(truth.keys()))
            assert sum(found.by_purpose.values()) == sum(found.by_dtype.values()) == found.tensor_bytes
            per_expert = counts.expert_bytes(found.config)
            moe = sum(found.config.is_moe(layer) for layer in range(found.config.num_hidden_layers))
            assert found.by_purpose["routed experts"] == moe * found.config.n_routed_experts * per_expert
            assert "others" not in found.by_purpose


def test_headers_alone_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of 5 MB is answered by its first bytes; a header that is longer than these by one more range."""
    monkeypatch.setattr(headers, "FIRST_BYTES", 1024)
    config = tiny.config()
    long, position = dict[str, Any](), 0
    for spec in counts.tensors(config):
        long[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    files = {
        "model-1-of-2.safetensors": shard({"__metadata__": {"format": "pt"}, **long}, bytes(position)),
        "model-2-of-2.safetensors": shard(
            {"x": {"dtype": "F4_X", "shape": [2**22], "data_offsets": [0, 2**21]}}, bytes(2**21)
        ),
        "config.json": json.dumps(config.to_dict()).encode(),
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
        ).encode(),
    }
    with serve(files) as site:
        found = headers.read(site.mirror, patience=FAST)
        assert found.tensor_bytes == position + 2**21  # a type that is not known counts by its offsets
        assert "config.json implies" in found.mismatches[0]
        assert len(site.sent("model-1-of-2.safetensors")) == 2
        for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
            for span in site.sent(name):
                begin, end = map(int, span.removeprefix("bytes=").split("-"))
                assert end - begin < 64 * 1024


def test_a_server_that_knows_no_ranges_is_read_no_further_than_needed() -> None:
    with serve(files_of(NANO), ranges=False) as site:
        assert headers.read(site.mirror, patience=FAST).tensor_bytes == counts.tensor_bytes(ModelConfig.open(NANO))


def test_what_breaks_off_or_is_busy_is_asked_again() -> None:
    with serve(files_of(NANO)) as site:
        site.faults.extend([Fault(status=503), Fault(drop_after=100), Fault(status=429, retry_after="0")])
        assert headers.read(site.mirror, patience=FAST).tensors > 0
        assert not site.faults


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "a length beyond the file": struct.pack("<Q", 2**40) + b"{}",
    "no length": b"abc",
    "no JSON": shard({})[:8] + b"[x",
    "a list": struct.pack("<Q", 2) + b"[]",
    "offsets beyond the file": shard({"a": ENTRY | {"data_offsets": [0, 800]}}, bytes(8)),
    "offsets backwards": shard({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)),
    "a shape of other bytes": shard({"a": ENTRY | {"shape": [3]}}, bytes(8)),
    "an entry that is a number": shard({"a": 3}, bytes(8)),
    "no offsets": shard({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_header_is_named_and_not_believed(content: bytes) -> None:
    files = {"model.safetensors": content, "config.json": (NANO / "config.json").read_bytes()}
    with serve(files) as site, pytest.raises(FetchError, match=r"model\.safetensors"):
        headers.read(site.mirror, patience=Patience(total_s=0.1, first_wait_s=0.01))


def test_a_repository_without_config_or_weights_is_refused(hub: Any) -> None:
    config = (NANO / "config.json").read_bytes()
    with serve({"model.safetensors": shard({"a": ENTRY}, bytes(8))}) as site, pytest.raises(FetchError, match="config"):
        headers.read(hub(site))
    with serve({"config.json": config}) as site, pytest.raises(FetchError, match="no safetensors"):
        headers.read(hub(site))


def test_plan_takes_a_model_that_is_elsewhere(hub: Any) -> None:
    with serve(files_of(NANO)) as site:
        result = CliRunner().invoke(app, ["plan", hub(site), "--machine", "desktop", "--json"])
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert document["disk"]["fetch_bytes"] == sum(map(len, files_of(NANO).values()))
        assert REPO in result.stderr
    error = CliRunner().invoke(app, ["plan", "no-such-thing", "--machine", "desktop"]).exception
    assert isinstance(error, BaltoroError)
