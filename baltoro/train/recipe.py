"""A training recipe: one TOML file that says everything a run depends on.

    seed = 1                            [model]       keys of config.json
    out = "runs/pretrain_nano"          [optimizer]   see muonclip.OptimizerConfig
    init = "runs/other/checkpoint"      [[phases]]    steps, learning rates, gate, and
    tokenizer = "baltoro/nano"          [[phases.data]]   where its documents come from

Unknown keys are refused with the nearest name. Relative paths are read from the working directory.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from baltoro.config import ModelConfig
from baltoro.errors import ConfigError, RecipeError
from baltoro.model.load import Start
from baltoro.train.distributed import World
from baltoro.train.layout import Layout, ParallelConfig
from baltoro.train.muonclip import OptimizerConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Part of a phase's documents."""

    # see copying.py, synthesis/; text: JSON lines with `text`; tokens: written before by synthesis/tokens.py
    kind: Literal["copy", "dialogues", "toolsets", "text", "tokens"]
    weight: float = 1.0  # share of the phase's tokens, relative to the other sources
    documents: int = 0  # dialogues: how many are made
    seed: int = 1  # dialogues: of their generator
    without: str = ""  # dialogues: hashes of evaluations; those that have something of theirs are left out
    file: str = ""  # text, toolsets: where it lies, gzipped
    directory: str = ""  # tokens: where they lie
    loss: Literal["all", "assistant"] = "all"  # learn every token, or only what the assistant says
    lengths: tuple[int, ...] = ()  # copy: document lengths in tokens, drawn evenly
    vocabulary: int = 0  # copy: only ids below this; 0: the whole vocabulary
    whole_vocabulary: float = 0.3  # copy: share of documents over all of these ids, the rest over 8 to 64 of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training over one mixture of documents."""

    name: str
    steps: int  # at most
    data: tuple[DataSource, ...]
    tokens_per_step: int = 0  # 0: the recipe's
    microbatch_tokens: int = 0  # 0: the recipe's; the longest context of the phase
    lr_start: float = 1.0  # times the peak rates, changing steadily ...
    lr_end: float = 1.0  # ... to this at the last step
    lr_shape: Literal["linear", "cosine"] = "linear"  # of the way between them
    gate_kind: str = ""  # the phase ends early, and only succeeds, once this kind's training loss ...
    gate_loss: float = 0.0  # ... is below this (nats a token, mean of 20 steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    seed: int
    out: str  # directory of the run: state, log, picture, and checkpoint/ at the end
    optimizer: OptimizerConfig
    phases: tuple[Phase, ...]
    model: ModelConfig | None = None  # [model], or the name of a preset or a config.json; None: that of `init`
    init: str = ""  # checkpoint directory to start from; "" starts from random parameters
    tokenizer: str = ""  # directory with tiktoken.model; copied beside the finished checkpoint
    start: Start = field(default_factory=Start)  # [start]: how random parameters are drawn
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the forward and backward pass; parameters stay float32
    warmup_steps: int = 100
    tokens_per_step: int = 16384
    microbatch_tokens: int = 4096
    balance_rate: float = 1e-3  # of the router's selection bias, a step
    recompute: bool = False  # keep each block's input alone and run it again for its gradients: less memory, more time
    processes: int = 1  # on this machine; under torchrun as many as it starts
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # [parallel]: how the model is spread over them
    threads: int = 1  # a process
    save_minutes: float = 5.0
    evaluate_minutes: float = 20.0  # held-out scores by kind; 0: only at the end
    evaluate_examples: int = 64  # a kind; 0: none are taken

    def lanes(self, phase: Phase) -> int:
        """Microbatches of one step, over all processes."""
        return (phase.tokens_per_step or self.tokens_per_step) // (phase.microbatch_tokens or self.microbatch_tokens)


def read(path: str | Path) -> Recipe:
    """Raises RecipeError naming every unknown, missing or mistyped key; when there is none, every contradiction."""
    path = Path(path)
    content = table(path)
    problems: list[str] = []
    if isinstance(content.get("model"), (dict, str)):
        try:
            if isinstance(content["model"], str):
                content["model"] = ModelConfig.open(content["model"])
            else:
                content["model"] = ModelConfig.from_dict(content["model"], source="[model]")
        except ConfigError as error:
            problems.append(error.message)
            del content["model"]
    recipe = build(Recipe, content, "", problems)
    if recipe is not None and not problems:
        problems += contradictions(recipe)
    if recipe is None or problems:
        raise RecipeError(f"{path}: " + "; ".join(problems), hint="the keys are explained in baltoro/train/recipe.py")
    return recipe


def check_processes(recipe: Recipe, processes: int) -> None:
    """Raises RecipeError where what a recipe asks for cannot be divided among so many processes."""
    problems = _indivisible(recipe, processes)
    if problems:
        raise RecipeError("; ".join(problems), hint="change tokens_per_step, microbatch_tokens or the processes")
    if recipe.model is not None:
        Layout.planned(World(0, processes), recipe.parallel, recipe.model)


def _indivisible(recipe: Recipe, processes: int) -> list[str]:
    problems: list[str] = []
    own = {(p.tokens_per_step or recipe.tokens_per_step, p.microbatch_tokens or recipe.microbatch_tokens)
           for p in recipe.phases}  # fmt: skip
    for tokens, microbatch in sorted(own or {(recipe.tokens_per_step, recipe.microbatch_tokens)}):
        if microbatch > 0 and processes > 0 and tokens % (microbatch * processes):
            problems.append(
                f"tokens_per_step {tokens} is not a multiple of microbatch_tokens {microbatch} "
                f"times processes {processes}"
            )
    return problems


def table(path: Path) -> dict[str, Any]:
    """What a recipe file says. Raises RecipeError where it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", hint="recipes lie in recipes/") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error


# What only one kind of source reads; elsewhere it would be ignored
_OPTIONS_OF = {
    "lengths": "copy",
    "whole_vocabulary": "copy",
    "documents": "dialogues",
    "without": "dialogues",
    "file": "text or toolsets",
    "directory": "tokens",
}
_DEFAULTS = {option.name: option.default for option in dataclasses.fields(DataSource)}


def contradictions(recipe: Recipe) -> list[str]:
    """What the keys, each of them right, say against each other."""
    problems: list[str] = []
    for key in ("tokens_per_step", "microbatch_tokens", "processes", "threads"):
        if getattr(recipe, key) < 1:
            problems.append(f"{key} is {getattr(recipe, key)}, expected at least 1")
    if recipe.seed < 0:
        problems.append(f"seed is {recipe.seed}, expected 0 or more")
    if recipe.optimizer.qk_clip_tau <= 0:
        problems.append(f"optimizer.qk_clip_tau is {recipe.optimizer.qk_clip_tau}, expected more than 0")
    if recipe.parallel.expert < 1:
        problems.append(f"parallel.expert is {recipe.parallel.expert}, expected at least 1")
    for pattern in recipe.optimizer.adamw_matrices:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"optimizer.adamw_matrices: {pattern!r} is not a regular expression: {error}")
    if recipe.model is None and not recipe.init:
        problems.append("[model] is missing, and there is no init to take the config from")
    problems += _indivisible(recipe, recipe.processes)
    if not recipe.phases:
        problems.append("there is no [[phases]]")
    for phase in recipe.phases:
        if not phase.data:
            problems.append(f"phase {phase.name!r} has no [[phases.data]]")
        if phase.steps < 1 or phase.tokens_per_step < 0 or phase.microbatch_tokens < 0:
            problems.append(f"phase {phase.name!r}: steps, tokens_per_step and microbatch_tokens must be positive")
        if bool(phase.gate_kind) != (phase.gate_loss > 0):
            problems.append(f"phase {phase.name!r}: gate_kind and a gate_loss above 0 belong together")
        for source in phase.data:
            if source.weight <= 0:
                problems.append(f"phase {phase.name!r}: weight is {source.weight}, expected more than 0")
            for option, kind in _OPTIONS_OF.items():
                if source.kind not in kind.split(" or ") and getattr(source, option) != _DEFAULTS[option]:
                    problems.append(f"phase {phase.name!r}: {source.kind} has no {option}, only {kind} has")
            if source.kind == "copy" and not source.lengths:
                problems.append(f"phase {phase.name!r}: copy needs lengths")
            if source.kind == "dialogues" and source.documents < 1:
                problems.append(f"phase {phase.name!r}: dialogues need documents, how many to make")
            if source.kind in ("text", "toolsets") and not source.file:
                problems.append(f"phase {phase.name!r}: {source.kind} needs a file")
            if source.kind == "tokens" and not source.directory:
                problems.append(f"phase {phase.name!r}: tokens need a directory")
            if source.kind != "copy" and not recipe.tokenizer:
                problems.append(f"phase {phase.name!r}: {source.kind} needs the recipe's tokenizer")
    return problems


def build(cls: type[T], values: Mapping[str, Any], where: str, problems: list[str]) -> T | None:
    """A dataclass from a table; lists of tables become tuples of dataclasses. None: `problems` has grown."""
    hints = get_type_hints(cls)
    found = len(problems)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            near = get_close_matches(key, hints, n=1)
            problems.append(f"{where}{key} is unknown" + (f", did you mean {near[0]}?" if near else ""))
            continue
        arguments[key] = _convert(value, hints[key], f"{where}{key}", problems)
    for item in dataclasses.fields(cast(Any, cls)):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in values:
            problems.append(f"{where}{item.name} is missing")
    return cls(**arguments) if len(problems) == found else None


def _convert(value: Any, hint: Any, where: str, problems: list[str]) -> Any:
    options = [option for option in get_args(hint) if option is not type(None)]
    if get_origin(hint) is Literal:
        if value not in options:
            problems.append(f"{where} is {value!r}, expected one of {', '.join(map(str, options))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            problems.append(f"{where} is {value!r}, expected a list")
            return ()
        if Ellipsis not in options and len(cast(list[Any], value)) != len(options):
            problems.append(f"{where} is {value!r}, expected {len(options)} values")
        return tuple(_convert(v, options[0], f"{where}[{i}]", problems) for i, v in enumerate(cast(list[Any], value)))
    if options and get_origin(hint) is not dict:  # X | None
        return _convert(value, options[0], where, problems)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return build(cast(type[Any], hint), cast(Mapping[str, Any], value), f"{where}.", problems)
        if not isinstance(value, cast(type[Any], hint)):
            problems.append(f"{where} is {value!r}, expected a table")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is not hint:
        problems.append(f"{where} is {value!r}, expected {hint.__name__}")
    return value
