"""A saved state is whole or the one before it, whatever moment the process dies at."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from baltoro.errors import RecipeError
from baltoro.train import loop
from baltoro.train.data import PhaseData
from baltoro.train.distributed import World
from baltoro.train.muonclip import OptimizerConfig
from baltoro.train.recipe import Recipe
from baltoro.train.state import TrainState
from tests.train import tiny_runs


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def trained(recipe: Recipe, steps: int) -> TrainState:
    state = loop.start(recipe)
    take(recipe, state, steps)
    return state


def take(recipe: Recipe, state: TrainState, steps: int) -> None:
    data = PhaseData(recipe.phases[0], recipe, 64, 0)
    for _ in range(steps):
        loop.train_step(state, data, 2, 1e-3, 1.0)
        state.progress.step += 1
        state.progress.phase_step += 1


def test_what_is_resumed_is_what_was_saved(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = trained(recipe, 2)
    state.progress.recent = [1 / 3, 2.5]
    state.save(tmp_path)
    fresh = loop.start(recipe)
    assert fresh.resume(tmp_path)
    assert fresh.progress == state.progress
    tiny_runs.assert_same_bits(tiny_runs.tensors(fresh), tiny_runs.tensors(state))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]


def test_without_a_state_nothing_is_resumed(tmp_path: Path) -> None:
    assert not loop.start(tiny_runs.recipe(tmp_path)).resume(tmp_path)


def test_progress_of_an_older_version_is_read(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    trained(recipe, 1).save(tmp_path)
    (tmp_path / "state" / "progress.json").write_text(
        '{"step": 1, "phase": 0, "phase_step": 1, "tokens": 256, "seconds": 0.5}'
    )
    fresh = loop.start(recipe)
    assert fresh.resume(tmp_path)
    assert (fresh.progress.step, fresh.progress.recent) == (1, [])


def die_at(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die before the `count`-th rename or removal from now on."""
    left = [count]

    def counted(original: object) -> object:
        def call(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return original(*arguments, **options)  # type: ignore[operator]

        return call

    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))


def test_a_save_killed_anywhere_leaves_the_old_or_the_new_state_even_twice_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = trained(recipe, 1)
    versions = [tiny_runs.tensors(state)]
    state.save(tmp_path / "first")
    for _ in range(2):
        take(recipe, state, 1)
        versions.append(tiny_runs.tensors(state))
    later = loop.start(recipe)
    take(recipe, later, 2)
    calls = 5  # renames and removals of one save; one more than it makes, so that a completed one is tried too
    reader = loop.start(recipe)
    for first in range(calls):
        for second in range(calls):
            out = tmp_path / f"{first}-{second}"
            shutil.copytree(tmp_path / "first", out)
            for number, saved in ((first, later), (second, state)):
                with monkeypatch.context() as patched:
                    die_at(number, patched)
                    with contextlib.suppress(Killed):
                        saved.save(out)
            assert reader.resume(out), (first, second)
            step = reader.progress.step
            assert step in (1, 2, 3), (first, second)
            tiny_runs.assert_same_bits(tiny_runs.tensors(reader), versions[step - 1])
            if second == calls - 1:
                assert step == 3
            shutil.rmtree(out)


@pytest.mark.parametrize(
    "name", [f"{kind}-00000-of-00001.safetensors" for kind in ("parameters", "momentum", "adamw")] + ["progress.json"]
)
def test_a_broken_or_missing_file_is_an_error_with_its_place(tmp_path: Path, name: str) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    trained(recipe, 1).save(tmp_path)
    path = tmp_path / "state" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(RecipeError, match="cannot be resumed") as caught:
        loop.start(recipe).resume(tmp_path)
    assert "delete it" in caught.value.hint
    path.unlink()
    with pytest.raises(RecipeError, match="cannot be resumed"):
        loop.start(recipe).resume(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": tiny_runs.config(hidden_size=40)},
        {"model": tiny_runs.config(num_hidden_layers=3)},
        {"optimizer": OptimizerConfig(lr=3e-3, adamw_matrices=("q_a_proj",))},
    ],
)
def test_a_state_of_another_recipe_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    trained(tiny_runs.recipe(tmp_path), 1).save(tmp_path)
    with pytest.raises(RecipeError, match="cannot be resumed"):
        loop.start(tiny_runs.recipe(tmp_path, **changes)).resume(tmp_path)


def test_parameters_that_are_not_finite_never_replace_a_good_state(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = trained(recipe, 1)
    state.save(tmp_path)
    good = tiny_runs.tensors(state)
    with torch.no_grad():
        state.model.model.norm.weight[3] = torch.nan
    with pytest.raises(RecipeError, match=r"model\.norm\.weight is not finite any more at step 1"):
        state.save(tmp_path)
    fresh = loop.start(recipe)
    assert fresh.resume(tmp_path)
    tiny_runs.assert_same_bits(tiny_runs.tensors(fresh), good)


@contextlib.contextmanager
def full_disk(file_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: writes fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("file_bytes", [0, 100, 5_000, 20_000])
def test_a_full_disk_is_one_error_and_the_last_good_state_stays(tmp_path: Path, file_bytes: int) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = trained(recipe, 1)
    state.save(tmp_path)
    good = tiny_runs.tensors(state)
    take(recipe, state, 1)
    with full_disk(file_bytes), pytest.raises(RecipeError, match="the state of step 2 cannot be saved: ") as caught:
        state.save(tmp_path)
    assert "make room" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    fresh = loop.start(recipe)
    assert fresh.resume(tmp_path) and fresh.progress.step == 1
    tiny_runs.assert_same_bits(tiny_runs.tensors(fresh), good)
    state.save(tmp_path)  # there is room again
    assert fresh.resume(tmp_path) and fresh.progress.step == 2


def test_a_log_on_a_full_disk_is_one_error(tmp_path: Path) -> None:
    with full_disk(2_000), pytest.raises(RecipeError, match=r"log\.jsonl cannot be written: "):
        loop.run(World.alone(), tiny_runs.recipe(tmp_path, phases=(tiny_runs.phase(steps=40),)), None)


def test_a_missing_process_of_a_state_is_named(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    trained(recipe, 1).save(tmp_path)
    for path in (tmp_path / "state").glob("momentum-*"):
        path.rename(path.with_name("momentum-00000-of-00002.safetensors"))
    with pytest.raises(RecipeError, match=r"momentum-00001-of-00002\.safetensors is missing"):
        loop.start(recipe).resume(tmp_path)


def test_a_run_killed_at_random_moments_ends_bitwise_as_one_that_was_not(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "tests/train/kill_runs.py", str(tmp_path / "runs"), "--kills", "4"]
    process = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
