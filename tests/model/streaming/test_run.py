"""That the measuring of streaming measures: rows that hang together, on a model small enough for a test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baltoro.cli import app
from baltoro.config import ModelConfig, resolve
from baltoro.errors import BaltoroError, CheckpointError
from baltoro.kernels.targets import targets
from baltoro.model.streaming import disk, run, whole
from baltoro.model.streaming.run import Found
from baltoro.weights.blocks import expert_block
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.quantize.invent import invent
from tests import tiny

pytestmark = pytest.mark.skipif(len(targets()) == 1, reason="no native kernels were built")
CONFIG = tiny.config(
    num_hidden_layers=5, hidden_size=256, v_head_dim=32, kv_lora_rank=32, n_routed_experts=12, num_experts_per_tok=3
)
SHORT = replace(CONFIG, num_hidden_layers=3)


@pytest.fixture(autouse=True)
def little_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BURST_S", 0.005)
    monkeypatch.setattr(whole, "scratch_bytes", lambda: 2**22)
    monkeypatch.setattr(whole, "TRACED", 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("streaming") / "made"
    invent(SHORT, "int4", directory)
    return directory


def measured(made: Path, *, budget: int | None = None, resident: bool = False) -> Found:
    return run.measure(made, budget_bytes=budget, tokens=40, answer=12, resident=resident, progress=lambda _: None)


def test_rows_of_a_streamed_session_hang_together(made: Path) -> None:
    block = expert_block(Checkpoint.open(made), 1, 0).nbytes
    found = measured(made)
    assert [row.work for row in found.rows] == ["prefill", "decode"]
    assert [row.tokens for row in found.rows] == [40, 12]
    for row in found.rows:
        assert row.tokens_per_s * row.seconds == pytest.approx(row.tokens)
        assert row.guesses_per_token > 0
        assert row.foreseen_fraction is not None
        wrong = row.guesses_per_token * (1 - row.foreseen_fraction)
        # a guess may come when its work is over
        assert row.bytes_per_token == pytest.approx((row.misses_per_token + wrong) * block, abs=4 * block / row.tokens)
        assert row.budget_bytes == 24 * block // 3
        assert row.expert_bytes == block
        assert row.compute_from == "resident"
        assert row.disk_gbps
        assert row.limit_tokens_per_s
        assert row.read_gbps
        read = row.bytes_per_token * row.tokens
        slowest = max(row.misses_per_token * row.tokens * block / row.disk_gbps / 1e9, row.compute_seconds)
        assert row.limit_tokens_per_s * slowest == pytest.approx(row.tokens)
        assert row.read_gbps == pytest.approx(read / row.seconds / 1e9)
        assert row.disk_fraction == pytest.approx(row.read_gbps / row.disk_gbps)
        assert 0 <= row.waited_fraction < 1
        assert row.first_token_seconds > row.open_seconds > 0
        assert row.peak_memory_bytes > 8 * block
    prefill, decode = found.rows
    assert prefill.hit_rate == 0
    assert prefill.misses_per_token * 40 <= 24, "an expert is read once for all tokens of a chunk"
    uses = 12 * 2 * 3
    assert decode.misses_per_token * 12 == pytest.approx(uses * (1 - decode.hit_rate))
    assert 0 < decode.hit_rate < 1


def test_a_budget_for_all_experts_reads_each_once(made: Path) -> None:
    found = measured(made, budget=2**30)
    assert sum(row.misses_per_token * row.tokens for row in found.rows) <= 24
    assert found.rows[1].hit_rate > 0.9


def test_resident_rows_have_no_disk(made: Path) -> None:
    found = measured(made, resident=True)
    for row in found.rows:
        assert (row.budget_bytes, row.disk_gbps, row.read_gbps, row.limit_tokens_per_s) == (None, None, None, None)
        assert row.hit_rate == 1
        assert row.compute_seconds == row.seconds
    assert not whole.everywhere(CONFIG, found)


def test_where_memory_has_no_room_computing_is_the_time_not_waited(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.memory, "free", lambda: 2**20)
    for row in measured(made).rows:
        assert row.compute_from == "not waited"
        assert row.compute_seconds == pytest.approx(row.seconds * (1 - row.waited_fraction))


def test_the_whole_model_is_told_of_its_own_layers_only(made: Path) -> None:
    found = measured(made)
    results = whole.everywhere(CONFIG, found)
    assert len(results) == 2 * (1 + len(whole.DESCRIBED))
    for result in results:
        assert result.layers == 5
        assert result.expert_bytes == 4 * 12 * found.rows[0].expert_bytes
        assert result.budget_bytes == result.expert_bytes, "so small a model fits everywhere"
        assert result.read_seconds == 0
        assert result.tokens_per_s == result.limit_tokens_per_s
    assert not whole.everywhere(ModelConfig.open("nano"), found)


def test_a_machine_with_little_memory_reads_what_it_misses(made: Path) -> None:
    found = measured(made)
    block = found.rows[0].expert_bytes
    others = whole.everywhere(CONFIG, found)[0].resident_bytes
    machine = whole.Machine(
        name="small", bandwidth_gbps=10, ram_bytes=others + whole.RESERVED + 24 * block, disk_gbps=1.0, cores=2
    )
    here = replace(machine, name="here")
    prefill, decode = whole.of(CONFIG, found, machine, here)
    assert prefill.misses_per_token
    assert decode.misses_per_token
    assert decode.hit_rate is not None
    assert 0 < decode.hit_rate < 1
    assert decode.misses_per_token == pytest.approx(4 * 3 * (1 - decode.hit_rate))
    assert decode.read_seconds == pytest.approx(decode.misses_per_token * block / 1e9)
    assert 0 < prefill.misses_per_token * 40 <= 4 * 12
    none = next(iter(whole.of(CONFIG, found, replace(machine, ram_bytes=whole.RESERVED), here)))
    assert none.tokens_per_s is None
    assert "DOES NOT FIT" in whole.line(none)


def test_what_cannot_be_measured_is_explained(made: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not packed"):
        run.measure(resolve("nano"), budget_bytes=None, tokens=2, answer=1, resident=False, progress=print)
    with pytest.raises(BaltoroError, match="context of 2048"):
        run.measure(made, budget_bytes=None, tokens=2048, answer=1, resident=False, progress=print)
    with pytest.raises(BaltoroError, match="2 experts of a layer of 12"):
        run.shortened(CONFIG, mixtures=1, experts=2)


def test_the_command_makes_a_checkpoint_once_and_prints_rows(tmp_path: Path) -> None:
    command = ["bench", "stream", "--model", "nano", "--layers", "2", "--directory", str(tmp_path), "--format", "int8",
               "--tokens", "20", "--answer", "3"]  # fmt: skip
    first = CliRunner().invoke(app, [*command, "--json"])
    assert first.exit_code == 0, first.output
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert [row["work"] for row in rows[:2]] == ["prefill", "decode"]
    assert {"disk_gbps", "read_gbps", "disk_fraction", "tokens_per_s", "limit_tokens_per_s", "peak_memory_bytes",
            "budget_bytes"} <= rows[0].keys()  # fmt: skip
    assert all(row["layer"] == "all" for row in rows[2:])
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "was there already" in again.stderr
    assert "tokens/s" in again.stdout
    (place,) = tmp_path.iterdir()
    direct = CliRunner().invoke(app, ["bench", "stream", str(place), "--tokens", "9", "--answer", "2", "--resident"])
    assert direct.exit_code == 0
    assert "everything resident" in direct.stdout
