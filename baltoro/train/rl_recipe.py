"""A recipe of reinforcement learning: one TOML file that says everything a run depends on.

    seed = 1                                [optimizer]   see muonclip.OptimizerConfig
    out = "runs/rl_nano"                    [[tasks]]     what is asked, and in how many tokens
    init = "runs/sft_nano/checkpoint"       [[ptx]]       documents to go on learning, as [[phases.data]] has them
    tokenizer = "baltoro/nano"              [critic]      an endpoint that ranks answers

Unknown keys are refused with the nearest name. Relative paths are read from the working directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from baltoro.errors import RecipeError
from baltoro.kernels.formats import FORMATS
from baltoro.train.muonclip import OptimizerConfig
from baltoro.train.recipe import DataSource, Phase, Recipe, build, contradictions, table

# Kinds of the generator whose answers can be checked; session: errands in a simulated world; file: one's own
KINDS = ("recite", "pick", "single", "multi", "none", "result", "conversation", "session", "file")
FLOAT32 = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSource:
    """Part of the prompts."""

    kind: str  # one of KINDS
    weight: float = 1.0  # how often, relative to the other sources
    answer_tokens: int = 200  # budget of an episode, over all its turns; what needs more is cut, with a penalty
    file: str = ""  # file: JSON lines, see tasks.py
    unavailable: float = 0.0  # session: share of calls that fail once
    partial: float = 0.0  # session: share of calls that do a part of their work


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticConfig:
    """An OpenAI-compatible endpoint that ranks the answers to one prompt, pair by pair."""

    url: str  # of its API, such as http://127.0.0.1:8000/v1
    model: str
    weight: float  # of the share of comparisons won, added to the reward
    kinds: tuple[str, ...] = ()  # of tasks whose answers are ranked; (): all
    rubrics: tuple[str, ...] = ()  # beside the core and the prescriptive ones, see critic.py
    key_variable: str = ""  # of the environment, holding the API key
    timeout_s: float = 120.0  # of one comparison
    parallel: int = 8  # comparisons under way


@dataclass(frozen=True, slots=True, kw_only=True)
class RLRecipe:
    seed: int
    out: str  # directory of the run: state, rollouts under way, log, picture, and checkpoint/ at the end
    init: str  # checkpoint directory or preset to start from: what SFT has made
    tokenizer: str  # directory with tiktoken.model
    optimizer: OptimizerConfig
    tasks: tuple[TaskSource, ...]
    iterations: int  # each: new prompts, rollouts, rewards, `updates` steps
    prompts: int = 16  # new ones an iteration, over all processes
    samples: int = 8  # K: answers to each
    task_seed: int = 7_000_001  # of the generator: far from SFT's, whose documents these prompts would be
    temperature: float = 1.0  # at the first iteration, changing linearly ...
    temperature_end: float = 1.0  # ... to this at the last
    tau: float = 0.2  # of the objective: how far a reward pulls, log(pi / pi_old) = (r - mean r) / tau at its minimum
    updates: int = 1  # steps an iteration, each on a part of its groups
    truncation_penalty: float = 0.5  # a cut answer's reward is minus this
    allowance_tokens: int = 0  # a rollout may generate so many an iteration, and goes on in the next; 0: all it needs
    ptx: tuple[DataSource, ...] = ()  # documents ...
    ptx_weight: float = 0.0  # ... whose mean loss (nats a token) times this is added to the objective
    ptx_tokens: int = 4096  # of them in a step
    critic: CriticConfig | None = None
    rollout_format: str = "bf16"  # weights that the engine runs, a packed copy; float32: the trainer's own parameters
    cache_mb: int = 256  # of the engine, a process
    max_running: int = 64  # rollouts decoded together, a process
    kl_tokens: int = 2048  # on which the distance to the start is measured, an iteration; 0: the start is not kept
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the trainer's forward and backward pass
    warmup_steps: int = 5
    lr_end: float = 1.0  # the learning rate changes linearly to this times its peak
    microbatch_tokens: int = 4096  # of a forward and backward pass, padding included
    processes: int = 1  # data-parallel, one machine
    threads: int = 1  # a process
    save_minutes: float = 5.0
    evaluate_iterations: int = 0  # held-out scores every so many; 0: at the start and the end alone
    evaluate_examples: int = 64  # a kind

    def training(self) -> Recipe:
        """What pre-training's own parts read: how the parameters start, and the documents of `ptx`."""
        microbatch = min(self.ptx_tokens, self.microbatch_tokens) if self.ptx else self.microbatch_tokens
        return Recipe(
            seed=self.seed, out=self.out, init=self.init, tokenizer=self.tokenizer, optimizer=self.optimizer,
            phases=(Phase(name="ptx", steps=self.iterations, data=self.ptx),), dtype=self.dtype,
            tokens_per_step=microbatch * self.processes, microbatch_tokens=microbatch,
            processes=self.processes, threads=self.threads,
        )  # fmt: skip

    def temperature_at(self, iteration: int) -> float:
        along = iteration / max(self.iterations - 1, 1)
        return self.temperature + (self.temperature_end - self.temperature) * along


def read(path: str | Path) -> RLRecipe:
    """Raises RecipeError naming every unknown, missing or mistyped key; when there is none, every contradiction."""
    problems: list[str] = []
    recipe = build(RLRecipe, table(Path(path)), "", problems)
    if recipe is not None and not problems:
        problems += _contradictions(recipe)
    if recipe is None or problems:
        raise RecipeError(
            f"{path}: " + "; ".join(problems), hint="the keys are explained in baltoro/train/rl_recipe.py"
        )
    return recipe


def _contradictions(recipe: RLRecipe) -> list[str]:
    problems = [
        f"{name} is {getattr(recipe, name)}, expected {expected}"
        for name, holds, expected in (
            ("iterations", recipe.iterations >= 1, "at least 1"),
            ("samples", recipe.samples >= 2, "at least 2: a reward is compared with the mean of the others"),
            ("prompts", recipe.prompts >= 1 and recipe.prompts % max(recipe.processes, 1) == 0,
             f"a multiple of processes, {recipe.processes}"),
            ("updates", 1 <= recipe.updates <= recipe.prompts, f"1 to prompts, {recipe.prompts}"),
            ("temperature", recipe.temperature > 0, "more than 0"),
            ("temperature_end", recipe.temperature_end > 0, "more than 0"),
            ("tau", recipe.tau > 0, "more than 0"),
            ("truncation_penalty", recipe.truncation_penalty >= 0, "at least 0"),
            ("allowance_tokens", recipe.allowance_tokens >= 0, "at least 0"),
            ("ptx_weight", recipe.ptx_weight >= 0 and bool(recipe.ptx_weight) == bool(recipe.ptx),
             "more than 0 with [[ptx]], and 0 without"),
            ("ptx_tokens", recipe.ptx_tokens >= 1, "at least 1"),
            ("rollout_format", recipe.rollout_format in (*FORMATS, FLOAT32), f"one of {', '.join(FORMATS)}, {FLOAT32}"),
            ("cache_mb", recipe.cache_mb >= 1, "at least 1"),
            ("max_running", recipe.max_running >= 1, "at least 1"),
            ("kl_tokens", recipe.kl_tokens >= 0, "at least 0"),
            ("evaluate_iterations", recipe.evaluate_iterations >= 0, "at least 0"),
            ("evaluate_examples", recipe.evaluate_examples >= 1, "at least 1"),
            ("tokenizer", bool(recipe.tokenizer), "a directory with tiktoken.model"),
            ("init", bool(recipe.init), "a checkpoint to start from"),
        )
        if not holds
    ]  # fmt: skip
    if not recipe.tasks:
        problems.append("there is no [[tasks]]")
    for task in recipe.tasks:
        problems += _task_problems(task)
    if recipe.critic is not None:
        if recipe.critic.weight <= 0 or recipe.critic.timeout_s <= 0 or recipe.critic.parallel < 1:
            problems.append("critic: weight, timeout_s and parallel must be positive")
        asked = {task.kind for task in recipe.tasks}
        if strange := set(recipe.critic.kinds) - asked:
            problems.append(f"critic.kinds has {', '.join(sorted(strange))}, the tasks are {', '.join(sorted(asked))}")
    if recipe.ptx and not problems:
        problems += contradictions(recipe.training())
    return problems


def _task_problems(task: TaskSource) -> list[str]:
    if task.kind not in KINDS:
        return [f"tasks: kind is {task.kind!r}, expected one of {', '.join(KINDS)}"]
    problems: list[str] = []
    if task.weight <= 0 or task.answer_tokens < 1:
        problems.append(f"tasks of {task.kind}: weight and answer_tokens must be positive")
    if (task.kind == "file") != bool(task.file):
        problems.append(f"tasks of {task.kind}: a file belongs to kind 'file', and only there")
    if task.kind != "session" and (task.unavailable or task.partial):
        problems.append(f"tasks of {task.kind}: only sessions have calls that fail")
    if not 0 <= task.unavailable + task.partial <= 1 or min(task.unavailable, task.partial) < 0:
        problems.append("tasks of session: unavailable and partial are shares, 0 to 1 together")
    return problems
