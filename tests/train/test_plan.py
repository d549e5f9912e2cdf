"""The plan of a recipe counts what training would hold, and says what it divides."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from baltoro.errors import RecipeError
from baltoro.train import loop
from baltoro.train.data import PhaseData
from baltoro.train.layout import ParallelConfig
from baltoro.train.plan import activation_bytes, plan, text, token_flops
from baltoro.train.recipe import Recipe, read
from tests.train import tiny_runs

RECIPES = Path(__file__).parents[2] / "recipes"


def test_alone_the_bytes_are_those_of_a_started_run(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state, found = loop.start(recipe), plan(recipe, 1)
    assert found.parameters == sum(p.numel() for p in state.model.parameters())
    assert found.parameter_bytes == sum(p.nbytes for p in state.model.parameters())
    assert found.gradient_bytes == sum(p.nbytes for p in state.model.parameters() if p.requires_grad)
    assert found.momentum_bytes == sum(p.tensor.nbytes for p in state.optimizer.pieces() if p.kind == "momentum")
    assert found.adamw_bytes == sum(p.tensor.nbytes for p in state.optimizer.pieces() if p.kind != "momentum")
    assert found.gathered_bytes == 0


def test_sharding_divides_everything_and_experts_apart_divide_the_experts(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path, tokens_per_step=1024)
    whole = plan(recipe, 4)
    sharded = plan(replace(recipe, parallel=ParallelConfig(shard=True)), 4)
    apart = plan(replace(recipe, parallel=ParallelConfig(expert=4)), 4)
    assert whole.parameter_bytes == plan(recipe, 1).parameter_bytes
    assert whole.momentum_bytes < 0.5 * plan(recipe, 1).momentum_bytes  # one owner a matrix
    assert sharded.parameter_bytes == pytest.approx(whole.parameter_bytes / 4, rel=0.05)  # rows are not split
    experts = 4 * 3 * 16 * 32 * 4  # experts, matrices, F, D, bytes
    assert apart.parameter_bytes == whole.parameter_bytes - experts * 3 // 4


@pytest.mark.parametrize("name, world, tokens", [("pretrain_moonlight", 64, 5.7e12), ("pretrain_k2", 512, 15.96e12)])
def test_the_large_recipes_are_the_published_runs(name: str, world: int, tokens: float) -> None:
    recipe = read(RECIPES / f"{name}.toml")
    found = plan(recipe, world)
    assert sum(phase.tokens for phase in found.phases) == pytest.approx(tokens, rel=1e-3)
    large = name == "pretrain_k2"
    assert found.parameters == (1_026_408_232_448 if large else 15_960_110_208)  # facts: 1.04T by K2's own rounding
    assert found.token_flops / (6 * found.active) == pytest.approx(1.05, abs=0.1)  # "6 N", and attention on top
    first, last = recipe.phases[0], recipe.phases[-1]
    assert recipe.optimizer.lr * first.lr_end == pytest.approx(2e-4 if large else 4.2e-4)
    assert recipe.optimizer.lr * last.lr_end == pytest.approx(7e-6 if large else 0.0)
    for before, after in zip(recipe.phases, recipe.phases[1:], strict=False):
        assert after.lr_start == before.lr_end, "the rate does not jump"
    days = found.days(mfu=0.5, peak_flops=1e15)
    assert days == pytest.approx(sum(p.flops for p in found.phases) / (world * 5e14) / 86400)
    assert f"{found.days(mfu=0.4, peak_flops=989e12):,.1f} = " in text(found, mfu=0.4, peak_tflops=989)


def test_processes_that_divide_nothing_are_refused() -> None:
    recipe = read(RECIPES / "pretrain_k2.toml")
    with pytest.raises(RecipeError, match="expert is 128, which does not divide the 64 processes") as caught:
        plan(recipe, 64)
    assert "1, 2, 4, 8, 16, 32, 64" in caught.value.hint
    with pytest.raises(RecipeError, match="times processes 48"):
        plan(recipe, 48)
    with pytest.raises(RecipeError, match="mfu is 40"):
        text(plan(recipe, 512), mfu=40, peak_tflops=989)


def one_document(recipe: Recipe, tokens: int) -> tuple[loop.TrainState, Tensor, Tensor]:
    """Forward of one document, all of whose tokens are learned; bytes that autograd kept, parameters left out."""
    from baltoro.model.batch import Batch

    state = loop.start(recipe)
    mine = {p.untyped_storage().data_ptr() for p in state.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(tokens) % 64
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = functional.cross_entropy(state.model(Batch.of([ids.tolist()])), ids, reduction="sum")
    return state, loss, torch.tensor(sum(kept.values()))


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    assert recipe.model is not None
    with FlopCounterMode(display=False) as counter:
        _, loss, _ = one_document(recipe, 96)
        loss.backward()
    counted = counter.get_total_flops() / 96
    # torch counts padded experts and future positions as well, so more than is needed, but not without bound
    assert token_flops(recipe.model, 96) < counted < 3 * token_flops(recipe.model, 96)


def test_activations_are_estimated_to_a_factor(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    assert recipe.model is not None
    *_, kept = one_document(recipe, 256)
    estimate = activation_bytes(recipe, recipe.model, 256)
    assert 0.4 < estimate / float(kept) < 2.5, (estimate, int(kept))


def test_recomputed_blocks_give_the_same_gradients_from_less_memory(tmp_path: Path) -> None:
    states = {}
    for recompute in (False, True):
        recipe = tiny_runs.recipe(tmp_path, recompute=recompute, dtype="bfloat16")
        state, loss, kept = one_document(recipe, 128)
        loss.backward()
        states[recompute] = state, loss, kept
    (one, loss, much), (other, same, little) = states[False], states[True]
    assert torch.equal(loss, same) and little < 0.5 * much
    for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name  # type: ignore[arg-type]
    recipe = tiny_runs.recipe(tmp_path)
    results = [loop.train_step(state, PhaseData(recipe.phases[0], recipe, 64, 0), 2, 1e-3, 1.0)
               for state in (loop.start(recipe), loop.start(replace(recipe, recompute=True)))]  # fmt: skip
    assert results[0] == results[1] and math.isfinite(results[0].loss)  # what is observed is observed once
