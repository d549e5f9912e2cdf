"""A run of reinforcement learning: it learns, it goes on where it was cut, and two processes do what one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baltoro.errors import BaltoroError, RecipeError
from baltoro.model.load import load
from baltoro.train import rl
from baltoro.train.distributed import World, launch
from baltoro.train.muonclip import OptimizerConfig
from baltoro.train.recipe import DataSource
from baltoro.train.rl_recipe import RLRecipe, TaskSource
from tests.train import tiny_rl, tiny_runs

ROOT = Path(__file__).parents[2]
ALONE = World.alone()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are then taken in one order, here and in the processes that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def eventful(out: Path) -> RLRecipe:
    """Rollouts that are put aside, two updates an iteration, documents beside, the distance to the start."""
    return tiny_rl.recipe(
        out, iterations=4, prompts=2, updates=2, allowance_tokens=25, kl_tokens=600, ptx_weight=0.2, ptx_tokens=256,
        ptx=(DataSource(kind="copy", lengths=(64,)),), microbatch_tokens=2048,
        tasks=(TaskSource(kind="session", answer_tokens=60), TaskSource(kind="single", answer_tokens=60)),
    )  # fmt: skip


def saved(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "state").glob("*.safetensors")}


KILLED = """
import os, signal, sys
from pathlib import Path
from baltoro.train import rl
from baltoro.train.actor import Actor
from baltoro.train.distributed import World
from tests.train.test_rl import eventful
import torch
torch.set_num_threads(1)
draw, drawn = Actor.draw, []
def killed(self, groups, **how):
    drawn.append(1)
    if len(drawn) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    draw(self, groups, **how)
Actor.draw = killed
save, steps = rl._save, []
def twice(world, state, out, groups):
    if state.progress.step == 2:
        save(world, state, out, groups)
rl._save = twice
from dataclasses import replace
rl.run(World.alone(), replace(eventful(Path(sys.argv[1])), save_minutes=0.0), None)
"""


def test_a_run_that_was_killed_or_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed, stopped = tmp_path / "whole", tmp_path / "killed", tmp_path / "stopped"
    assert rl.run(ALONE, eventful(whole), None) is not None
    lines = tiny_runs.log(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert any(line["unfinished"] for line in lines)
    assert all("ptx" in line for line in lines)

    # SIGKILL while iteration 4 draws, when the last state is of iteration 2
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed)], cwd=ROOT, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert json.loads((killed / "state" / "progress.json").read_text())["step"] == 2
    assert [path.name for path in (killed / "rollouts").iterdir()] == ["2-0.json"]
    assert json.loads((killed / "rollouts" / "2-0.json").read_text())  # some were under way
    assert rl.run(ALONE, eventful(killed), None) is not None

    # Ctrl-C during iteration 2: it is finished, then the state is saved
    step = rl.Trainer.step

    def interrupted(self: rl.Trainer, *arguments: Any) -> None:
        if self.state.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(rl.Trainer, "step", interrupted)
        assert rl.run(ALONE, eventful(stopped), None) is None
    assert json.loads((stopped / "state" / "progress.json").read_text())["step"] == 2
    assert rl.run(ALONE, eventful(stopped), None) is not None

    for out in (killed, stopped):
        assert saved(out) == saved(whole)
        assert tiny_runs.log(out) == tiny_runs.log(whole)
        assert [path.name for path in (out / "rollouts").iterdir()] == ["4-0.json"]


def test_two_processes_draw_what_one_draws_and_take_its_step(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for processes, out in ((1, one), (2, two)):
        recipe = replace(eventful(out), iterations=1, allowance_tokens=0, updates=1, processes=processes)
        launch(rl.run, processes, 1, recipe, None)
    (alone,), (together,) = tiny_runs.log(one), tiny_runs.log(two)
    exact = ("reward", "by_kind", "right", "length", "cut", "agreed", "unfinished", "tokens")
    assert {key: together[key] for key in exact if key != "tokens"} == {
        key: alone[key] for key in exact if key != "tokens"
    }
    for key in ("loss", "entropy", "mismatch", "ptx"):
        assert together[key] == pytest.approx(alone[key], rel=1e-2), key  # bf16 in packs of other sizes
    # An update has one size whatever its gradient, so that a sign may differ where a gradient is nothing but rounding
    ours, theirs = (tiny_runs.saved(out / "state") for out in (one, two))
    start = load(tiny_rl.NANO).state_dict()
    moved = sum(float((ours[name] - before).square().sum()) for name, before in start.items())
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in start)
    assert apart < 0.05 * moved


def test_what_is_rewarded_is_said_more_often(tmp_path: Path) -> None:
    """A small talk in which one word is wanted, which nano says now and then."""
    question = {"messages": [{"role": "user", "content": "Who are you?"}], "wanted": {"mentions": ["small"]}}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(question) + "\n")
    recipe = tiny_rl.recipe(
        tmp_path / "run", iterations=8, prompts=4, samples=8, temperature=1.3, temperature_end=1.3, max_running=32,
        tasks=(TaskSource(kind="file", answer_tokens=40, file=str(tmp_path / "tasks.jsonl")),), warmup_steps=1,
        optimizer=OptimizerConfig(lr=3e-3),
    )  # fmt: skip
    assert rl.run(ALONE, recipe, None) is not None
    right = [line["right"]["file"] for line in tiny_runs.log(tmp_path / "run")]
    print(right)
    assert right[0] < 0.7
    assert right[-1] > right[0] + 0.25


def test_where_all_answers_are_worth_the_same_nothing_is_learned(tmp_path: Path) -> None:
    recipe = tiny_rl.recipe(tmp_path, iterations=1, tasks=(TaskSource(kind="single", answer_tokens=2),))
    state = rl.run(ALONE, recipe, None)
    assert state is not None
    (line,) = tiny_runs.log(tmp_path)
    assert (line["reward"], line["cut"], line["agreed"]) == (-0.5, 1.0, 1.0)
    start = load(tiny_rl.NANO).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in state.model.state_dict().items())


def test_weights_that_overflow_are_one_clear_error(tmp_path: Path) -> None:
    recipe = tiny_rl.recipe(tmp_path, samples=4, optimizer=OptimizerConfig(lr=1e38), warmup_steps=1)
    with pytest.raises(RecipeError, match="is not finite any more at iteration") as caught:
        rl.run(ALONE, recipe, None)
    assert "lower the learning rate" in caught.value.hint


def test_the_whole_command_writes_log_picture_and_checkpoint(tmp_path: Path) -> None:
    text = f"""
seed = 1
out = "{tmp_path / "out"}"
init = "{tiny_rl.NANO}"
tokenizer = "{tiny_rl.NANO}"
iterations = 1
prompts = 1
samples = 2
cache_mb = 16
evaluate_examples = 1
[optimizer]
lr = 1e-3
[[tasks]]
kind = "pick"
answer_tokens = 20
"""
    (tmp_path / "rl.toml").write_text(text)
    rl.main(tmp_path / "rl.toml")
    lines = tiny_runs.log(tmp_path / "out")
    assert [sorted(line) for line in (lines[0], lines[-1])] == [["scores", "step", "tokens"]] * 2
    assert load(tmp_path / "out" / "checkpoint").config == load(tiny_rl.NANO).config
    assert (tmp_path / "out" / "checkpoint" / "tiktoken.model").is_file()
    pytest.importorskip("matplotlib")
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_a_tokenizer_of_another_model_and_damaged_rollouts_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(RecipeError, match="has 2048 ids, the tokenizer of"):
        rl.run(ALONE, tiny_rl.recipe(tmp_path / "a", tokenizer=str(tiny_checkpoint)), None)
    recipe = tiny_rl.recipe(tmp_path / "b", iterations=1, allowance_tokens=3)
    rl.run(ALONE, recipe, None)
    with pytest.raises(RecipeError, match="the tasks have changed"):
        rl.run(ALONE, replace(recipe, iterations=2, task_seed=8), None)
    (rollouts,) = (tmp_path / "b" / "rollouts").iterdir()
    rollouts.write_text('[{"group": 0}]')
    with pytest.raises(RecipeError, match="cannot be taken up"):
        rl.run(ALONE, replace(recipe, iterations=2), None)
    with pytest.raises(BaltoroError, match="nowhere"):
        rl.run(ALONE, tiny_rl.recipe(tmp_path / "c", init="nowhere"), None)
