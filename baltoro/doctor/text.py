"""The report of `baltoro doctor`, for people."""

from __future__ import annotations

from collections.abc import Iterator

from baltoro.doctor.facts import Facts
from baltoro.doctor.judge import Limit, Verdict

BINDS = {
    "memory": "reading weights from memory",
    "compute": "arithmetic",
    "disk": "waiting for experts from the disk",
    "others": "other programs, which have the CPUs",
    "overhead": "none of these: the work between products (Python, small steps)",
    "unknown": "not known: torch does the work, whose roofs are not measured",
}


def lines(facts: Facts, verdict: Verdict) -> Iterator[str]:
    yield f"{facts.model}, {facts.format}, {_threads(facts)}: {verdict.tokens_per_s:.2f} tokens/s measured"
    if verdict.expected_tokens_per_s:
        least, most = verdict.expected_tokens_per_s
        yield f"expected  {least:.2f} tokens/s where nothing overlaps, at most {most:.2f}"
    for limit in verdict.limits:
        yield f"  {_limit(limit)}"
    if verdict.cached:
        cache = size(facts.last_cache_bytes)
        yield f"  what a token reads fits into the CPU's cache of {cache}, which may be faster than memory"
    yield f"binding   {BINDS[verdict.binding]}"
    yield (
        f"a token   {size(facts.resident_bytes)} resident, {size(facts.expert_bytes)} of routed experts, "
        f"{size(facts.cache_bytes)} of cache; {size(facts.flops, 'FLOP')}"
    )
    yield f"prompt    {facts.prompt_tokens} tokens in {facts.prompt_s:.2f} s; loading took {facts.load_s:.1f} s"
    yield from _store(facts, verdict)
    yield from _process(facts)
    yield ""
    yield "what would help:" if verdict.advice else "nothing that was measured would help by 3 % or more"
    for number, each in enumerate(verdict.advice, 1):
        gain = f": {verdict.tokens_per_s:.2f} -> {each.tokens_per_s:.2f} tokens/s" if each.tokens_per_s else ""
        yield f"{number}. {each.change}{gain}"
        yield f"   {each.because}"


def size(number: float, unit: str = "B") -> str:
    for letter, worth in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= worth:
            return f"{number / worth:.2f} {letter}{unit}"
    return f"{number:.0f} {unit}"


def _limit(limit: Limit) -> str:
    if limit.resource == "compute":
        amount, rate = size(limit.amount, "FLOP"), f"{limit.rate / 1e9:,.0f} GFLOP/s"
    else:
        amount, rate = size(limit.amount), f"{limit.rate / 1e9:.2f} GB/s"
    return f"{limit.resource:8}{limit.tokens_per_s:9.2f} tokens/s: {amount} a token at {rate}"


def _store(facts: Facts, verdict: Verdict) -> Iterator[str]:
    store, disk = facts.store, facts.disk
    if store is None or disk is None:
        yield "experts   all in memory"
        return
    yield (
        f"experts   {store.slots:,} of {store.all_slots:,} in memory; hit rate {store.hit_rate:.0%}, "
        f"{store.misses / facts.tokens:.1f} misses and {size(store.bytes_read / facts.tokens)} from disk a token; "
        f"{verdict.waited_share:.0%} of the time waited for it"
    )
    way = "past the page cache" if disk.direct else "through the page cache"
    yield f"disk      {disk.read_gbps:.2f} GB/s by {disk.backend}, {way}"
    for replay in facts.replays:
        yield (
            f"  {replay.slots:9,} experts, {size(replay.budget_bytes)} in {replay.format}: hit rate "
            f"{replay.hit_rate:.0%}, {size(replay.bytes_per_token)} a token, replayed"
        )


def _process(facts: Facts) -> Iterator[str]:
    process = facts.process
    queued = "" if facts.queued_s is None else f"; {facts.queued_s / facts.seconds:.0%} of the time others had them"
    yield f"CPUs      {_threads(facts)}, {process.usable_cpus} usable of {process.cpus}{queued}; {_target(facts)}"
    known = [f"{size(process.free_bytes)} of {size(process.ram_bytes)} free"]
    if process.page_cache_bytes is not None:
        known.append(f"{size(process.page_cache_bytes)} page cache")
    if process.swapped_bytes is not None:
        known.append(f"{size(process.swapped_bytes)} of this process swapped out")
    if process.anonymous_bytes is not None and process.huge_bytes is not None:
        share = f"{size(process.huge_bytes)} of its {size(process.anonymous_bytes)} in huge pages"
        known.append(f"{share} (setting: {process.huge_pages or 'none'})")
    yield f"memory    {', '.join(known)}"


def _threads(facts: Facts) -> str:
    return f"{facts.threads} thread{'s' if facts.threads > 1 else ''}"


def _target(facts: Facts) -> str:
    process = facts.process
    forced = f", forced by BALTORO_CPU; {process.best_target} runs here" if process.forced_target else ""
    return f"{process.target}{forced or ', the best that runs here'}"
