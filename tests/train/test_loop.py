"""A training step computes what it says, and a run that was cut goes on as if it had not been."""

from __future__ import annotations

import json
import math
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
import torch.nn.functional as functional
from torch import Tensor

from baltoro.errors import RecipeError
from baltoro.model.batch import Batch
from baltoro.model.load import save
from baltoro.model.moe import Router
from baltoro.model.transformer import Transformer
from baltoro.train import loop
from baltoro.train.data import Microbatch, PhaseData
from baltoro.train.distributed import World, launch
from baltoro.train.muonclip import OptimizerConfig, rebalance
from baltoro.train.recipe import Recipe
from baltoro.weights.quantize.run import quantize
from tests.train import tiny_runs

ROOT = Path(__file__).parents[2]
ALONE = World.alone()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are then taken in one order, here and in the processes that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def saved(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "state").glob("*.safetensors")}


def gated(out: Path) -> Recipe:
    """A phase of up to 24 steps that ends after 20, as soon as its gate has seen enough; then three steps more."""
    first = tiny_runs.phase(name="gated", steps=24, gate_kind="copy", gate_loss=100.0)
    return tiny_runs.recipe(out, phases=(first, tiny_runs.phase(name="last", steps=3, lr_end=0.5)))


def stop_in_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGINT while it computes step `step`."""
    train_step = loop.train_step

    def interrupted(state: Any, *arguments: Any) -> Any:
        if state.progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(state, *arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)


KILLED = """
import os, signal, sys
from pathlib import Path
from baltoro.train import loop
from baltoro.train.recipe import read
from baltoro.train.state import TrainState
import torch
torch.set_num_threads(1)
save, train_step = TrainState.save, loop.train_step
def every_tenth(state, out, keep=None):
    if state.progress.step % 10 == 0:
        save(state, out)
def killed(state, *arguments):
    if state.progress.step == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(state, *arguments)
TrainState.save, loop.train_step = every_tenth, killed
loop.run(loop.World.alone(), read(sys.argv[1]), None)
"""


def test_a_run_that_was_killed_or_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed, stopped = tmp_path / "whole", tmp_path / "killed", tmp_path / "stopped"
    assert loop.run(ALONE, gated(whole), None) is not None
    assert [line["step"] for line in tiny_runs.log(whole)] == list(range(1, 24))
    assert [line["phase"] for line in tiny_runs.log(whole)] == ["gated"] * 20 + ["last"] * 3

    # SIGKILL after step 13, when the last state is of step 10
    phases = 'name = "gated"\nsteps = 24\ngate_kind = "copy"\ngate_loss = 100.0'
    data = '[[phases.data]]\nkind = "copy"\nlengths = [64, 96]\n'
    text = tiny_runs.TOML.replace("OUT", str(killed)).replace('name = "copy"\nsteps = 8', phases)
    text = text.replace("warmup_steps", "save_minutes = 0\nwarmup_steps")
    text += '[[phases]]\nname = "last"\nsteps = 3\nlr_end = 0.5\n' + data
    (tmp_path / "recipe.toml").write_text(text)
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "recipe.toml")], cwd=ROOT, capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert json.loads((killed / "state" / "progress.json").read_text())["step"] == 10
    assert len(tiny_runs.log(killed)) == 13
    assert loop.run(ALONE, gated(killed), None) is not None

    # Ctrl-C during step 15: the step is finished, then the state is saved
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        stop_in_step(patched, 15)
        assert loop.run(ALONE, gated(stopped), None) is None
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((stopped / "state" / "progress.json").read_text())["step"] == 16
    assert loop.run(ALONE, gated(stopped), None) is not None

    for out in (killed, stopped):
        assert saved(out) == saved(whole)
        assert tiny_runs.log(out) == tiny_runs.log(whole)


def gradients(recipe: Recipe, lanes: int) -> tuple[list[dict[str, Tensor]], float]:
    """Each lane's own gradient of the summed loss, and the number of learned tokens."""
    state = loop.start(recipe)
    data = PhaseData(recipe.phases[0], recipe, 64, 0)
    found, learned = [], 0
    for lane in range(lanes):
        microbatch = data.microbatch(0, lane)
        functional.cross_entropy(state.model(microbatch.batch), microbatch.targets, reduction="sum").backward()
        found.append({name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None})
        state.model.zero_grad()
        learned += len(microbatch.targets)
    return found, float(learned)


def test_two_processes_take_the_step_that_one_takes(tmp_path: Path) -> None:
    lanes = 4
    phase = tiny_runs.phase(steps=1, gate_kind="copy", gate_loss=0.01)
    recipe = tiny_runs.recipe(tmp_path, phases=(phase,), tokens_per_step=128 * lanes)
    for processes, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        with pytest.raises(RecipeError, match=r"its gate is 0\.01") as caught:
            launch(loop.run, processes, 1, replace(recipe, out=str(out)), None)
        assert "goes on from here" in caught.value.hint
    one, two = (tiny_runs.log(tmp_path / name)[0] for name in ("one", "two"))
    assert two["tokens"] == one["tokens"] and two["expert_load"] == one["expert_load"]
    assert abs(two["loss"] - one["loss"]) < 2e-4  # the log keeps four digits
    parts, learned = gradients(recipe, lanes)
    one, two = (tiny_runs.saved(tmp_path / name / "state") for name in ("one", "two"))
    assert one.keys() == two.keys() and one
    for name in parts[0]:
        if f"momentum.{name}" not in one:
            continue
        # Two orders of adding n numbers differ by at most 2 (n - 1) u of their absolute sum; one division each
        bound = 2 * lanes * 2**-24 * sum(part[name].abs() for part in parts) / learned
        first, second = (found[f"momentum.{name}"] for found in (one, two))  # after one step it is the gradient
        assert ((first - second).abs() <= bound).all(), name


def test_accumulated_microbatches_give_the_gradient_of_one_large_batch(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path, tokens_per_step=512)
    parts, learned = gradients(recipe, 4)
    data = PhaseData(recipe.phases[0], recipe, 64, 0)
    microbatches = [data.microbatch(0, lane) for lane in range(4)]
    rows, edges = [], [0]
    for microbatch in microbatches:
        assert microbatch.batch.logit_rows is not None
        rows.append(microbatch.batch.logit_rows + edges[-1])
        edges += [edges[-1] + edge for edge in microbatch.batch.edges[1:]]
    large = Batch(
        ids=torch.cat([microbatch.batch.ids for microbatch in microbatches]),
        positions=torch.cat([microbatch.batch.positions for microbatch in microbatches]),
        edges=tuple(edges),
        logit_rows=torch.cat(rows),
    )
    state = loop.start(recipe)
    targets = torch.cat([microbatch.targets for microbatch in microbatches])
    functional.cross_entropy(state.model(large), targets).backward()
    expected = {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}

    stepped = loop.start(recipe)
    loop.train_step(stepped, data, 4, 0.0, 0.0)  # momentum keeps what the step saw
    seen = {matrix.name: matrix.momentum for matrix in stepped.optimizer.matrices}
    assert seen
    for name, gradient in seen.items():
        # Sums over 512 tokens in another order: u sqrt(512) of the terms' size, which 20 u of the largest entry
        # would be for sums without cancellation; ten times that was never seen
        error = (gradient - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 200 * 2**-24, (name, float(error))
        accumulated = sum(part[name] for part in parts) / learned
        assert (gradient - accumulated).abs().max() <= 2**-22 * accumulated.abs().max(), name


def test_the_loss_falls_within_a_few_steps_of_copying(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path, optimizer=OptimizerConfig(lr=1e-2))
    state, losses = loop.start(recipe), []
    data = PhaseData(recipe.phases[0], recipe, 16, 0)  # the model knows 64 tokens, only 16 of them occur
    for _ in range(24):
        losses.append(loop.train_step(state, data, 2, 1e-3, 1.0).loss)
        state.progress.phase_step += 1
    assert losses[0] == pytest.approx(math.log(64), abs=0.3)  # nearly even guesses at the start
    assert sum(losses[-5:]) / 5 == pytest.approx(math.log(16), abs=0.3)


def test_a_loss_that_is_not_a_number_ends_the_run_before_the_step_and_keeps_what_was_saved(tmp_path: Path) -> None:
    loop.run(ALONE, tiny_runs.recipe(tmp_path, phases=(tiny_runs.phase(steps=3),)), None)
    before = saved(tmp_path)
    longer = (tiny_runs.phase(steps=3), tiny_runs.phase(steps=5))
    exploding = tiny_runs.recipe(tmp_path, phases=longer, optimizer=OptimizerConfig(lr=1e30))
    with pytest.raises(RecipeError, match=r"is not finite; the step is not taken") as caught:
        loop.run(ALONE, exploding, None)
    assert "lower the learning rate" in caught.value.hint
    steps = tiny_runs.log(tmp_path)[-1]["step"]
    kept = tmp_path / f"state-{steps}"
    assert f"the one saved before it is {kept}" in caught.value.message
    assert {path.name: path.read_bytes() for path in kept.glob("*.safetensors")} == before
    assert json.loads((tmp_path / "state" / "progress.json").read_text())["step"] == steps
    assert all(math.isfinite(line["loss"]) for line in tiny_runs.log(tmp_path))


def test_a_gate_that_is_missed_saves_and_says_so_and_more_steps_go_on_from_there(tmp_path: Path) -> None:
    phase = tiny_runs.phase(steps=21, gate_kind="copy", gate_loss=0.01)
    with pytest.raises(RecipeError, match=r"the loss of 'copy' is \d\.\d\d after 21 steps, its gate is 0\.01"):
        loop.run(ALONE, tiny_runs.recipe(tmp_path, phases=(phase,)), None)
    with pytest.raises(RecipeError, match=r"is \d\.\d\d after 21 steps"):  # the same words without a step more
        loop.run(ALONE, tiny_runs.recipe(tmp_path, phases=(phase,)), None)
    lowered = replace(phase, steps=30, gate_loss=100.0)
    assert loop.run(ALONE, tiny_runs.recipe(tmp_path, phases=(lowered,)), None) is not None
    assert len(tiny_runs.log(tmp_path)) == 21  # the saved losses already pass it


def test_a_gate_needs_twenty_steps_below_its_loss() -> None:
    recent: list[float] = []
    gate = loop.Gate(tiny_runs.phase(gate_kind="copy", gate_loss=1.0), ["copy", "text"], recent)
    result = loop.StepResult(loss=9.0, by_kind={"copy": 0.9}, clipped=0, max_logit=0.0, load=1.0)
    gate.watch(replace(result, by_kind={"copy": 3.0}))
    for _ in range(loop.GATE_STEPS - 1):
        gate.watch(result)
        assert not gate.passed  # too few, then a mean of (3 + 19 x 0.9) / 20 = 1.005
    gate.watch(replace(result, by_kind={"text": 0.1}))  # of another kind: not looked at
    assert not gate.passed
    gate.watch(result)
    assert gate.passed and recent == [0.9] * loop.GATE_STEPS
    assert not loop.Gate(tiny_runs.phase(), ["copy"], recent).passed


def test_a_gate_on_a_kind_that_never_comes_is_refused_at_once(tmp_path: Path) -> None:
    phase = tiny_runs.phase(gate_kind="copies", gate_loss=1.0)
    with pytest.raises(RecipeError, match="gate_kind is 'copies', its documents are of copy"):
        loop.run(ALONE, tiny_runs.recipe(tmp_path, phases=(phase,)), None)


def test_rates_warm_up_once_and_then_follow_each_phases_line(tmp_path: Path) -> None:
    phases = (tiny_runs.phase(steps=5), tiny_runs.phase(steps=3, lr_start=1.0, lr_end=0.2))
    loop.run(ALONE, tiny_runs.recipe(tmp_path, phases=phases, warmup_steps=4), None)
    scales = [line["lr_scale"] for line in tiny_runs.log(tmp_path)]
    assert scales == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.6, 0.2]


def test_a_cosine_phase_follows_half_a_cosine(tmp_path: Path) -> None:
    phases = (tiny_runs.phase(steps=5, lr_start=1.0, lr_end=0.1, lr_shape="cosine"),)
    loop.run(ALONE, tiny_runs.recipe(tmp_path, phases=phases, warmup_steps=0), None)
    scales = [line["lr_scale"] for line in tiny_runs.log(tmp_path)]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]
    assert scales == [round(scale, 5) for scale in expected]


def test_scores_are_taken_when_due_and_at_the_end(tmp_path: Path) -> None:
    phases = (tiny_runs.phase(steps=2),)
    models: list[Transformer] = []

    def evaluate(model: Transformer) -> dict[str, Any]:
        models.append(model)
        return {"single": {"mean": 0.5, "low": 0.4, "high": 0.6}}

    state = loop.run(ALONE, tiny_runs.recipe(tmp_path, phases=phases, evaluate_minutes=1e-9), evaluate)
    assert state is not None and models == [state.model] * 3
    lines = tiny_runs.log(tmp_path)
    assert [("scores" in line, line["step"]) for line in lines] == [
        (False, 1), (True, 1), (False, 2), (True, 2), (True, 2),
    ]  # fmt: skip
    loop.run(ALONE, replace(gated(tmp_path / "end"), phases=phases), evaluate)
    assert [line["step"] for line in tiny_runs.log(tmp_path / "end") if "scores" in line] == [2]


def test_a_log_keeps_whole_lines_up_to_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines) + '{"step": 2, "lo')  # cut in the middle by a full disk
    loop.Log(path, 2)
    assert path.read_text() == "".join(lines[:2])
    loop.Log(path, 0)
    assert path.read_text() == ""


class Silent(PhaseData):
    """Documents of which nothing is learned."""

    def microbatch(self, step: int, lane: int) -> Microbatch:
        microbatch = super().microbatch(step, lane)
        none = torch.zeros(0, dtype=torch.int64)
        return Microbatch(replace(microbatch.batch, logit_rows=none), none, none)


def test_a_step_in_which_nothing_is_learned_breaks_nothing(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    state = loop.start(recipe)
    result = loop.train_step(state, Silent(recipe.phases[0], recipe, 64, 0), 2, 1e-3, 1.0)
    assert result.loss == 0.0 and result.by_kind == {}
    assert all(value.isfinite().all() for value in tiny_runs.tensors(state).values())


def test_a_step_counts_tokens_and_loss_by_kind(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path)
    data = PhaseData(recipe.phases[0], recipe, 64, 0)
    state = loop.start(recipe)
    nats, learned, tokens = 0.0, 0, 0
    with torch.no_grad():
        for lane in range(2):
            microbatch = data.microbatch(0, lane)
            logits = state.model(microbatch.batch).double()
            nats += float(functional.cross_entropy(logits, microbatch.targets, reduction="sum"))
            learned += len(microbatch.targets)
            tokens += len(microbatch.batch.ids)
    result = loop.train_step(state, data, 2, 1e-3, 1.0)
    assert result.loss == pytest.approx(nats / learned, rel=1e-5)  # float32 sums of some 150 terms
    assert result.by_kind == {"copy": pytest.approx(result.loss, rel=1e-6)}
    assert state.progress.tokens == tokens
    assert 1.0 <= result.load <= 4.0 and result.max_logit > 0


def test_a_run_starts_from_a_checkpoint_with_all_but_the_routers_bias_trained(tmp_path: Path) -> None:
    trained = loop.start(tiny_runs.recipe(tmp_path))
    save(trained.model, tmp_path / "checkpoint")
    state = loop.start(tiny_runs.recipe(tmp_path, init=str(tmp_path / "checkpoint"), model=None, seed=99))
    for (name, found), (_, expected) in zip(
        state.model.named_parameters(), trained.model.named_parameters(), strict=True
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected.bfloat16().float()), name
        assert found.requires_grad == expected.requires_grad == ("e_score_correction_bias" not in name), name
    with pytest.raises(RecipeError, match=r"\[model\] differs from the config of"):
        other = tiny_runs.config(num_hidden_layers=3)
        loop.start(tiny_runs.recipe(tmp_path, init=str(tmp_path / "checkpoint"), model=other))


def test_packed_weights_are_no_start_for_training(tmp_path: Path) -> None:
    quantize("nano", tmp_path / "packed", "int8")
    with pytest.raises(RecipeError, match=r"packed is packed in int8 for inference"):
        loop.start(tiny_runs.recipe(tmp_path, init=str(tmp_path / "packed"), model=None))


def test_the_bias_brings_a_skewed_router_to_even_load() -> None:
    config = tiny_runs.config(n_routed_experts=8)
    generator = torch.Generator().manual_seed(0)
    router = Router(config)
    common = torch.randn(config.hidden_size, generator=generator)
    with torch.no_grad():
        router.weight.copy_(0.3 * torch.randn(8, config.hidden_size, generator=generator))
        router.weight[:2] += 0.05 * common  # whatever all tokens share speaks for two experts
    x = common + torch.randn(4096, config.hidden_size, generator=generator)

    def load() -> Tensor:
        return torch.bincount(router(x).experts.flatten(), minlength=8).float()

    start = load()
    assert start.max() / start.mean() > 2
    for _ in range(500):
        rebalance([router.e_score_correction_bias], [load()], 1e-3)
    end = load()
    assert end.max() / end.mean() < 1.05 and end.min() / end.mean() > 0.95
    assert float(router.e_score_correction_bias.sum().abs()) < 1e-4  # the mean of the signs is taken out


def test_training_evens_the_load_that_its_log_shows(tmp_path: Path) -> None:
    """The same through train_step: with the balance off the worst expert keeps its surplus."""
    found = {}
    for rate in (0.0, 0.02):
        recipe = tiny_runs.recipe(tmp_path / str(rate), balance_rate=rate, optimizer=OptimizerConfig(lr=1e-5))
        state = loop.start(recipe)
        with torch.no_grad():
            state.model.model.layers[1].mlp.gate.e_score_correction_bias[0] = 0.5
        data = PhaseData(recipe.phases[0], recipe, 64, 0)
        for _ in range(30):
            result = loop.train_step(state, data, 2, rate, 1.0)
        found[rate] = result.load
    assert found[0.0] == 2.0  # every token's first choice of two is expert 0: twice the mean of four experts
    assert found[0.02] < 1.3
