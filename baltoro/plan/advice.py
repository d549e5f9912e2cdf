"""What would help, the cheapest first: each change is planned anew, and told only where it brings something."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from baltoro.config import ModelConfig
from baltoro.plan.choice import Choice, best
from baltoro.plan.formats import FORMATS, Format
from baltoro.plan.machine import LEAST_RAM_RESERVE, RAM_RESERVE, Gpu, Machine
from baltoro.plan.memory import Wish, activations, cache_bytes
from baltoro.plan.weights import weights

WORTH = 1.1  # times as fast: less is within what nobody notices
MODULE = 64 * 2**30  # bytes: RAM is bought in such steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    change: str
    kind: str  # free, disk, RAM, GPU, node: what it costs, rising
    tokens_per_s: float  # expected, of one request


def advice(
    config: ModelConfig, format: Format, machine: Machine, wish: Wish, now: Choice | None, card: Gpu
) -> list[Advice]:
    """now: as planned; None: it does not fit, and what makes it fit is the advice. card: the GPU that could be added"""
    before = now.tokens_per_s if now is not None else 0.0
    found: list[Advice] = []
    for change, kind, other_format, other_machine, other_wish in _changes(config, format, machine, wish, now, card):
        then = best(config, other_format, other_machine, other_wish)
        if then is not None and then.tokens_per_s >= WORTH * before:
            found.append(Advice(change=change, kind=kind, tokens_per_s=then.tokens_per_s))
    return found


def _changes(
    config: ModelConfig, format: Format, machine: Machine, wish: Wish, now: Choice | None, card: Gpu
) -> Iterator[tuple[str, str, Format, Machine, Wish]]:
    small = FORMATS["w4a16" if machine.gpus else "int4"]
    if small.expert_bits < format.expert_bits:
        yield f"{small.name} instead of {format.name} ({small.quality})", "free", small, machine, wish
    free = replace(wish, layout=None, place=None)
    if wish.place is not None or wish.layout is not None:
        yield "no --place and --layout: the fastest that fits", "free", format, machine, free
    if now is None and wish.context > 8192:
        for context in (32768, 8192):
            if context < wish.context:
                yield f"a context of {context:,} tokens", "free", format, machine, replace(free, context=context)
    place = now.memory.place if now is not None else None
    if place == "disk":
        two = replace(machine, disk_bandwidth=2 * machine.disk_bandwidth)
        yield f"a second drive: {two.disk_bandwidth / 1e9:g} GB/s together", "disk", format, two, wish
    if place in (None, "disk") and not machine.unified:
        needed = weights(config, format).whole + wish.concurrency * cache_bytes(config, wish.context, wish)
        needed = (needed + activations(config, 2048)) / (1 - RAM_RESERVE) + LEAST_RAM_RESERVE
        ram = math.ceil(needed / MODULE) * MODULE
        if ram > machine.ram_bytes:
            more = replace(machine, ram_bytes=float(ram))
            text = (
                f"{ram / 2**30:,.0f} GiB of RAM instead of {machine.ram_bytes / 2**30:,.0f}: nothing is read from disk"
            )
            yield text, "RAM", format, more, free
    if machine.gpu is None and not machine.unified and machine.nodes == 1:
        with_card = replace(machine, gpu=card, gpus=1)
        yield f"one {card.name} for what every token needs", "GPU", format, with_card, free
    elif machine.gpu is not None and machine.gpus < 8:
        more = replace(machine, gpus=2 * machine.gpus)
        yield f"{more.gpus} x {machine.gpu.name} instead of {machine.gpus}", "GPU", format, more, free
    if machine.gpus >= 4:
        more = replace(machine, nodes=2 * machine.nodes)
        yield f"{more.nodes} nodes instead of {machine.nodes}", "node", format, more, free
