"""Training runs small enough for a test: two layers, hidden size 32, a vocabulary of 64, float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.train.muonclip import OptimizerConfig
from baltoro.train.recipe import DataSource, Phase, Recipe
from baltoro.train.state import TrainState
from tests import tiny

# The same run as `recipe` gives, as a file for other processes. OUT is to be replaced.
TOML = """
seed = 3
out = "OUT"
dtype = "float32"
tokens_per_step = 256
microbatch_tokens = 128
warmup_steps = 2
evaluate_minutes = 0
[model]
model_type = "deepseek_v3"
vocab_size = 64
hidden_size = 32
intermediate_size = 48
moe_intermediate_size = 16
num_hidden_layers = 2
num_attention_heads = 2
q_lora_rank = 16
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8
n_routed_experts = 4
n_shared_experts = 1
num_experts_per_tok = 2
first_k_dense_replace = 1
n_group = 1
topk_group = 1
norm_topk_prob = true
routed_scaling_factor = 1.414
rms_norm_eps = 1e-6
max_position_embeddings = 512
rope_theta = 1000.0
bos_token_id = 1
eos_token_id = 2
[optimizer]
lr = 3e-3
[[phases]]
name = "copy"
steps = 8
[[phases.data]]
kind = "copy"
lengths = [64, 96]
"""


def config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
        "num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "routed_scaling_factor": 1.414, "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
        "rope_theta": 1000.0, "bos_token_id": 1, "eos_token_id": 2, "yarn": None,
    }  # fmt: skip
    return tiny.config(**(fields | changes))


def phase(**changes: Any) -> Phase:
    copying = DataSource(kind="copy", lengths=(64, 96))
    return Phase(**({"name": "copy", "steps": 8, "data": (copying,)} | changes))


def recipe(out: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "seed": 3, "out": str(out), "optimizer": OptimizerConfig(lr=3e-3), "phases": (phase(),), "model": config(),
        "dtype": "float32", "tokens_per_step": 256, "microbatch_tokens": 128, "warmup_steps": 2,
        "evaluate_minutes": 0.0,
    }  # fmt: skip
    return Recipe(**(fields | changes))


def log(out: Path) -> list[dict[str, Any]]:
    """A run's log without the clock."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def tensors(state: TrainState) -> dict[str, Tensor]:
    """Everything that training changes, of a process that is alone: parameters, momentum, AdamW's moments."""
    found = dict(state.model.state_dict())
    found |= {f"{piece.kind}.{piece.name}": piece.tensor for piece in state.optimizer.pieces()}
    return {name: value.detach().clone() for name, value in found.items()}


def saved(directory: Path) -> dict[str, Tensor]:
    """The same of a saved state, whatever number of processes wrote it: pieces in the order of where they begin."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for path in directory.glob("*.safetensors"):
        kind = path.name.partition("-")[0]
        with safe_open(path, "pt") as file:
            for name, first in json.loads(file.metadata()["firsts"]).items():
                key = f"momentum.{name}" if kind == "momentum" else name
                pieces.setdefault(key, []).append((first, file.get_tensor(name)))
    return {name: torch.cat([tensor for _, tensor in sorted(found, key=lambda piece: piece[0])])
            for name, found in pieces.items()}  # fmt: skip


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different, different
