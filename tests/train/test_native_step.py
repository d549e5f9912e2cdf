"""Training steps in bfloat16, native where this CPU can: repeated and resumed bit for bit."""

from __future__ import annotations

from pathlib import Path

from baltoro.train import loop
from baltoro.train.data import PhaseData
from baltoro.train.recipe import Recipe
from baltoro.train.state import TrainState
from tests.train import tiny_runs


def recipe(out: Path) -> Recipe:
    model = tiny_runs.config(
        moe_intermediate_size=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, kv_lora_rank=32
    )
    return tiny_runs.recipe(out, dtype="bfloat16", model=model)


def steps(state: TrainState, own: Recipe, count: int) -> list[float]:
    data = PhaseData(own.phases[0], own, 64, 0)
    losses: list[float] = []
    for _ in range(count):
        losses.append(loop.train_step(state, data, own.lanes(own.phases[0]), 1e-3, 1.0).loss)
        state.progress.step += 1
        state.progress.phase_step += 1
    return losses


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    own = recipe(tmp_path)
    whole = loop.start(own)
    losses = steps(whole, own, 4)
    first = loop.start(own)
    assert steps(first, own, 2) == losses[:2]
    first.save(tmp_path)
    resumed = loop.start(own)
    assert resumed.resume(tmp_path)
    assert steps(resumed, own, 2) == losses[2:]
    tiny_runs.assert_same_bits(tiny_runs.tensors(resumed), tiny_runs.tensors(whole))
