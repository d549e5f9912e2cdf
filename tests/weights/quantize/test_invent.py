"""A made-up packed checkpoint is one like any other, and whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from baltoro.config import ModelConfig
from baltoro.errors import CheckpointError
from baltoro.kernels.formats import FORMATS, Format
from baltoro.model.batch import Batch
from baltoro.model.load import load
from baltoro.weights.blocks import expert_block
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.durable import sync
from baltoro.weights.quantize import invent
from tests import tiny

CONFIG = tiny.config(num_hidden_layers=3, hidden_size=256, v_head_dim=32, kv_lora_rank=32, n_routed_experts=12)


@pytest.mark.parametrize("format", FORMATS)
def test_it_loads_and_gives_numbers(format: Format, tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "made"
    assert invent.invent(CONFIG, format, directory)
    assert ModelConfig.open(directory).packed_format == format
    checkpoint = Checkpoint.open(directory)
    blocks = [
        checkpoint.read(f"model.layers.1.mlp.experts.{expert}.gate_proj.weight").numpy().tobytes()
        for expert in range(12)
    ]
    assert len(set(blocks)) == 12, "every expert has bytes of its own"
    block = expert_block(checkpoint, 2, 11)
    assert block.offset % 4096 == 0
    with torch.inference_mode():
        logits = load(directory)(Batch.of([[1, 2, 3]]))
    assert logits.isfinite().all()
    assert logits.std() > 0.1
    assert sorted(path.name for path in directory.parent.iterdir()) == ["made"]


def test_what_is_there_is_taken_and_other_models_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "made"
    assert invent.invent(CONFIG, "int4", directory)
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert not invent.invent(CONFIG, "int4", directory)
    assert before == {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    with pytest.raises(CheckpointError, match="another model"):
        invent.invent(CONFIG, "int8", directory)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="other files"):
        invent.invent(CONFIG, "int4", tmp_path / "notes")


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny_disk(_: Path) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=1, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", tiny_disk)
    with pytest.raises(CheckpointError, match=r"its disk has 4\.1 kB free"):
        invent.invent(CONFIG, "int4", tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_an_error_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        if "00003" in path.name:
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(invent, "sync", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        invent.invent(CONFIG, "int4", tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_control_c_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    slow = (
        "import time\n"
        "from baltoro.cli import app\n"
        "from baltoro.weights.quantize import invent\n"
        "inner = invent._tensors\n"
        "def tensors(shard, seed):\n"
        "    for parts in inner(shard, seed):\n"
        "        time.sleep(0.05)\n"
        "        yield parts\n"
        "invent._tensors = tensors\n"
        f"app(['bench', 'stream', '--model', 'nano', '--directory', {str(tmp_path)!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".*/*.safetensors")) and time.monotonic() < end:
        time.sleep(0.02)
    assert list(tmp_path.glob(".*/*.safetensors")), "it has begun"
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in talk
    assert not list(tmp_path.iterdir())
