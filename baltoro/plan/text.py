"""A plan for people: tables of rich, each figure with its formula beside it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table

from baltoro.plan.efficiency import Band
from baltoro.plan.planner import CONTEXTS, REQUESTS, Plan

PLACES = {
    "gpu": "all on GPUs",
    "hybrid": "what every token needs on GPUs, experts in RAM",
    "ram": "all in RAM",
    "disk": "what every token needs in RAM, experts from the disk",
}


def show(plan: Plan, console: Console, commands: str = "") -> None:
    for part in _parts(plan):
        console.print(part, markup=False, highlight=False)
    if commands:
        console.print("\nto run it", markup=False, highlight=False)
        console.print(commands, markup=False, highlight=False, soft_wrap=True)


def _parts(plan: Plan) -> Iterator[RenderableType]:
    memory = plan.memory
    layout = f", {memory.layout.name}" if memory.layout is not None else ""
    yield f"{plan.model} in {plan.format.name} on {plan.machine.title}: {PLACES[memory.place]}{layout}"
    yield f"{band(plan.tokens_per_s)} tokens/s; {plan.single.binding} binds"
    yield f"quality: {plan.format.quality}"
    if plan.machine.assumed:
        yield f"assumed: {'; '.join(plan.machine.assumed)}"
    yield _memory(plan)
    yield _cache(plan)
    yield _speed(plan)
    yield _loading(plan)
    yield _formats(plan)
    if plan.layouts:
        yield _layouts(plan)
    yield (
        f"what would help, the cheapest first{_company(plan)}:"
        if plan.advice
        else "nothing that was tried would help by 10 % or more"
    )
    for number, each in enumerate(plan.advice, 1):
        yield f"{number}. {each.change}: {plan.choice.tokens_per_s:.2f} -> {each.tokens_per_s:.2f} tokens/s"


def _memory(plan: Plan) -> Table:
    table = Table("where", "what", "bytes", "formula", title="memory", title_justify="left")
    for item in plan.memory.items:
        table.add_row(item.where, item.purpose, size(item.bytes), item.formula)
    for where, room in plan.memory.capacity:
        used = plan.memory.used(where)
        table.add_row(where, "together", size(used), f"of {size(room)} that may be taken; {size(room - used)} left")
    where, peak, formula = plan.load_peak
    table.add_row(where, "while it loads", size(peak), formula)
    return table


def _cache(plan: Plan) -> Table:
    head = [f"{count} request{'s' if count > 1 else ''}" for count in REQUESTS]
    table = Table("cache", *head, title="cache, all layers", title_justify="left")
    for context in CONTEXTS:
        table.add_row(f"{context:,} tokens", *(size(plan.cache_bytes(context, count)) for count in REQUESTS))
    table.add_row("room for", f"{plan.memory.free_cache_tokens:,} tokens", *[""] * (len(REQUESTS) - 1))
    return table


def _speed(plan: Plan) -> Table:
    table = Table("speed", "expected", "from", "to", "because", title="speed, tokens/s", title_justify="left")

    def row(name: str, rate: Band, because: str) -> None:
        table.add_row(name, *(number(each) for each in (rate.expected, rate.least, rate.most)), because)

    parts = "; ".join(f"{t.resource} {t.seconds.expected * 1e3:,.2f} ms ({t.formula})" for t in plan.single.terms)
    row("decode, one request", plan.tokens_per_s, parts)
    for context, rate in plan.by_context.items():
        row(f"  {context:,} tokens deep", rate, "")
    if plan.cold is not None:
        row("  cold: no expert read yet", plan.cold, f"{size(plan.cold_bytes_per_token)} a token from the disk")
        for hit, rate in plan.by_hits.items():
            table.add_row(f"  disk's ceiling, {hit:.0%} in memory", number(rate), "", "", "")
    mix = plan.mix
    together = f"{plan.wish.concurrency} x ({mix.prompt:,} prompt tokens, {mix.answer:,} of answer)"
    row("all requests together", plan.throughput, together)
    for each in plan.prompts:
        row(
            f"prompt of {each.tokens:,}",
            each.tokens_per_s,
            f"first token after {seconds(each.seconds)}; {each.formula}",
        )
    return table


def _loading(plan: Plan) -> Table:
    table = Table("what", "", "formula", title="loading, disk, cost", title_justify="left")
    table.add_row("load", seconds(plan.load.seconds), plan.load.terms[0].formula)
    table.add_row("to fetch", size(plan.disk.fetch_bytes), "what is published")
    table.add_row(
        "on disk afterwards", size(plan.disk.packed_bytes), f"{plan.format.expert_bits:.3g} bits an expert's weight"
    )
    table.add_row(
        "at most meanwhile",
        size(plan.disk.convert_peak_bytes),
        "a shard is fetched, packed and deleted before the next",
    )
    if plan.cost is not None and plan.cost.money is not None:
        low, expected, high = plan.cost.money
        table.add_row(
            "a million tokens", f"{expected:,.3f} ({low:,.3f} to {high:,.3f})", "price of an hour / tokens of an hour"
        )
    if plan.cost is not None and plan.cost.kwh is not None:
        low, expected, high = plan.cost.kwh
        table.add_row("", f"{expected:,.2f} kWh ({low:,.2f} to {high:,.2f})", f"{plan.cost.watts:,.0f} W")
    return table


def _formats(plan: Plan) -> Table:
    table = Table(
        "format", "weights", "place", "tokens/s", "quality", title=f"formats{_company(plan)}", title_justify="left"
    )
    for each in plan.formats:
        where = f"{each.place} {each.layout or ''}".strip() if each.place else f"{size(each.short_bytes or 0)} short"
        rate = band(each.tokens_per_s) if each.tokens_per_s is not None else ""
        table.add_row(each.format, size(each.weight_bytes), where, rate, each.quality)
    return table


def _layouts(plan: Plan) -> Table:
    table = Table(
        "layout", "each GPU", "cache tokens", "tokens/s", "", title=f"layouts{_company(plan)}", title_justify="left"
    )
    for each in plan.layouts:
        why = "; ".join(each.problems) or (f"{size(each.short_bytes)} short" if each.short_bytes else "")
        rate = band(each.tokens_per_s) if each.tokens_per_s is not None else ""
        table.add_row(each.name, size(each.gpu_bytes), f"{each.free_cache_tokens:,}", rate, why)
    return table


def _company(plan: Plan) -> str:
    return f", one of {plan.wish.concurrency} requests at once" if plan.wish.concurrency > 1 else ""


def band(rate: Band) -> str:
    return f"{number(rate.expected)} ({number(rate.least)} to {number(rate.most)})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:,.2f}"


def seconds(band: Band) -> str:
    def one(value: float) -> str:
        return f"{value:,.2f} s" if value < 10 else f"{value:,.0f} s" if value < 600 else f"{value / 60:,.0f} min"

    return f"{one(band.expected)} ({one(band.most)} to {one(band.least)})"


def size(nbytes: float) -> str:
    for unit, worth in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(nbytes) >= worth:
            return f"{nbytes / worth:,.2f} {unit}"
    return f"{nbytes:.0f} B"
