from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
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
from baltoro.weights.blocks import expert_block
from baltoro.weights.checkpoint import INDEX, Checkpoint, mismatches
from baltoro.weights.describe import describe
from baltoro.weights.quantize import run, shard
from baltoro.weights.quantize.journal import STATE
from baltoro.weights.quantize.run import quantize
from baltoro.weights.save import write
from tests import tiny
from tests.model.random_models import random_ids, random_model

BLOCK_FP8 = {"weight_block_size": (128, 128)}
# Sizes that no block and no page divides, but every format can hold.
SHAPES = {
    "block-fp8": tiny.config(hidden_size=256, q_lora_rank=136, v_head_dim=16, kv_lora_rank=32, **BLOCK_FP8),
    "bf16": tiny.config(q_lora_rank=136, v_head_dim=16, num_hidden_layers=3),
    "moonlight": tiny.config(q_lora_rank=None, v_head_dim=32, n_shared_experts=2, yarn=None),
    "no shared experts": tiny.config(n_shared_experts=0, v_head_dim=16, **BLOCK_FP8),
}


def source_of(config: ModelConfig, directory: Path, *, shard_bytes: int = 10**9) -> Path:
    write(directory, tiny.weights(config), config.to_dict(), shard_bytes=shard_bytes)
    (directory / "tiktoken.model").write_bytes(b"YQ== 0\n")
    return directory


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


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


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


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


@pytest.mark.parametrize("format", FORMATS)
def test_an_expert_is_one_aligned_block_of_its_six_parts_in_order(format: Format, tmp_path: Path) -> None:
    config = SHAPES["block-fp8"]
    source_of(config, tmp_path / "src")
    quantize(str(tmp_path / "src"), tmp_path / "dir", format)
    opened, model = Checkpoint.open(tmp_path / "dir"), load(tmp_path / "dir")
    for expert in range(config.n_routed_experts):
        block = expert_block(opened, 1, expert)
        assert block.offset % 4096 == 0 and block.nbytes % 4096 == 0
        with block.shard.open("rb") as file:
            file.seek(block.offset)
            content = file.read(block.nbytes)
        assert len(content) == block.nbytes
        at = 0
        mixture = model.get_submodule("model.layers.1.mlp.experts")
        stacks = [mixture.get_submodule(name).packed for name in ("gate_proj", "up_proj", "down_proj")]
        truth = [t[expert] if t.numel() else t for stack in stacks for t in (stack.data, stack.scales)]
        for (offset, nbytes), tensor in zip(block.parts, truth, strict=True):
            assert offset == at
            at += nbytes
            assert content[offset:at] == bytes_of(tensor)
        assert not any(content[at:])


def test_a_block_in_pieces_is_refused(tmp_path: Path) -> None:
    source_of(SHAPES["block-fp8"], tmp_path / "src")
    quantize(str(tmp_path / "src"), tmp_path / "dir", "int4")
    file = sorted((tmp_path / "dir").glob("*.safetensors"))[1]
    save_file(load_file(file), file, metadata={"format": "pt"})  # the library's own order
    with pytest.raises(CheckpointError, match="rewritten by another program"):
        expert_block(Checkpoint.open(tmp_path / "dir"), 1, 0)
    with pytest.raises(CheckpointError, match="no tensor"):
        expert_block(Checkpoint.open(tmp_path / "src"), 0, 0)


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


# --- stopped, and going on -------------------------------------------------------------------------------------------

INTERRUPTED = tiny.config(
    num_hidden_layers=5, v_head_dim=16, hidden_size=256, n_routed_experts=12, q_lora_rank=64, kv_lora_rank=64,
    **BLOCK_FP8,
)  # fmt: skip


def _quantize_in_child(src: str, directory: str, started: Callable[[], None]) -> None:
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

    lasts_s = child(tmp_path / "measured", None)
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
            quantize(str(tmp_path / "src"), directory, "int4")
        found = files_of_all(directory)
        assert found == expected, kills
    assert unfinished >= 8


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


def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, discard: bool = False) -> Path:
    source_of(INTERRUPTED, tmp_path / "src", shard_bytes=500_000)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(4, Stop(), patch)
        quantize(str(tmp_path / "src"), tmp_path / "dir", "int4", discard=discard)
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
