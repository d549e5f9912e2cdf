from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from baltoro import counts
from baltoro.config import PRESETS, ModelConfig
from baltoro.errors import CheckpointError
from baltoro.weights import checkpoint, fp8, save
from baltoro.weights.checkpoint import INDEX, Checkpoint
from tests import tiny

FP8 = tiny.config(weight_block_size=(128, 128))
SHARD = "model-00002-of-00003.safetensors"
PARITY = Path(__file__).parents[3] / "shared" / "parity"


def raw(path: Path, header: dict[str, Any] | bytes, data: bytes, *, length: int | None = None) -> None:
    """A safetensors file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def u8(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three shards by another writer than ours: a to f, two in each."""
    names = {}
    for shard, pair in enumerate(("ab", "cd", "ef"), start=1):
        file = f"model-{shard:05d}-of-00003.safetensors"
        save_file({name: torch.arange(ord(name), dtype=torch.float32) for name in pair}, tmp_path / file)
        names |= dict.fromkeys(pair, file)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return tmp_path


def reindex(directory: Path, **changes: Any) -> None:
    content = json.loads((directory / INDEX).read_text())
    content["weight_map"] = {k: v for k, v in (content["weight_map"] | changes).items() if v is not ...}
    (directory / INDEX).write_text(json.dumps(content))


def test_every_tensor_is_read_as_it_was_written(directory: Path) -> None:
    opened = Checkpoint.open(directory)
    assert sorted(opened.names) == list("abcdef") and len(opened.files) == 3
    for name in opened.names:
        assert torch.equal(opened.read(name), torch.arange(ord(name), dtype=torch.float32))
        assert (opened.shape(name), opened.dtype(name)) == ((ord(name),), torch.float32)
    assert opened.nbytes == 4 * sum(map(ord, "abcdef"))


def test_an_entry_says_where_the_bytes_lie(directory: Path) -> None:
    opened = Checkpoint.open(directory)
    for name in opened.names:
        entry = opened.entry(name)
        stored = entry.shard.read_bytes()[entry.offset : entry.offset + entry.nbytes]
        assert stored == torch.arange(ord(name), dtype=torch.float32).numpy().tobytes()


def test_one_file_without_index_is_a_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    assert torch.equal(Checkpoint.open(tmp_path).read("a"), torch.ones(3))


def test_reading_maps_the_file_and_copies_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(64 * 2**20, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    before = resident_bytes()
    tensor = Checkpoint.open(tmp_path).read("a")
    assert resident_bytes() - before < 16 * 2**20
    tensor[0] = 7  # changes a private copy of one page
    assert load_file(tmp_path / "model.safetensors")["a"][0] == 0
    assert Checkpoint.open(tmp_path).read("a")[0] == 0


def test_what_was_read_can_be_released_and_read_again(tmp_path: Path) -> None:
    stored = torch.arange(32 * 2**20, dtype=torch.int32).view(torch.uint8)  # 128 MiB
    save_file({"a": stored, "b": torch.ones(3)}, tmp_path / "model.safetensors")
    opened = Checkpoint.open(tmp_path)
    opened.expect("a")
    before = resident_bytes()
    assert torch.equal(opened.read("a"), stored)
    read = resident_bytes()
    opened.release("a")
    opened.release("b")
    if hasattr(mmap, "MADV_DONTNEED"):
        assert read - before > 100 * 2**20
        assert resident_bytes() - before < 16 * 2**20
    assert torch.equal(opened.read("a"), stored)
    assert torch.equal(opened.read("b"), torch.ones(3))


def test_a_tensor_without_numbers_is_read_too(tmp_path: Path) -> None:
    save_file({"a": torch.empty(0, 3), "b": torch.ones(3)}, tmp_path / "model.safetensors")
    opened = Checkpoint.open(tmp_path)
    opened.expect("a")
    opened.release("a")
    assert opened.read("a").shape == (0, 3)


def resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("needs /proc")
    return int(status.read_text().split()[1]) * 4096


def test_a_tensor_outlives_its_checkpoint(directory: Path) -> None:
    tensor = Checkpoint.open(directory).read("f")
    for file in directory.iterdir():
        file.unlink()
    assert torch.equal(tensor, torch.arange(ord("f"), dtype=torch.float32))


def test_an_unaligned_tensor_is_copied_to_an_aligned_place(tmp_path: Path) -> None:
    header = {"a": u8(0, 1), "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}}
    raw(tmp_path / "model.safetensors", header, b"x" + struct.pack("<f", 1.5))
    tensor = Checkpoint.open(tmp_path).read("b")
    assert tensor.data_ptr() % 4 == 0 and tensor.tolist() == [1.5]


def test_a_weight_with_scales_is_dequantized_and_others_are_converted(tmp_path: Path) -> None:
    q, scale_inv = fp8.quantize(torch.randn(150, 130, generator=torch.Generator().manual_seed(0)))
    save_file({"w": q, "w_scale_inv": scale_inv, "n": torch.ones(2)}, tmp_path / "model.safetensors")
    opened = Checkpoint.open(tmp_path)
    assert torch.equal(opened.read_weight("w", torch.float32), fp8.dequantize(q, scale_inv, torch.float32))
    assert opened.read_weight("n", torch.bfloat16).dtype == torch.bfloat16


def test_a_converted_weight_is_never_the_mapped_file(directory: Path) -> None:
    opened = Checkpoint.open(directory)
    weight = opened.read_weight("a", torch.float32)
    raw(opened.entry("a").shard, {}, b"")
    assert torch.equal(weight, torch.arange(ord("a"), dtype=torch.float32))


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor model.norm.wieght\n.*did you mean model.norm.weight"):
        Checkpoint.open(tmp_path).read("model.norm.wieght")


def truncate(directory: Path) -> None:
    path = directory / SHARD
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Any] = {
    "truncated shard": (truncate, f"{SHARD} is not a whole safetensors file"),
    "trailing bytes": (lambda d: (d / SHARD).open("ab").write(b"x"), f"{SHARD} is not a whole safetensors file"),
    "empty shard": (lambda d: (d / SHARD).write_bytes(b""), f"{SHARD} is not a whole safetensors file"),
    "missing shard": (lambda d: (d / SHARD).unlink(), f"{SHARD} is missing"),
    "shard is a directory": (lambda d: ((d / SHARD).unlink(), (d / SHARD).mkdir()), f"{SHARD} is missing"),
    "pickle": (lambda d: torch.save({"c": torch.ones(1)}, d / SHARD), f"{SHARD} is not a whole safetensors file"),
    "header longer than file": (lambda d: raw(d / SHARD, b"{}", b"", length=99), f"{SHARD} is not a whole"),
    "header of 2^63 bytes": (lambda d: raw(d / SHARD, b"{}", b"", length=2**63), f"{SHARD} is not a whole"),
    "header not JSON": (lambda d: raw(d / SHARD, b"{{", b""), f"{SHARD} is not a whole"),
    "overlap": (lambda d: raw(d / SHARD, {"c": u8(0, 2), "d": u8(1, 3)}, b"xyz"), f"{SHARD} is not a whole"),
    "hole": (lambda d: raw(d / SHARD, {"c": u8(0, 1), "d": u8(2, 3)}, b"xyz"), f"{SHARD} is not a whole"),
    "shape overflow": (
        lambda d: raw(d / SHARD, {"c": {"dtype": "U8", "shape": [2**40, 2**40], "data_offsets": [0, 1]}}, b"x"),
        f"{SHARD} is not a whole",
    ),
    "one name twice in a shard": (
        lambda d: raw(d / SHARD, b'{"c":%s,"c":%s}' % ((json.dumps(u8(0, 1)).encode(),) * 2), b"x"),
        f"{SHARD} is not a whole safetensors file: named twice: c",
    ),
    "exotic type": (
        lambda d: raw(d / SHARD, {"c": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        "c is F8_E8M0",
    ),
    "one name in two shards": (
        lambda d: save_file({"c": torch.ones(1), "d": torch.ones(1), "a": torch.ones(1)}, d / SHARD),
        "a is both in model-00001-of-00003.safetensors and in model-00002-of-00003.safetensors",
    ),
    "index names an absent tensor": (lambda d: reindex(d, z=SHARD), f"z is not in {SHARD}, where"),
    "index names an absent shard": (lambda d: reindex(d, z="model-9.safetensors"), "model-9.safetensors is missing"),
    "index leaves a tensor out": (lambda d: reindex(d, c=...), f"c in {SHARD} is not in {INDEX}"),
    "index swaps two tensors": (
        lambda d: reindex(d, a=SHARD, c="model-00001-of-00003.safetensors"), f"a is not in {SHARD}"
    ),
    "index points outside": (lambda d: reindex(d, a="../a.safetensors"), "puts a into '../a.safetensors'"),
    "index points to a pickle": (lambda d: reindex(d, a="pytorch_model.bin"), "puts a into 'pytorch_model.bin'"),
    "index points to a number": (lambda d: reindex(d, a=3), "puts a into 3"),
    "index is not JSON": (lambda d: (d / INDEX).write_text("{"), f"{INDEX} is not JSON"),
    "index is a list": (lambda d: (d / INDEX).write_text("[]"), f"{INDEX} has no weight_map"),
    "index is empty": (lambda d: (d / INDEX).write_text('{"weight_map": {}}'), f"{INDEX} names no tensors"),
    "index lost": (lambda d: (d / INDEX).unlink(), f"3 shards, but no {INDEX}"),
    "two models in one": (lambda d: save_file({"a": torch.ones(1)}, d / "model.safetensors"), "are both there"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_and_named(kind: str, directory: Path) -> None:
    damage, message = DAMAGE[kind]
    damage(directory)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert message in caught.value.message


def test_all_damage_is_named_in_one_error(directory: Path) -> None:
    truncate(directory)
    (directory / "model-00003-of-00003.safetensors").unlink()
    reindex(directory, z="model-00001-of-00003.safetensors", a="../a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    for part in (SHARD, "model-00003-of-00003.safetensors is missing", "z is not in", "'../a.safetensors'"):
        assert part in caught.value.message, part


def test_a_preset_has_no_weights_to_open() -> None:
    with pytest.raises(CheckpointError, match=r"kimi-k2-base.json is a config without weights"):
        Checkpoint.open(PRESETS["kimi-k2-base"])


def test_a_directory_of_pickles_is_refused_with_a_reason(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no safetensors, only pytorch_model.bin\n.*run code"):
        Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        Checkpoint.open(tmp_path / "nowhere")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_corruption_of_a_header_crashes_or_reads_outside_the_file(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(
        {"w": torch.arange(6.0).view(2, 3), "v": torch.ones(5, dtype=torch.bfloat16)}, path, metadata={"format": "pt"}
    )
    content = bytearray(path.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header - 1))
        match data.draw(st.sampled_from(["set", "insert", "delete", "cut"])):
            case "set":
                content[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "insert":
                content[place:place] = data.draw(
                    st.sampled_from([b"9", b"-", b"1e9", b"{", b'"', b"\\u0000", b"null", b"\xff"])
                )
            case "delete":
                del content[place : place + data.draw(st.integers(1, 8))]
            case _:
                del content[data.draw(st.integers(0, len(content))) :]
    path.unlink()  # a mapped file must not change under its reader
    path.write_bytes(content)
    try:
        opened = Checkpoint.open(tmp_path)
    except CheckpointError:
        return
    for name in opened.names:
        tensor = opened.read(name)
        assert tuple(tensor.shape) == opened.shape(name) and tensor.dtype == opened.dtype(name)
        tensor.double().sum()
        assert opened.entry(name).offset + opened.entry(name).nbytes <= len(content)


def write(directory: Path, config: ModelConfig, **changes: torch.Tensor | None) -> Checkpoint:
    tensors = dict(tiny.weights(config)) | changes
    save.write(directory, ((k, v) for k, v in tensors.items() if v is not None), config.to_dict())
    return Checkpoint.open(directory)


@pytest.mark.parametrize("config", [FP8, tiny.config(), tiny.config(q_lora_rank=None, yarn=None, n_shared_experts=2)])
def test_a_checkpoint_of_its_config_has_no_mismatch(config: ModelConfig, tmp_path: Path) -> None:
    opened = write(tmp_path, config)
    checkpoint.check(config, opened)
    assert opened.nbytes == counts.tensor_bytes(config)


def test_the_stray_rotary_tables_of_k2_are_passed_over(tmp_path: Path) -> None:
    opened = write(
        tmp_path, FP8, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(24, dtype=torch.bfloat16)}
    )
    checkpoint.check(FP8, opened)
    assert not [name for name in opened.names if "inv_freq" in name]


def test_every_mismatch_is_named_in_one_error(tmp_path: Path) -> None:
    opened = write(
        tmp_path, FP8,
        **{
            "model.norm.weight": None,
            "model.layers.0.self_attn.o_proj.weight_scale_inv": None,
            "lm_head.weight": torch.zeros(320, 143, dtype=torch.bfloat16),
            "model.layers.1.mlp.gate.weight": torch.zeros(4, 144, dtype=torch.int64),
            "model.layers.1.mlp.experts.3.up_proj.weight": torch.zeros(136, 144, dtype=torch.bfloat16),
            "model.layers.2.input_layernorm.weight": torch.zeros(144),
            "model.layers.0.self_attn.q_a_proj.bias": torch.zeros(40),
        },
    )  # fmt: skip
    expected = [
        "model.norm.weight is missing, config.json implies [144] BF16",
        "model.layers.0.self_attn.o_proj.weight_scale_inv is missing, config.json implies [2, 1] F32",
        "lm_head.weight is [320, 143], config.json implies [320, 144]",
        "model.layers.1.mlp.gate.weight is I64, config.json implies BF16",
        "model.layers.1.mlp.experts.3.up_proj.weight is BF16, config.json implies F8_E4M3",
        "model.layers.2.input_layernorm.weight is unexpected",
        "model.layers.0.self_attn.q_a_proj.bias is unexpected",
    ]
    found = checkpoint.mismatches(FP8, opened)
    assert len(found) == len(expected) and all(any(part in line for line in found) for part in expected)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check(FP8, opened)
    assert all(part in caught.value.message for part in expected)


def test_a_checkpoint_of_another_model_is_refused_in_few_lines(tmp_path: Path) -> None:
    opened = write(tmp_path, tiny.config())
    with pytest.raises(CheckpointError, match=r"and 139,\d+ more") as caught:
        checkpoint.check(ModelConfig.open("kimi-k2-instruct"), opened)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("variant", ["tiny_a", "tiny_b", "tiny_c"])
def test_checkpoints_of_another_writer_agree_with_their_config_and_our_quantization(variant: str) -> None:
    if not PARITY.is_dir():
        pytest.skip(f"needs {PARITY.name} checkpoints made by transformers, beside the repository")
    wide, narrow = (Checkpoint.open(PARITY / variant / kind) for kind in ("bf16", "fp8"))
    for opened in (wide, narrow):
        config = ModelConfig.open(opened.directory)
        checkpoint.check(config, opened)
        assert opened.nbytes == counts.tensor_bytes(config)
    for name in filter(counts.is_quantized, wide.names):
        q, scale_inv = fp8.quantize(wide.read(name))
        assert torch.equal(q.view(torch.uint8), narrow.read(name).view(torch.uint8)), name
        assert torch.equal(scale_inv, narrow.read(name + "_scale_inv")), name
