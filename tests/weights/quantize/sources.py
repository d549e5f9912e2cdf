"""Checkpoints to be packed, and what tests compare."""

from __future__ import annotations

from pathlib import Path

import torch

from baltoro.config import ModelConfig
from baltoro.weights.save import write
from tests import tiny

BLOCK_FP8 = {"weight_block_size": (128, 128)}
# Sizes that no block and no page divides, but every format can hold.
SHAPES = {
    "block-fp8": tiny.config(hidden_size=256, q_lora_rank=136, v_head_dim=16, kv_lora_rank=32, **BLOCK_FP8),
    "bf16": tiny.config(q_lora_rank=136, v_head_dim=16, num_hidden_layers=3),
    "moonlight": tiny.config(q_lora_rank=None, v_head_dim=32, n_shared_experts=2, yarn=None),
    "no shared experts": tiny.config(n_shared_experts=0, v_head_dim=16, **BLOCK_FP8),
}
# Five packed shards, large enough to be stopped in.
INTERRUPTED = tiny.config(
    num_hidden_layers=5, v_head_dim=16, hidden_size=256, n_routed_experts=12, q_lora_rank=64, kv_lora_rank=64,
    **BLOCK_FP8,
)  # fmt: skip


def source_of(config: ModelConfig, directory: Path, *, shard_bytes: int = 10**9) -> Path:
    write(directory, tiny.weights(config), config.to_dict(), shard_bytes=shard_bytes)
    (directory / "tiktoken.model").write_bytes(b"YQ== 0\n")
    return directory


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
