"""One training step, and the loop around it: log, evaluate, save, plot. Pre-training and SFT are this loop.

step:  microbatches -> forward, backward -> sum over processes -> MuonClip with QK-clip -> rebalance routers
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.errors import RecipeError
from baltoro.model.load import checkpoint_parameters, random_parameters
from baltoro.model.moe import MoE
from baltoro.model.transformer import Block, Observed, Transformer
from baltoro.train import guards
from baltoro.train.data import PhaseData
from baltoro.train.display import Display
from baltoro.train.distributed import World
from baltoro.train.guards import NotFiniteError
from baltoro.train.layout import Layout, local, spread, whole
from baltoro.train.muonclip import MuonClip, rebalance
from baltoro.train.recipe import Phase, Recipe
from baltoro.train.state import Progress, TrainState

GATE_STEPS = 20  # steps whose mean loss a gate looks at

Evaluate = Callable[[Transformer], dict[str, Any]]  # held-out scores by kind


@dataclass(frozen=True, slots=True)
class StepResult:
    loss: float  # nats a learned token
    by_kind: dict[str, float]  # the same, for each kind that occurred
    clipped: int  # heads
    max_logit: float  # largest score before a softmax, over layers and heads
    load: float  # most loaded expert's tokens over the mean, worst layer


def start(recipe: Recipe, world: World | None = None) -> TrainState:
    """Random parameters, or those of `init`, in float32: this process's part of them. world: None: alone"""
    if recipe.init:
        config = ModelConfig.open(recipe.init)
        if config.packed_format is not None:
            raise RecipeError(
                f"init {recipe.init} is packed in {config.packed_format} for inference",
                hint="name the checkpoint it was made of",
            )
        if recipe.model is not None and recipe.model != config:
            raise RecipeError(f"[model] differs from the config of {recipe.init}", hint="leave one of them out")
        parameters = checkpoint_parameters(recipe.init)
    else:
        assert recipe.model is not None  # recipe.read has checked it
        config = recipe.model
        parameters = random_parameters(config, seed=recipe.seed, start=recipe.start)
    layout = Layout.connected(World.alone() if world is None else world, recipe.parallel, config)
    model = spread(config, layout, parameters)
    model.dtype = getattr(torch, recipe.dtype)
    for block in cast("list[Block]", list(model.model.layers)):
        block.recompute = recipe.recompute
    return TrainState(model.train(), MuonClip(model, recipe.optimizer, layout), Progress())


def train_step(state: TrainState, data: PhaseData, lanes: int, balance_rate: float, lr_scale: float) -> StepResult:
    """One step of all processes. Raises NotFiniteError, on all of them, before anything is changed by it."""
    model, optimizer, progress, layout = state.model, state.optimizer, state.progress, state.layout
    world = layout.world
    sums = torch.zeros(len(data.kinds))  # nats by kind
    counts = torch.zeros(len(data.kinds))  # learned tokens by kind
    peaks: list[Tensor] = []
    loads: list[Tensor] = []
    tokens = torch.zeros(1)
    microbatches = [data.microbatch(progress.phase_step, lane) for lane in range(world.rank, lanes, world.size)]
    for microbatch in microbatches:
        observed = Observed()
        total, losses = model.loss(microbatch.batch, microbatch.targets, observed, same_weights=bool(peaks))
        peaks.append(torch.stack(observed.max_logits))
        loads.append(torch.stack(observed.expert_tokens(model.config.n_routed_experts)).float())
        total.backward()  # pyright: ignore[reportUnknownMemberType]
        sums.index_add_(0, microbatch.kinds, losses)  # (rows,)
        counts.index_add_(0, microbatch.kinds, torch.ones_like(losses))
        tokens += len(microbatch.batch.ids)
    max_logits, expert_tokens = torch.stack(peaks).amax(0), torch.stack(loads).sum(0)  # (layers, H), (MoE layers, E)
    gradients = [(name, p, local(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    shared: dict[World, list[Tensor]] = {group: [] for group in layout.groups}
    for name, parameter, gradient in gradients:
        place = layout.place(name, parameter)
        if not place.sharded:  # FSDP2 has summed the others
            shared[place.group].append(gradient)
    shared[world] += [sums, counts, expert_tokens, tokens]
    for group, parts in shared.items():
        group.sum_(parts)
    world.max_([max_logits])
    guards.check(model, world, sums, [(name, gradient) for name, _, gradient in gradients], microbatches, data.kinds)
    learned = counts.sum().clamp_min(1)
    for _, _, gradient in gradients:
        gradient /= learned
    clipped = optimizer.step(lr_scale, list(max_logits))
    optimizer.zero_grad()
    routers = [block.mlp.gate for block in model.model.layers if isinstance(block.mlp, MoE)]
    rebalance([router.e_score_correction_bias for router in routers], expert_tokens, balance_rate)
    progress.tokens += int(tokens)
    return StepResult(
        loss=float(sums.sum() / learned),
        by_kind={
            kind: float(nats / tokens) for kind, nats, tokens in zip(data.kinds, sums, counts, strict=True) if tokens
        },
        clipped=clipped,
        max_logit=float(max_logits.max()),
        load=float((expert_tokens.amax(1) / expert_tokens.mean(1)).max()) if len(routers) else 1.0,
    )


def run(world: World, recipe: Recipe, evaluate: Evaluate | None) -> TrainState | None:
    """All phases from where the run stands; None when Ctrl-C or SIGTERM stopped it (saved, after a whole step)."""
    out = Path(recipe.out)
    state = start(recipe, world)
    resumed = state.resume(out)
    progress = state.progress
    display = Display() if world.leads else None
    log = Log(out / "log.jsonl", progress.step if resumed else 0) if world.leads else None
    if display is not None and resumed:
        display.say(f"going on at step {progress.step} of {out}")
    saved = evaluated = time.monotonic()
    with display or contextlib.nullcontext(), stop_requests() as stopping:
        while progress.phase < len(recipe.phases):
            phase = recipe.phases[progress.phase]
            data = PhaseData(phase, recipe, state.model.config.vocab_size, progress.phase)
            gate = Gate(phase, data.kinds, progress.recent)
            if display is not None:
                display.phase(phase.name, progress.phase_step, phase.steps)
            while progress.phase_step < phase.steps and not gate.passed:
                began = time.monotonic()
                lr_scale = _lr_scale(recipe, phase, progress)
                try:
                    result = train_step(state, data, recipe.lanes(phase), recipe.balance_rate, lr_scale)
                except NotFiniteError as error:
                    raise _stopped(error, state, out) from None
                progress.seconds += time.monotonic() - began
                progress.step += 1
                progress.phase_step += 1
                gate.watch(result)
                if log is not None and display is not None:
                    log.step(progress, phase, lr_scale, result)
                    display.step(progress.phase_step, _note(progress, result))
                stop_now = world.agree(bool(stopping))
                if stop_now or world.agree(time.monotonic() - saved > 60 * recipe.save_minutes):
                    state.save(out)
                    saved = time.monotonic()
                if stop_now:
                    return None
                due = 0 < 60 * recipe.evaluate_minutes < time.monotonic() - evaluated
                if evaluate is not None and world.agree(due):
                    _score(state, evaluate, log)
                    evaluated = time.monotonic()
            if gate.wanted and not gate.passed:
                state.save(out)
                raise RecipeError(
                    f"phase {phase.name!r}: the loss of {phase.gate_kind!r} is {gate.mean:.2f} after {phase.steps} "
                    f"steps, its gate is {phase.gate_loss}",
                    hint="raise the phase's steps or change its rates, and run again: it goes on from here",
                )
            progress.phase += 1
            progress.phase_step = 0
            progress.recent = []
        state.save(out)
        if evaluate is not None:
            _score(state, evaluate, log)
    return state


def _score(state: TrainState, evaluate: Evaluate, log: Log | None) -> None:
    """By the leading process alone, on the whole model; the others give it their parts."""
    model = whole(state.model, state.layout)
    if log is not None and model is not None:
        log.scores(state.progress, evaluate(model))


def _stopped(error: NotFiniteError, state: TrainState, out: Path) -> RecipeError:
    """Save what was true before the step, beside what was saved last: which of both is good, a person has to say."""
    step = state.progress.step
    keep = out / f"state-{step}"
    state.optimizer.zero_grad()
    try:
        state.save(out, keep=keep)
    except RecipeError as unsaved:
        return RecipeError(f"{error.message}; {unsaved.message}", hint=error.hint)
    before = f", and the one saved before it is {keep}" if keep.exists() else ""
    return RecipeError(f"{error.message}; the state before it is {out / 'state'}{before}", hint=error.hint)


@contextlib.contextmanager
def stop_requests() -> Generator[list[int]]:
    """Ctrl-C and SIGTERM are only written down here, so that no step is cut; what they did before is restored."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Gate:
    """A phase's condition: the mean training loss of one kind over the last GATE_STEPS steps."""

    def __init__(self, phase: Phase, kinds: Sequence[str], recent: list[float]) -> None:
        """recent: losses of this phase's last steps; kept up to date here, saved with the run's progress."""
        self.wanted = bool(phase.gate_kind)
        if self.wanted and phase.gate_kind not in kinds:
            raise RecipeError(
                f"phase {phase.name!r}: gate_kind is {phase.gate_kind!r}, its documents are of {', '.join(kinds)}"
            )
        self._kind, self._loss = phase.gate_kind, phase.gate_loss
        self._recent = recent

    def watch(self, result: StepResult) -> None:
        if self._kind in result.by_kind:
            self._recent.append(result.by_kind[self._kind])
            del self._recent[:-GATE_STEPS]

    @property
    def mean(self) -> float:
        return sum(self._recent) / len(self._recent) if self._recent else math.inf

    @property
    def passed(self) -> bool:
        return self.wanted and len(self._recent) == GATE_STEPS and self.mean < self._loss


def _lr_scale(recipe: Recipe, phase: Phase, progress: Progress) -> float:
    """Warm-up over the run's first steps, and the phase's own line or half cosine (constant, then decay: WSD)."""
    warm = min(1.0, (progress.step + 1) / max(recipe.warmup_steps, 1))
    along = progress.phase_step / max(phase.steps - 1, 1)
    if phase.lr_shape == "cosine":
        along = (1 - math.cos(math.pi * along)) / 2
    return warm * (phase.lr_start + (phase.lr_end - phase.lr_start) * along)


def _note(progress: Progress, result: StepResult) -> str:
    kinds = "  ".join(f"{kind} {loss:.2f}" for kind, loss in sorted(result.by_kind.items()))
    speed = progress.tokens / max(progress.seconds, 1e-9)
    return f"{progress.tokens / 1e6:.2f}M tokens  {speed:,.0f}/s  loss {result.loss:.3f}  {kinds}"


class Log:
    """out/log.jsonl, one object a line, appended and flushed."""

    def __init__(self, path: Path, steps: int) -> None:
        """Keeps the lines of the first `steps` steps: a resumed run takes the later ones again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[str] = []
        if path.exists() and steps:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a full disk or a power cut leaves a piece of one
            kept = [line for line in whole if json.loads(line)["step"] <= steps]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def step(self, progress: Progress, phase: Phase, lr_scale: float, result: StepResult) -> None:
        self.write(
            {
                "step": progress.step,
                "phase": phase.name,
                "tokens": progress.tokens,
                "seconds": round(progress.seconds, 2),
                "lr_scale": round(lr_scale, 5),
                "loss": round(result.loss, 4),
                "by_kind": {kind: round(loss, 4) for kind, loss in result.by_kind.items()},
                "max_logit": round(result.max_logit, 2),
                "clipped_heads": result.clipped,
                "expert_load": round(result.load, 2),
            }
        )

    def scores(self, progress: Progress, scores: dict[str, Any]) -> None:
        self.write({"step": progress.step, "tokens": progress.tokens, "scores": scores})

    def write(self, entry: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except OSError as error:
            raise RecipeError(
                f"{self._file.name} cannot be written: {error.strerror}",
                hint="make room; running again goes on from the last state that was saved",
            ) from error
