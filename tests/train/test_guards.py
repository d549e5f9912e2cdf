"""A step that would not be finite is not taken, and the error says where it began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baltoro.errors import RecipeError
from baltoro.train import guards, loop
from baltoro.train.data import PhaseData
from baltoro.train.distributed import World, launch
from baltoro.train.guards import NotFiniteError
from baltoro.train.layout import ParallelConfig, local
from baltoro.train.recipe import Recipe
from baltoro.train.state import TrainState
from tests.train import tiny_runs


def step(recipe: Recipe, state: TrainState) -> None:
    loop.train_step(state, PhaseData(recipe.phases[0], recipe, 64, 0), 2, 1e-3, 1.0)


def refusal(recipe: Recipe, state: TrainState) -> str:
    before = tiny_runs.tensors(state)
    with pytest.raises(NotFiniteError) as caught:
        step(recipe, state)
    after = tiny_runs.tensors(state)
    changed = [name for name in before if not torch.equal(before[name].nan_to_num(7.0), after[name].nan_to_num(7.0))]
    assert not changed, changed
    assert "documents of copy" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.experts.up_proj.weight", "lm_head.weight"]
)
def test_a_poisoned_parameter_is_named(tmp_path: Path, name: str, value: float) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = loop.start(recipe)
    with torch.no_grad():
        for poisoned in (name, "model.norm.weight"):  # the first one in the order of the forward pass is what is named
            state.model.get_parameter(poisoned).view(-1)[3] = value
    first = "model.norm.weight" if name == "lm_head.weight" else name
    assert refusal(recipe, state).startswith(f"parameter {first} is not finite; the step is not taken")


def test_a_poisoned_activation_is_named_by_the_first_module_that_gives_it(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = loop.start(recipe)
    with torch.no_grad():
        state.model.get_parameter("model.layers.1.self_attn.kv_b_proj.weight").mul_(1e30)
        state.model.get_parameter("model.layers.1.self_attn.o_proj.weight").mul_(1e30)
    message = refusal(recipe, state)
    assert message.startswith("the output of model.layers.1.self_attn.o_proj (of copy) is not finite")


def test_a_poisoned_gradient_is_named_though_the_loss_is_finite(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = loop.start(recipe)

    def poison(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0] = torch.inf
        return gradient

    handle = state.model.get_parameter("model.layers.0.mlp.up_proj.weight").register_hook(poison)
    message = refusal(recipe, state)
    assert message.startswith("the gradient of model.layers.0.mlp.up_proj.weight is not finite")
    state.model.get_parameter("model.layers.1.self_attn.o_proj.weight").register_hook(poison)
    state.optimizer.zero_grad()
    assert "up to that of model.layers.1.self_attn.o_proj.weight" in refusal(recipe, state)
    handle.remove()


def test_large_finite_gradients_are_no_reason_to_stop(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = loop.start(recipe)
    state.model.get_parameter("model.norm.weight").register_hook(lambda gradient: torch.full_like(gradient, 1e38))
    guards.check(
        state.model, World.alone(), torch.ones(1), [("a", torch.full((9,), 3e38)), ("b", torch.zeros(0))], [], []
    )  # fmt: skip


def poisoned_on_one(world: World, out: Path) -> None:
    """The NaN lies in an expert that the other process holds, or in its shard of a matrix."""
    for number, parallel in enumerate((ParallelConfig(expert=2), ParallelConfig(shard=True))):
        recipe = tiny_runs.recipe(out / str(number), parallel=parallel)
        start = loop.start

        def poisoned(recipe: Recipe, world: World | None = None, start: Any = start) -> TrainState:
            state: TrainState = start(recipe, world)
            if world is not None and world.rank == 1:
                local(state.model.get_parameter("model.layers.1.mlp.experts.down_proj.weight")).view(-1)[-1] = torch.nan
            return state

        loop.start = poisoned
        try:
            loop.run(world, recipe, None)
        except RecipeError as error:
            (out / f"{number}-{world.rank}").write_text(error.message)
        loop.start = start


def test_all_processes_stop_with_the_same_words_where_one_has_the_nan(tmp_path: Path) -> None:
    launch(poisoned_on_one, 2, 1, tmp_path)
    for number in range(2):
        words = {(tmp_path / f"{number}-{rank}").read_text() for rank in range(2)}
        assert len(words) == 1
        message = words.pop()
        assert message.startswith("parameter model.layers.1.mlp.experts.down_proj.weight is not finite")
        assert "is not finite any more at step 0" in message, "nor is it saved"
        assert not (tmp_path / str(number) / "state").exists()


def test_a_run_that_stops_saves_what_was_true_before_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_runs.recipe(tmp_path / "stopped", save_minutes=0.0)
    train_step = loop.train_step

    def poisoned(state: TrainState, *arguments: Any) -> Any:
        if state.progress.step == 5:
            state.model.lm_head.weight.register_hook(lambda gradient: gradient * torch.nan)
        return train_step(state, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", poisoned)
        with pytest.raises(RecipeError, match=r"the gradient of lm_head\.weight is not finite.*the state before it is"):
            loop.run(World.alone(), recipe, None)
    assert json.loads((tmp_path / "stopped" / "state" / "progress.json").read_text())["step"] == 5
    assert (tmp_path / "stopped" / "state-5" / "progress.json").exists()
    assert loop.run(World.alone(), recipe, None) is not None  # the cause is gone: it goes on as if nothing had been
    whole = tiny_runs.recipe(tmp_path / "whole")
    assert loop.run(World.alone(), whole, None) is not None
    tiny_runs.assert_same_bits(
        tiny_runs.saved(tmp_path / "stopped" / "state"), tiny_runs.saved(tmp_path / "whole" / "state")
    )
    assert tiny_runs.log(tmp_path / "stopped") == tiny_runs.log(tmp_path / "whole")
