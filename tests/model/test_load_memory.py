"""Loading holds the weights and little else: not a second copy in another type, not the file that was read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.kernels.formats import FORMATS, Format
from baltoro.weights import fp8
from baltoro.weights.quantize.run import quantize
from baltoro.weights.save import write
from tests import tiny

MIB = 2**20
# Beside the weights and 5 %: a matrix in float32 (2 MB here), stacks of threads, what the allocator keeps.
MORE = 16 * MIB

WATCH = """
import json, sys, threading, time, torch
from pathlib import Path
from baltoro.model.load import load
from baltoro.weights.quantize.run import quantize

small, large, format = sys.argv[1:]
format = None if format == "None" else format

run = ACTION

def memory(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind)) * 1024

def watch():
    while True:
        for kind in peaks:
            peaks[kind] = max(peaks[kind], memory(kind))
        time.sleep(0.001)

run(small)  # so that code and threads are there
before = {kind: memory(kind) for kind in ("RssAnon", "RssFile")}
peaks = dict(before)
threading.Thread(target=watch, daemon=True).start()
made = run(large)
print(json.dumps({kind: peaks[kind] - before[kind] for kind in peaks}))
"""
LOAD = "lambda directory: load(directory, format=format, dtype=torch.bfloat16)"
QUANTIZE = "lambda directory: quantize(directory, Path(directory + '-' + format), format)"


def shaped(**changes: int) -> ModelConfig:
    return tiny.config(qk_nope_head_dim=64, v_head_dim=64, weight_block_size=(128, 128), **changes)


def weights(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The same random matrix for all of one shape: a large file in no time."""
    made: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    shape: tuple[int, ...] = ()
    for spec in counts.tensors(config):
        if spec.name.endswith("_scale_inv"):
            yield spec.name, made[shape][1].clone()
        elif spec.dtype == "F8_E4M3":
            shape = spec.shape
            if shape not in made:
                made[shape] = fp8.quantize(torch.randn(shape) / math.sqrt(shape[-1]))
            yield spec.name, made[shape][0].clone()
        else:
            yield spec.name, torch.ones(spec.shape, dtype=torch.bfloat16 if spec.dtype == "BF16" else torch.float32)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    config = shaped(hidden_size=256, moe_intermediate_size=128, num_attention_heads=2)
    write(directory, weights(config), config.to_dict())
    return directory


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 MB of block-fp8, most of it in experts."""
    directory = tmp_path_factory.mktemp("large")
    config = shaped(
        hidden_size=1024, intermediate_size=2048, moe_intermediate_size=512, n_routed_experts=60,
        num_hidden_layers=3, num_attention_heads=8, q_lora_rank=256, kv_lora_rank=128,
    )  # fmt: skip
    write(directory, weights(config), config.to_dict())
    return directory


def grown(action: str, small: Path, large: Path, format: str | None) -> dict[str, int]:
    """Bytes of memory by kind that the process had at most beside those before, when the action is run on `large`."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    answer = subprocess.run(
        [sys.executable, "-c", WATCH.replace("ACTION", action), str(small), str(large), str(format)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


# Bytes a weight, scales included; None: parameters in bf16.
BYTES = {"bf16": 2, "fp8": 1 + 1 / 512, "int8": 1 + 2 / 128, "int4": 0.5 + 2 / 32, None: 2}


@pytest.mark.parametrize("format", [*FORMATS, None])
def test_loading_needs_the_memory_of_the_weights(format: str | None, small: Path, large: Path) -> None:
    found = grown(LOAD, small, large, format)
    stored = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    assert stored > 190e6
    weights_bytes = stored * BYTES[format]
    assert found["RssAnon"] > 0.9 * weights_bytes  # that it was measured
    assert found["RssAnon"] <= 1.05 * weights_bytes + MORE, {k: f"{v / 1e6:.0f} MB" for k, v in found.items()}
    assert found["RssFile"] <= 32 * MIB, {k: f"{v / 1e6:.0f} MB" for k, v in found.items()}


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_loading_what_is_packed_needs_the_memory_of_the_weights_too(
    format: Format, small: Path, large: Path, tmp_path: Path
) -> None:
    quantize(str(small), tmp_path / "small", format)
    quantize(str(large), tmp_path / "large", format)
    found = grown(LOAD, tmp_path / "small", tmp_path / "large", None)
    stored = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    assert 0.9 * stored < found["RssAnon"] <= 1.05 * stored + MORE, {k: f"{v / 1e6:.0f} MB" for k, v in found.items()}
    assert found["RssFile"] <= 32 * MIB, {k: f"{v / 1e6:.0f} MB" for k, v in found.items()}


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_quantizing_holds_a_few_matrices_whatever_the_size_of_the_model(
    format: Format, small: Path, large: Path
) -> None:
    """200 MB of block-fp8. Two experts and a matrix in float32 are less than 30 MB, in bf16."""
    found = grown(QUANTIZE, small, large, format)
    assert found["RssAnon"] <= 30e6, {k: f"{v / 1e6:.0f} MB" for k, v in found.items()}
    assert found["RssFile"] <= 32 * MIB, {k: f"{v / 1e6:.0f} MB" for k, v in found.items()}
