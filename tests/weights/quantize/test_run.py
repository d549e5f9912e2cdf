from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError, CheckpointError, ConfigError
from baltoro.kernels.formats import FORMATS, Format, unpack
from baltoro.model.batch import Batch
from baltoro.model.load import load, save
from baltoro.weights import layout
from baltoro.weights.checkpoint import INDEX, Checkpoint, mismatches
from baltoro.weights.describe import describe
from baltoro.weights.quantize.journal import STATE
from baltoro.weights.quantize.run import quantize
from tests import tiny
from tests.model.random_models import random_ids, random_model
from tests.weights.quantize.sources import SHAPES, files_of, source_of


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_checkpoint_gives_the_logits_of_its_source_bit_for_bit(
    shape: str, format: Format, tmp_path: Path
) -> None:
    config = SHAPES[shape]
    save(random_model(config), tmp_path / "src")
    quantize(str(tmp_path / "src"), tmp_path / "dir", format)
    expected, found = load(tmp_path / "src", format=format), load(tmp_path / "dir")
    assert packed_bytes(found) == packed_bytes(expected)
    with torch.no_grad():
        for tokens in (1, 40):
            batch = Batch.of([random_ids(config, tokens)])
            assert torch.equal(found(batch), expected(batch))
    assert torch.equal(load(tmp_path / "dir", format=format)(batch), found(batch))


def packed_bytes(model: nn.Module) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, module in model.named_modules():
        if (packed := getattr(module, "packed", None)) is not None:
            parts = [packed] if hasattr(packed, "data") else [getattr(packed, part) for part in layout.HEADS]
            for number, part in enumerate(parts):
                tensors = (part.data, part.scales)
                found[f"{name} {number}"] = b"".join(
                    t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors
                )
    return found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_file_is_safetensors_and_as_its_config_implies(shape: str, format: Format, tmp_path: Path) -> None:
    source_of(SHAPES[shape], tmp_path / "src")
    quantize(str(tmp_path / "src"), tmp_path / "dir", format)
    config, opened = ModelConfig.open(tmp_path / "dir"), Checkpoint.open(tmp_path / "dir")
    assert replace(config, packed_format=None) == replace(SHAPES[shape], weight_block_size=None)
    assert mismatches(config, opened) == []
    assert len(opened.files) == config.num_hidden_layers
    index = json.loads((tmp_path / "dir" / INDEX).read_text())
    for file in opened.files:
        tensors = load_file(file)
        with safetensors.safe_open(file, framework="pt") as library:
            assert library.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            assert torch.equal(opened.read(name).reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
            assert index["weight_map"][name] == file.name
            assert opened.entry(name).offset % tensor.element_size() == 0
    assert index["metadata"]["total_size"] == opened.nbytes
    facts = describe(tmp_path / "dir")
    assert facts["format"] == f"packed {format}" and facts["tensor_bytes"] == opened.nbytes
    assert facts["parameters"] == describe(tmp_path / "src")["parameters"]


def test_small_files_come_along_and_the_config_keeps_its_keys(tmp_path: Path) -> None:
    source_of(SHAPES["block-fp8"], tmp_path / "src")
    path = tmp_path / "src" / "config.json"
    before = json.loads(path.read_text()) | {"transformers_version": "4.48.3"}
    path.write_text(json.dumps(before))
    quantize(str(tmp_path / "src"), tmp_path / "dir", "int8")
    assert (tmp_path / "dir" / "tiktoken.model").read_bytes() == b"YQ== 0\n"
    after = json.loads((tmp_path / "dir" / "config.json").read_text())
    assert after.pop("quantization_config") == {"quant_method": "baltoro", "format": "int8", "version": 1}
    before.pop("quantization_config")
    assert after == before
    assert not (tmp_path / "dir" / STATE).exists()


def test_sha256sums_names_every_file(tmp_path: Path) -> None:
    source_of(SHAPES["bf16"], tmp_path / "src")
    quantize(str(tmp_path / "src"), tmp_path / "dir", "fp8")
    content = files_of(tmp_path / "dir")
    lines = content.pop("SHA256SUMS").decode().splitlines()
    assert {line[66:]: line[:64] for line in lines} == {
        name: hashlib.sha256(data).hexdigest() for name, data in content.items()
    }


@pytest.mark.parametrize("format", FORMATS)
def test_the_error_of_a_class_is_near_that_of_all_its_matrices(format: Format, tmp_path: Path) -> None:
    config = SHAPES["block-fp8"]
    source_of(config, tmp_path / "src")
    found = quantize(str(tmp_path / "src"), tmp_path / "dir", format).errors
    assert list(found) == ["attention", "routed experts", "shared experts", "dense mlp", "head"]
    plain, packed = load(tmp_path / "src"), load(tmp_path / "dir")
    names = [f"model.layers.1.mlp.experts.{part}_proj" for part in ("gate", "up", "down")]
    truth = torch.cat([plain.get_parameter(f"{name}.weight").flatten() for name in names])
    difference = torch.cat([unpack(packed.get_submodule(name).packed).flatten() for name in names]) - truth
    error = (difference.norm() / truth.norm()).item()
    assert found["routed experts"] == pytest.approx(error, rel=0.2)
    if format == "fp8":
        assert found["routed experts"] == 0  # block-fp8 as it was


# --- refused ---------------------------------------------------------------------------------------------------------


def refused(src: Path | str, directory: Path, message: str, *, format: Format = "int4", discard: bool = False) -> None:
    before = sorted(directory.iterdir()) if directory.exists() else None
    with pytest.raises(BaltoroError, match=message) as caught:
        quantize(str(src), directory, format, discard=discard)
    assert caught.value.hint
    assert (sorted(directory.iterdir()) if directory.exists() else None) == before


def test_what_cannot_be_packed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = source_of(SHAPES["block-fp8"], tmp_path / "src")
    new = tmp_path / "new"
    refused(src, src, "both the source and the target")
    quantize(str(src), tmp_path / "packed", "int4")
    refused(tmp_path / "packed", new, "packed in int4 already", format="int8")
    refused(src, tmp_path / "packed", "already holds a checkpoint")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "README.md").write_text("mine")
    refused(src, tmp_path / "full", r"holds other files \(README.md\)")
    refused(source_of(tiny.config(q_lora_rank=20, v_head_dim=16), tmp_path / "odd"), new, "groups of at least 8 inputs")
    refused(source_of(tiny.config(), tmp_path / "heads"), new, "v_head_dim 12, expected multiples of 16", format="bf16")
    refused("nano", new, "a part of Baltoro", discard=True)
    (tmp_path / "a file").write_text("")
    refused(src, tmp_path / "a file" / "below", "cannot be written|Not a directory")
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 9, 9, 9, 9, 9, 9, 0, 255)))
        refused(src, new, r"needs 8\d\d\.\d kB more, and its disk has 36\.9 kB free")
    min(src.glob("*.safetensors")).unlink()
    refused(src, new, "missing|no safetensors")


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.experts.2.up_proj.weight", "model.norm.weight", "model.layers.0.self_attn.kv_b_proj.weight"],
)
def test_damaged_values_are_named_with_their_shard(name: str, tmp_path: Path) -> None:
    src = source_of(SHAPES["bf16"], tmp_path / "src")
    (file,) = src.glob("*.safetensors")
    tensors = load_file(file)
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{file.name}: {name}.* inf or nan"):
        quantize(str(src), tmp_path / "dir", "int4")


def test_another_format_than_the_stored_one_is_refused(tmp_path: Path) -> None:
    source_of(SHAPES["bf16"], tmp_path / "src")
    quantize(str(tmp_path / "src"), tmp_path / "dir", "int4")
    with pytest.raises(CheckpointError, match="is packed in int4, not in int8"):
        load(tmp_path / "dir", format="int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2, this Baltoro reads 1"),
        ({"format": "int3"}, "format is 'int3', must be one of"),
        ({"group": 32}, "quantization_config.group is unknown"),
    ],
)
def test_a_packed_config_that_is_not_ours_is_refused(change: dict[str, object], message: str) -> None:
    given = replace(SHAPES["bf16"], packed_format="int4").to_dict()
    assert ModelConfig.from_dict(given).packed_format == "int4"
    given["quantization_config"] |= change
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(given)
