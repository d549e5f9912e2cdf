from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from baltoro.errors import CheckpointError
from baltoro.kernels.formats import FORMATS, Format
from baltoro.model.load import load
from baltoro.weights.blocks import expert_block
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.quantize.run import quantize
from tests.weights.quantize.sources import SHAPES, bytes_of, source_of


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
