"""Kimi K2's own size: sparse files with true headers, a terabyte that takes no disk."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.counts import TensorSpec
from baltoro.weights.layout import shards

K2 = ModelConfig.open("kimi-k2-instruct")
PACKED = replace(K2, weight_block_size=None, packed_format="int4")
OPEN = """
import json, sys
from pathlib import Path
from baltoro.config import ModelConfig
from baltoro.weights.checkpoint import Checkpoint, check
from baltoro.weights.experts import ExpertStore

config, checkpoint = ModelConfig.open(sys.argv[1]), Checkpoint.open(sys.argv[1])
check(config, checkpoint)
taken = 0
if config.packed_format:
    store = ExpertStore(checkpoint, config, budget_bytes=2**28)
    taken = sum(len(experts) for experts, _ in store.take(60, range(0, 384, 16)))
status = Path("/proc/self/status").read_text()  # getrusage has the memory of who started this process, too
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"nbytes": checkpoint.nbytes, "taken": taken, "peak": peak}))
"""


def write_sparse(directory: Path, config: ModelConfig, files: dict[str, list[TensorSpec]]) -> int:
    index: dict[str, str] = {}
    total = 0
    for file, specs in files.items():
        header: dict[str, object] = {}
        at = 0
        for spec in specs:
            offsets = [at, at + spec.nbytes]
            header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
            index[spec.name], at = file, at + spec.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 4096)
        with (directory / file).open("wb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            opened.truncate(8 + len(text) + at)
        total += at
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return total


def as_shipped() -> dict[str, list[TensorSpec]]:
    """One file a layer, as K2's 61."""
    files: defaultdict[str, list[TensorSpec]] = defaultdict(list)
    layer = 0
    for spec in counts.tensors(K2):
        if match := re.match(r"model\.layers\.(\d+)\.", spec.name):
            layer = int(match[1])
        files[f"model-{layer + 1}-of-61.safetensors"].append(spec)
    return files


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("config", [K2, PACKED], ids=["block-fp8", "packed int4"])
def test_a_terabyte_opens_in_less_than_a_gigabyte_of_memory(config: ModelConfig, tmp_path: Path) -> None:
    packed = config.packed_format is not None
    files = {shard.file: shard.specs() for shard in shards(config, "int4")} if packed else as_shipped()
    total = write_sparse(tmp_path, config, files)
    if sum(file.stat().st_blocks for file in tmp_path.iterdir()) * 512 > 10**9:
        pytest.skip("this filesystem has no sparse files")
    opened = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(opened.stdout)
    assert found["nbytes"] == total
    assert total > (0.5e12 if packed else 1.0e12)
    assert found["taken"] == (24 if packed else 0)
    assert found["peak"] < 10**9
