"""How much memory experts get."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError
from baltoro.weights.fit import MARGIN, Need, expert_budget
from baltoro.weights.layout import shards

K2 = replace(ModelConfig.open("kimi-k2-instruct"), weight_block_size=None, packed_format="int4")


def test_all_bytes_of_a_packed_checkpoint_are_counted_once() -> None:
    need = Need.of(K2)
    assert need.resident + need.experts == sum(spec.nbytes for shard in shards(K2, "int4") for spec in shard.specs())
    assert need.experts == 60 * 384 * 24_772_608


def test_experts_get_what_nothing_else_needs() -> None:
    need = Need(resident=10 * 2**30, experts=500 * 2**30)
    assert expert_budget(need, 2**30, free=24 * 2**30) == 11 * 2**30
    assert expert_budget(need, 2**30, free=510 * 2**30 + 2**30 + MARGIN) is None
    assert expert_budget(need, 2**30, free=510 * 2**30 + 2**30 + MARGIN - 1) == need.experts - 1
    with pytest.raises(BaltoroError, match=r"do not fit into the 12.9 GB that are free"):
        expert_budget(need, 2**30, free=12 * 2**30)


def test_a_small_machine_keeps_a_small_margin() -> None:
    assert expert_budget(Need(resident=2**20, experts=2**20), 0, free=2**24) is None
