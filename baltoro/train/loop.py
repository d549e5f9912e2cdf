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
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.errors import RecipeError
from baltoro.model.load import initialise, load
from baltoro.model.moe import MoE
from baltoro.model.transformer import Observed, Transformer
from baltoro.train.data import PhaseData
from baltoro.train.display import Display
from baltoro.train.distributed import World
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


def start(recipe: Recipe) -> TrainState:
    """Random parameters, or those of `init`, in float32."""
    if recipe.init:
        if (packed := ModelConfig.open(recipe.init).packed_format) is not None:
            raise RecipeError(
                f"init {recipe.init} is packed in {packed} for inference", hint="name the checkpoint it was made of"
            )
        model = load(recipe.init, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.endswith("e_score_correction_bias"))
        if recipe.model is not None and recipe.model != model.config:
            raise RecipeError(f"[model] differs from the config of {recipe.init}", hint="leave one of them out")
    else:
        assert recipe.model is not None  # recipe.read has checked it
        model = initialise(recipe.model, seed=recipe.seed, start=recipe.start)
    model.dtype = getattr(torch, recipe.dtype)
    return TrainState(model.train(), MuonClip(model, recipe.optimizer), Progress())


def train_step(
    state: TrainState, data: PhaseData, lanes: int, balance_rate: float, world: World, lr_scale: float
) -> StepResult:
    model, optimizer, progress = state.model, state.optimizer, state.progress
    sums = torch.zeros(len(data.kinds))  # nats by kind
    counts = torch.zeros(len(data.kinds))  # learned tokens by kind
    peaks: list[Tensor] = []
    loads: list[Tensor] = []
    tokens = torch.zeros(1)
    for lane in range(world.rank, lanes, world.size):
        microbatch = data.microbatch(progress.phase_step, lane)
        observed = Observed()
        logits = model(microbatch.batch, None, observed)  # (rows, V)
        losses = functional.cross_entropy(logits, microbatch.targets, reduction="none")  # (rows,)
        losses.sum().backward()
        sums.index_add_(0, microbatch.kinds, losses.detach())
        counts.index_add_(0, microbatch.kinds, torch.ones_like(losses))
        peaks.append(torch.stack(observed.max_logits))
        loads.append(torch.stack(observed.expert_tokens(model.config.n_routed_experts)).float())
        tokens += len(microbatch.batch.ids)
    max_logits, expert_tokens = torch.stack(peaks).amax(0), torch.stack(loads).sum(0)  # (layers, H), (MoE layers, E)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    world.sum_([*gradients, sums, counts, expert_tokens, tokens])
    world.max_([max_logits])
    learned = counts.sum().clamp_min(1)
    for gradient in gradients:
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
    state = start(recipe)
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
                result = train_step(state, data, recipe.lanes(phase), recipe.balance_rate, world, lr_scale)
                progress.seconds += time.monotonic() - began
                progress.step += 1
                progress.phase_step += 1
                if not math.isfinite(result.loss):
                    raise RecipeError(
                        f"the loss is {result.loss} at step {progress.step}",
                        hint=f"lower the learning rate; running again goes on from the last state in {out}",
                    )
                gate.watch(result)
                if log is not None and display is not None:
                    log.step(progress, phase, lr_scale, result)
                    display.step(progress.phase_step, _note(progress, result))
                stop_now = world.agree(bool(stopping))
                if stop_now or world.agree(time.monotonic() - saved > 60 * recipe.save_minutes):
                    if world.leads:
                        state.save(out)
                    saved = time.monotonic()
                if stop_now:
                    return None
                due = 0 < 60 * recipe.evaluate_minutes < time.monotonic() - evaluated
                if log is not None and evaluate is not None and due:
                    log.scores(progress, evaluate(state.model))
                    evaluated = time.monotonic()
            if gate.wanted and not gate.passed:
                if world.leads:
                    state.save(out)
                raise RecipeError(
                    f"phase {phase.name!r}: the loss of {phase.gate_kind!r} is {gate.mean:.2f} after {phase.steps} "
                    f"steps, its gate is {phase.gate_loss}",
                    hint="raise the phase's steps or change its rates, and run again: it goes on from here",
                )
            progress.phase += 1
            progress.phase_step = 0
            progress.recent = []
        if world.leads:
            state.save(out)
            if log is not None and evaluate is not None:
                log.scores(progress, evaluate(state.model))
    return state


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
    """Warm-up over the run's first steps, and the phase's own straight line (constant, then decay: WSD)."""
    warm = min(1.0, (progress.step + 1) / max(recipe.warmup_steps, 1))
    along = progress.phase_step / max(phase.steps - 1, 1)
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
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
