from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import torch as safetensors_torch
from torch import Tensor

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import CheckpointError
from baltoro.weights import save
from baltoro.weights.checkpoint import INDEX, Checkpoint
from tests import tiny

# transformers takes a block's size from the scale grid, ceil(rows / 128) blocks of equal height, and so cannot read
# partial blocks: not these of ours, nor the 576 rows of Kimi K2's own kv_a_proj. It gets whole blocks, or a single one.
WHOLE_BLOCKS = tiny.config(
    weight_block_size=(128, 128), hidden_size=256, intermediate_size=384, moe_intermediate_size=128
)
CONFIGS = {
    "bf16": tiny.config(),
    "block-fp8": tiny.config(weight_block_size=(128, 128)),
    "Moonlight": tiny.config(q_lora_rank=None, yarn=None, n_shared_experts=2),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("shard_bytes", [1, 100_000, 10**9])
def test_what_is_written_is_read_back_bit_for_bit(kind: str, shard_bytes: int, tmp_path: Path) -> None:
    config = CONFIGS[kind]
    save.write(tmp_path, tiny.weights(config), config.to_dict(), shard_bytes=shard_bytes)
    opened = Checkpoint.open(tmp_path)
    assert ModelConfig.open(tmp_path) == config
    for name, tensor in tiny.weights(config):
        stored = opened.read(name)
        assert stored.dtype == tensor.dtype and torch.equal(stored.view(torch.uint8), tensor.view(torch.uint8)), name


def test_shards_are_named_counted_and_limited(tmp_path: Path) -> None:
    config = CONFIGS["bf16"]
    save.write(tmp_path, tiny.weights(config), config.to_dict(), shard_bytes=100_000)
    opened = Checkpoint.open(tmp_path)
    total = len(opened.files)
    assert total > 3
    assert [file.name for file in opened.files] == [
        f"model-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)
    ]
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", INDEX, *(file.name for file in opened.files)}
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == opened.nbytes == counts.tensor_bytes(config)
    assert set(index["weight_map"]) == set(opened.names)
    for file in opened.files:
        assert sum(entry.nbytes for entry in opened.entries.values() if entry.shard == file) <= 100_000


@pytest.mark.parametrize("config", [CONFIGS["bf16"], CONFIGS["Moonlight"], WHOLE_BLOCKS])
def test_every_tensor_arrives_in_the_model_of_transformers(config: ModelConfig, tmp_path: Path) -> None:
    save.write(tmp_path, tiny.weights(config), config.to_dict(), shard_bytes=100_000)
    quantized: dict[str, Any] = {}
    if config.weight_block_size:
        pytest.importorskip("accelerate", reason="transformers reads block-fp8 only with accelerate")
        quantized["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True, **quantized
    )
    assert not any(info.values()), info
    there = dict(model.named_parameters()) | dict(model.named_buffers())
    opened = Checkpoint.open(tmp_path)
    for name in opened.names:
        if not name.endswith("_scale_inv"):
            ours = opened.read_weight(name, torch.bfloat16)
            assert torch.equal(in_transformers(there, name).to(torch.bfloat16), ours), name


def in_transformers(there: dict[str, Tensor], name: str) -> Tensor:
    """Our tensor in their model, which stacks routed experts and joins gate_proj and up_proj."""
    if ".mlp.experts." not in name:
        return there[name]
    layer, rest = name.split(".experts.")
    expert, projection, _ = rest.split(".")
    if projection == "down_proj":
        return there[f"{layer}.experts.down_proj"][int(expert)]
    gate, up = there[f"{layer}.experts.gate_up_proj"][int(expert)].chunk(2)
    return gate if projection == "gate_proj" else up


def test_slices_and_transposes_of_a_living_parameter_are_written_as_they_look(tmp_path: Path) -> None:
    stacked = torch.nn.Parameter(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)))
    views = [("a", stacked[0]), ("b", stacked[2]), ("c", stacked[1].T), ("d", stacked[:, 1])]
    save.write(tmp_path, views, {})
    opened = Checkpoint.open(tmp_path)
    for name, view in views:
        assert torch.equal(opened.read(name), view)


def test_no_more_than_one_shard_is_held(tmp_path: Path) -> None:
    living: set[int] = set()
    most = 0

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            living.discard(id(self))

    def stream() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for index in range(40):
            tensor = torch.zeros(250).as_subclass(Counted)  # 1,000 bytes
            living.add(id(tensor))
            most = max(most, len(living))
            yield f"t{index:02d}", tensor

    save.write(tmp_path, stream(), {}, shard_bytes=5_000)
    assert len(Checkpoint.open(tmp_path).files) == 8
    assert most <= 5 + 2  # a shard, the tensor that did not fit, the next one


class Stop(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


def interrupted(error: BaseException) -> Iterator[tuple[str, Tensor]]:
    for index, pair in enumerate(tiny.weights(CONFIGS["bf16"])):
        if index == 20:
            raise error
        yield pair


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt(), RuntimeError("x")], ids=lambda e: type(e).__name__)
def test_an_interrupted_write_leaves_nothing_behind(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "tiktoken.model").write_text("mine")
    with pytest.raises(type(error)):
        save.write(tmp_path, interrupted(error), {}, shard_bytes=50_000)
    assert [path.name for path in tmp_path.iterdir()] == ["tiktoken.model"]


@pytest.mark.parametrize("moves", [0, 1, 3])
def test_an_interrupt_while_files_are_moved_takes_them_back(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = Path.replace, 0

    def replace_some(path: Path, target: Path) -> Path:
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    with pytest.raises(KeyboardInterrupt):
        save.write(tmp_path, tiny.weights(CONFIGS["bf16"]), {}, shard_bytes=50_000)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_explained_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_torch, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left"):
        save.write(tmp_path, tiny.weights(CONFIGS["bf16"]), {})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    save.write(tmp_path, [("a", torch.ones(2))], {})
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        save.write(tmp_path, [("a", torch.zeros(2))], {})
    assert torch.equal(Checkpoint.open(tmp_path).read("a"), torch.ones(2))


def test_a_name_written_twice_and_an_empty_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a is written twice"):
        save.write(tmp_path, [("a", torch.ones(2)), ("a", torch.ones(2))], {})
    with pytest.raises(CheckpointError, match="without tensors"):
        save.write(tmp_path, [], {})


def test_shards_are_as_readable_as_their_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    save.write(tmp_path, [("a", torch.ones(2))], {})
    assert next(tmp_path.glob("*.safetensors")).stat().st_mode & 0o777 == 0o644
