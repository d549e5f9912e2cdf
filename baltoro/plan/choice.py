"""Of all ways to run a model on a machine, the fastest that fits; of all formats, the best that is not much slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baltoro.config import ModelConfig
from baltoro.errors import PlanError
from baltoro.plan import layout as layouts
from baltoro.plan import speed
from baltoro.plan.formats import FORMATS, Format, of_checkpoint
from baltoro.plan.machine import Machine
from baltoro.plan.memory import Memory, Wish, memories
from baltoro.plan.speed import Time

DEPTH = 4096  # tokens behind a request when its speed is told, as most public results have it
NEAR = 0.6  # of the fastest format's speed: a better format that reaches it is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way that fits."""

    format: Format
    machine: Machine
    memory: Memory
    step: Time  # of decode, DEPTH tokens deep, at the wish's concurrency

    @property
    def tokens_per_s(self) -> float:
        """Expected, of one request."""
        return 1 / self.step.seconds.expected


def best(config: ModelConfig, format: Format, machine: Machine, wish: Wish) -> Choice | None:
    """The fastest that fits with this format; None: nothing does."""
    found: list[Choice] = []
    for memory in memories(config, format, machine, wish):
        if memory.short is None and runs(config, format, machine, memory):
            depth = min(DEPTH, wish.context)
            step = speed.decode(config, format, machine, memory, wish, context=depth, batch=wish.concurrency)
            found.append(Choice(format=format, machine=machine, memory=memory, step=step))
    return max(found, key=lambda each: each.tokens_per_s, default=None)


def runs(config: ModelConfig, format: Format, machine: Machine, memory: Memory) -> bool:
    """Whether the layout starts, and the hardware multiplies what lies there: block-fp8 wants tensor cores for it."""
    if memory.place == "gpu" and memory.layout is not None and any(layouts.problems(config, format, memory.layout)):
        return False
    return not (memory.place == "gpu" and format.name == "fp8" and machine.gpu and machine.gpu.fp8_flops is None)


def order(config: ModelConfig, machine: Machine) -> list[Format]:
    """Formats to try, the best quality first: as it is published, 8 bits, 4 bits."""
    own = of_checkpoint(config.weight_block_size is not None, config.packed_format)
    smaller = [FORMATS["int8"], *([FORMATS["w4a16"]] if machine.gpus else []), FORMATS["int4"]]
    return [own, *(each for each in smaller if each.expert_bits < own.expert_bits)]


def choose(config: ModelConfig, machine: Machine, wish: Wish, format: Format | None) -> Choice:
    """A PlanError says by how much nothing fits, or why a layout does not start."""
    if wish.layout is not None:
        check_layout(config, machine, wish, format)
    wanted: Sequence[Format] = [format] if format is not None else order(config, machine)
    found = [choice for each in wanted if (choice := best(config, each, machine, wish)) is not None]
    whole = [each for each in found if each.memory.place != "disk"]
    if whole:
        fastest = max(each.tokens_per_s for each in whole)
        return next(each for each in whole if each.tokens_per_s >= NEAR * fastest)
    if found:
        return max(found, key=lambda each: each.tokens_per_s)  # from the disk: what reads least
    raise refusal(config, wanted[-1], machine, wish)


def check_layout(config: ModelConfig, machine: Machine, wish: Wish, format: Format | None) -> None:
    asked = wish.layout
    assert asked is not None
    if machine.gpu is None:
        raise PlanError(f"{asked.name} needs GPUs, and {machine.name} has none", hint="--gpu 8xH200 says which")
    if asked.gpus != machine.gpu_count:
        raise PlanError(
            f"{asked.name} is for {asked.gpus} GPUs, and {machine.name} has {machine.gpu_count}",
            hint="tp * dp * pp is the number of GPUs of all nodes",
        )
    first = format or order(config, machine)[0]
    if found := list(layouts.problems(config, first, asked)):
        fitting = [each.name for each in layouts.candidates(config, first, machine)]
        raise PlanError(
            f"{asked.name} does not start in {first.name}: {'; '.join(found)}",
            hint=f"these do: {', '.join(fitting)}" if fitting else "no layout divides for so many GPUs",
        )


def refusal(config: ModelConfig, format: Format, machine: Machine, wish: Wish) -> PlanError:
    """What is missing where the least is missing."""
    tried = list(memories(config, format, machine, wish))
    shorts = [(memory, short) for memory in tried if (short := memory.short)]
    if not shorts:
        if tried:
            reason = f"block-fp8 does not run on {machine.gpu.name if machine.gpu else 'this machine'}"
            return PlanError(f"{reason}", hint="--format w4a16 or bf16, or --place hybrid")
        what = f"--place {wish.place}" if wish.place else "any place"
        return PlanError(f"{machine.name} has no hardware for {what}", hint="--gpu 8xH200 names GPUs")
    memory, (where, short) = min(shorts, key=lambda each: each[1][1])
    needed, has = memory.used(where), dict(memory.capacity)[where]
    layout = f" with {memory.layout.name}" if memory.layout is not None and memory.place == "gpu" else ""
    return PlanError(
        f"{format.name} does not fit {machine.name}{layout}: {where} needs {needed / 1e9:,.1f} GB and has "
        f"{has / 1e9:,.1f} GB to give, {short / 1e9:,.1f} GB short",
        hint="a smaller --format, a shorter --context, less --concurrency, or more of "
        + where.replace("each GPU", "GPUs"),
        short_bytes=int(short) + 1,
    )
