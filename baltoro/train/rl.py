"""`baltoro rl RECIPE`: reinforcement learning with rewards that can be checked.

iteration:  prompts ─> actor.draw (our engine, these parameters) ─> rewards ─> steps of MuonClip on the objective
               ^                                                                              │
               └──── unfinished rollouts go on, drawn by the new weights <── actor.refresh <──┘
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.model.attention import Attention
from baltoro.model.load import load
from baltoro.model.transformer import Observed, Transformer
from baltoro.train import corpus, heldout, loop, objective, pretrain, rl_curves, unfinished
from baltoro.train.actor import Actor
from baltoro.train.critic import Critic
from baltoro.train.data import PhaseData
from baltoro.train.display import Display
from baltoro.train.distributed import World, launch
from baltoro.train.objective import Episode
from baltoro.train.recipe import Recipe
from baltoro.train.rl_recipe import RLRecipe, read
from baltoro.train.rl_report import Report
from baltoro.train.rollouts import Group
from baltoro.train.state import TrainState
from baltoro.train.tasks import Tasks


def main(path: str | Path) -> None:
    """Train, or go on where the last call stopped. Writes recipe.out: state, log, picture, checkpoint/ at the end."""
    recipe = read(path)
    if recipe.ptx:
        corpus.prepare(recipe.training())
    launch(_process, recipe.processes, recipe.threads, recipe)


def _process(world: World, recipe: RLRecipe) -> None:
    out = Path(recipe.out)
    try:
        state = run(world, recipe, heldout.Evaluation(recipe.tokenizer, recipe.evaluate_examples))
    finally:
        if world.leads and (out / "log.jsonl").exists():
            rl_curves.draw(out / "log.jsonl", out / "curves.png")
    if state is not None:
        pretrain.export(state, recipe.training())


def run(world: World, recipe: RLRecipe, evaluate: loop.Evaluate | None) -> TrainState | None:
    """All iterations from where the run stands; None when Ctrl-C or SIGTERM stopped it (saved, after a whole one)."""
    out, training = Path(recipe.out), recipe.training()
    tokenizer, tasks = Tokenizer.open(recipe.tokenizer), Tasks(recipe)
    state = loop.start(training, world)
    if state.model.config.vocab_size != tokenizer.vocab_size:
        raise RecipeError(
            f"{recipe.init} has {state.model.config.vocab_size} ids, the tokenizer of {recipe.tokenizer} "
            f"{tokenizer.vocab_size}",
            hint="name the tokenizer that the model was trained with",
        )
    resumed = state.resume(out)
    progress = state.progress
    groups = unfinished.load(out, progress.step, world.rank, world.size, tasks, tokenizer) if resumed else []
    beginning = load(recipe.init) if world.leads and recipe.kl_tokens else None
    trainer = Trainer(state, recipe, training, world)
    display = Display(quiet_steps=1) if world.leads else None
    log = loop.Log(out / "log.jsonl", progress.step if resumed else 0) if world.leads else None
    with (
        display or contextlib.nullcontext(),
        Actor(state.model, recipe) as actor,
        Critic(recipe.critic) if recipe.critic else contextlib.nullcontext() as critic,
        loop.stop_requests() as stopping,
    ):
        if display is not None:
            if resumed:
                display.say(f"going on at iteration {progress.step} of {out}")
            display.phase("rl", progress.step, recipe.iterations)
        if log is not None and evaluate is not None and not progress.step:
            log.scores(progress, evaluate(state.model))
        saved = time.monotonic()
        while progress.step < recipe.iterations:
            began = time.monotonic()
            temperature = recipe.temperature_at(progress.step)
            first = progress.step * recipe.prompts
            groups += [
                Group.of(number, tasks.task(number), recipe.samples, tokenizer)
                for number in range(first, first + recipe.prompts)
                if number % world.size == world.rank
            ]
            actor.draw(groups, temperature=temperature, allowance=recipe.allowance_tokens)
            ended, groups = [g for g in groups if g.ended], [g for g in groups if not g.ended]
            rewards = [rewards_of(group, recipe, critic) for group in ended]
            report = Report(recipe, temperature)
            report.drawn(ended, rewards, len(groups))
            if critic is not None:
                report.judged(*critic.counts())
            if beginning is not None:
                report.distance = _distance(state.model, beginning, ended, recipe.kl_tokens)
            for update in range(recipe.updates):
                part = slice(update, None, recipe.updates)
                trainer.step(ended[part], rewards[part], update, report)
            actor.refresh()
            progress.seconds += time.monotonic() - began
            progress.step += 1
            line = report.line(world, progress)
            if log is not None and display is not None:
                log.write(line)
                display.step(progress.step, report.note(line))
            stop_now = world.agree(bool(stopping))
            over = progress.step == recipe.iterations
            if stop_now or over or world.agree(time.monotonic() - saved > 60 * recipe.save_minutes):
                _save(world, state, out, groups)
                saved = time.monotonic()
            if stop_now and not over:
                return None
            due = over or (recipe.evaluate_iterations and progress.step % recipe.evaluate_iterations == 0)
            if log is not None and evaluate is not None and due:
                log.scores(progress, evaluate(state.model))
    return state


def _save(world: World, state: TrainState, out: Path, groups: Sequence[Group]) -> None:
    """Rollouts first, on every process; then the state that they belong to."""
    unfinished.save(out, state.progress.step, world.rank, groups)
    world.wait()
    state.save(out)
    if world.leads:
        unfinished.forget_others(out, state.progress.step)


def rewards_of(group: Group, recipe: RLRecipe, critic: Critic | None) -> list[float]:
    """Of each rollout: what its environment says, less where it was cut, and what the critic adds."""
    found = [-recipe.truncation_penalty if r.reward is None else r.reward for r in group.rollouts]
    if critic is None or recipe.critic is None or not critic.asks(group):
        return found
    won = critic.rank(group)
    return [reward + recipe.critic.weight * share for reward, share in zip(found, won, strict=True)]


@torch.no_grad()
def _distance(model: Transformer, start: Transformer, groups: Sequence[Group], tokens: int) -> float | None:
    """Mean KL to the start in nats a token, on some of what was drawn; None where nothing was."""
    chosen: list[Episode] = []
    for rollout in (group.rollouts[0] for group in groups):
        if rollout.positions and (not chosen or sum(len(e.ids) for e in chosen) + len(rollout.ids) <= tokens):
            chosen.append(Episode.of(rollout, 0.0))
    if not chosen:
        return None
    packed = objective.pack(chosen)
    return float(objective.divergence(model(packed.batch), start(packed.batch)))


@dataclass(frozen=True, slots=True)
class Trainer:
    """Steps of MuonClip on the objective and on documents that go on being learned."""

    state: TrainState
    recipe: RLRecipe
    training: Recipe
    world: World

    def step(self, groups: Sequence[Group], rewards: Sequence[Sequence[float]], update: int, report: Report) -> None:
        """One step on these groups, which are this process's own; gradients are summed over all.

        Groups whose rewards all agree are left out, though they count in the mean: what they would add is tau^2 times
        the square of log(pi / pi_old), which is nothing at an iteration's first update. Without any other group and
        without documents there is no step.
        """
        state, recipe, world = self.state, self.recipe, self.world
        episodes: list[Episode] = []
        for group, each in zip(groups, rewards, strict=True):
            mean = sum(each) / len(each)
            if max(each) > min(each):
                episodes += [Episode.of(r, x - mean) for r, x in zip(group.rollouts, each, strict=True) if r.positions]
        data = self._documents(update)
        counts = torch.tensor(
            [float(sum(len(g.rollouts) for g in groups)), float(len(episodes)), float(sum(len(t) for _, t in data))]
        )
        world.sum_([counts])
        total, taught, learned = (float(count) for count in counts)
        if not taught and not learned:
            return
        model, peaks = state.model, [self._no_peaks()]
        for packed in objective.microbatches(episodes, recipe.microbatch_tokens):
            observed = Observed()
            sums = objective.objective(model(packed.batch, None, observed), packed, recipe.tau)
            (sums.loss / total).backward()
            peaks.append(torch.stack(observed.max_logits))
            report.stepped(sums, packed, first=update == 0)
            state.progress.tokens += len(packed.batch.ids)
        for batch, targets in data:
            observed = Observed()
            nats = functional.cross_entropy(model(batch, None, observed), targets, reduction="sum")
            (recipe.ptx_weight * nats / learned).backward()
            peaks.append(torch.stack(observed.max_logits))
            report.learned(nats.detach(), len(targets))
        self._update(torch.stack(peaks).amax(0), report)

    def _documents(self, update: int) -> list[tuple[objective.Batch, Tensor]]:
        """This process's microbatches: a function of the recipe and the step."""
        recipe, training = self.recipe, self.training
        if not recipe.ptx:
            return []
        data = PhaseData(training.phases[0], training, self.state.model.config.vocab_size, 0)
        lanes = max(1, recipe.ptx_tokens // training.microbatch_tokens)
        number = self.state.progress.step * recipe.updates + update
        found = [data.microbatch(number, lane) for lane in range(self.world.rank, lanes, self.world.size)]
        return [(each.batch, each.targets) for each in found]

    def _no_peaks(self) -> Tensor:
        """(layers, H): what a process has seen that had nothing to do."""
        attentions = [module for module in self.state.model.modules() if isinstance(module, Attention)]
        return torch.zeros(len(attentions), self.state.model.config.num_attention_heads)

    def _update(self, max_logits: Tensor, report: Report) -> None:
        state, world = self.state, self.world
        trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        world.sum_([parameter.grad for parameter in trained if parameter.grad is not None])
        world.max_([max_logits])
        recipe, iteration = self.recipe, state.progress.step
        along = iteration / max(recipe.iterations - 1, 1)
        scale = min(1.0, (iteration + 1) / max(recipe.warmup_steps, 1)) * (1 + (recipe.lr_end - 1) * along)
        report.clipped += state.optimizer.step(scale, list(max_logits))
        report.max_logit = max(report.max_logit, float(max_logits.max()))
        report.lr_scale = scale
        state.optimizer.zero_grad()
        for name, parameter in state.model.named_parameters():
            if not parameter.isfinite().all():  # here, before anything draws with it
                raise RecipeError(
                    f"{name} is not finite any more at iteration {iteration}",
                    hint=f"lower the learning rate; running again goes on from the last state in {recipe.out}",
                )
