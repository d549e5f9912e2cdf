"""A replay counts what came after memory was warm: the misses of a whole run less those of its beginning."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from baltoro.doctor.reads import block_bytes
from baltoro.doctor.replays import replays
from baltoro.weights.trace import Header, Reader, Writer
from tests import tiny

CONFIG = tiny.config(num_hidden_layers=3, n_routed_experts=8, num_experts_per_tok=1, v_head_dim=16)
BLOCK = block_bytes(CONFIG, "int8")
STEPS = [(0, 0), (1, 1), (0, 2), (1, 3), (0, 0)]  # experts of layers 1 and 2


def test_only_steps_behind_the_warm_ones_count(tmp_path: Path) -> None:
    header = Header.of(CONFIG, "m")
    with Writer(tmp_path / "trace", header) as writer:
        for step in STEPS:
            for layer, expert in zip(header.layers, step, strict=True):
                writer.add(layer, np.array([[expert]]))
    found = replays(
        Reader(tmp_path / "trace"), CONFIG, format="int8", slots=3, block_bytes=BLOCK, affordable=4, smaller=["int4"],
        warm_steps=2, earlier=Counter(),
    )  # fmt: skip
    # Where so few uses pin nothing, the policy is plain LRU. Two steps leave 2.0, 1.1 and 2.1 in three slots
    here, misses = [(2, 0), (1, 1), (2, 1)], 0
    for step in STEPS[2:]:
        for key in zip(header.layers, step, strict=True):
            misses += key not in here
            here = [*(each for each in here if each != key), key][-3:]
    assert found[0].slots == 3 and found[0].format == "int8"
    assert found[0].misses_per_token == misses / 3
    assert found[0].hit_rate == 1 - misses / 6
    assert [each.slots for each in found if each.format == "int8"] == [3, 4, 6, 9, 16]
    every = found[4]
    assert (every.slots, every.misses_per_token, every.budget_bytes) == (16, 2 / 3, 16 * BLOCK)  # 2.2 and 2.3 are new
    smaller = found[-1]
    assert smaller.format == "int4" and smaller.slots * smaller.block_bytes <= 3 * BLOCK
