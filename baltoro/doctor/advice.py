"""What would make it faster, by how much, and the numbers that say so.

A token's seconds are taken apart as they were measured: those in which the step waited for the disk, and the rest.
More memory shortens the first, in proportion to the bytes that the replay reads; fewer bytes or a faster machine
shorten the rest, where memory or arithmetic explains at least half of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from baltoro.doctor.facts import Facts, Replay, Roof

LEAST_GAIN = 0.03  # below that it is noise
EXPLAINED = 0.5  # of the time that is not waited: what memory or arithmetic must explain for a remedy to count
FEW_HUGE_PAGES = 0.5  # of the memory they were asked for
MUCH_QUEUED = 0.1  # of the time
LARGE_BYTES = 2**28  # of memory: below, huge pages matter little


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    change: str
    because: str  # the numbers behind it
    tokens_per_s: float | None  # None: a fact without a forecast


def advice(facts: Facts) -> tuple[Advice, ...]:
    """What gives most first, facts without a forecast last; nothing that gives less than noise."""
    found = [*_memory(facts), *_formats(facts), *_threads(facts), *_target(facts), *_system(facts), *_hardware(facts)]
    least = facts.tokens_per_s * (1 + LEAST_GAIN)
    worth = [each for each in found if each.tokens_per_s is None or each.tokens_per_s > least]
    return tuple(sorted(worth, key=lambda each: -(each.tokens_per_s or 0.0)))


def _computing(facts: Facts, *, bytes_share: float = 1.0, faster: float = 1.0) -> float:
    """Seconds a token without waiting, with this share of the bytes, on memory and cores so many times as fast."""
    rest = (facts.seconds - facts.waited_s) / facts.tokens
    roof = facts.roof
    memory = facts.memory_bytes / (roof.read_gbps * 1e9) if roof.read_gbps else 0.0
    compute = facts.flops / (roof.peak_gflops * 1e9) if roof.peak_gflops else 0.0
    explained = max(memory, compute)
    if explained < EXPLAINED * rest:
        return rest
    there = max(memory * bytes_share, compute) / faster
    return rest * min(1.0, there / explained)


def _with(facts: Facts, replay: Replay, *, bytes_share: float = 1.0) -> float:
    """Tokens a second at another budget or format."""
    now = facts.replays[0].bytes_per_token
    waiting = facts.waited_s / facts.tokens * (min(1.0, replay.bytes_per_token / now) if now else 1.0)
    return 1 / (_computing(facts, bytes_share=bytes_share) + waiting)


def _memory(facts: Facts) -> list[Advice]:
    """The most that is free now, and the most useful one that is not."""
    store = facts.store
    if store is None or not facts.replays:
        return []
    now, *others = [each for each in facts.replays if each.format == facts.format]
    free = facts.spare_bytes
    found: list[Advice] = []
    for affordable in (True, False):
        some = [each for each in others if (each.budget_bytes - now.budget_bytes <= free) == affordable]
        if not some:
            continue
        best = max(some, key=lambda each: _with(facts, each))
        enough = min((each for each in some if _with(facts, each) >= _with(facts, best) / (1 + LEAST_GAIN)),
                     key=lambda each: each.slots)  # fmt: skip
        more = enough.budget_bytes - now.budget_bytes
        option = f"--expert-memory {-(-enough.budget_bytes // 2**20)}MiB"
        change = option if affordable else f"{(more - free) / 2**30:.1f} GiB more RAM and {option}"
        found.append(
            Advice(
                change=change,
                because=f"hit rate {now.hit_rate:.0%} -> {enough.hit_rate:.0%}, replayed on this run's own choices; "
                f"{more / 1e9:.1f} GB more, of {free / 1e9:.1f} GB to spare",
                tokens_per_s=_with(facts, enough),
            )
        )
    return found


def _formats(facts: Facts) -> list[Advice]:
    found: list[Advice] = []
    for name, share in facts.smaller_formats:
        replay = next((each for each in facts.replays if each.format == name), None)
        speed = 1 / _computing(facts, bytes_share=share) if replay is None else _with(facts, replay, bytes_share=share)
        because = f"{share:.0%} of the bytes a token" + (
            f"; the same memory holds {replay.slots:,} experts instead of {facts.replays[0].slots:,}, hit rate "
            f"{facts.replays[0].hit_rate:.0%} -> {replay.hit_rate:.0%}" if replay else ""
        )  # fmt: skip
        found.append(
            Advice(
                change=f"quantize the original checkpoint to {name}",
                because=f"{because}. Answers change; `baltoro quantize` says by how much weights do",
                tokens_per_s=speed,
            )
        )
    return found


def _threads(facts: Facts) -> list[Advice]:
    usable = facts.process.usable_cpus
    other = next((each for each in facts.other_roofs if each.threads == usable), None)
    if facts.threads == usable or other is None or other.target != facts.roof.target:
        return []
    return [_roofed(facts, other, f"--threads {usable} instead of {facts.threads}: so many CPUs are usable")]


def _target(facts: Facts) -> list[Advice]:
    best, forced = facts.process.best_target, facts.process.forced_target
    if best == "torch":
        return [Advice(change="install a C++ compiler and baltoro once more", tokens_per_s=None,
                       because="the native kernels were not built, torch does their work")]  # fmt: skip
    if facts.process.target == best:
        return []
    change = f"unset BALTORO_CPU, which is {forced}: {best} runs here"
    other = next((each for each in facts.other_roofs if each.target == best), None)
    if other is None or facts.roof.read_gbps is None:
        return [Advice(change=change, because=f"{facts.process.target} does the work", tokens_per_s=None)]
    return [_roofed(facts, other, change)]


def _roofed(facts: Facts, other: Roof, change: str) -> Advice:
    """On measured memory and cores of another speed."""
    here = facts.roof
    assert here.read_gbps and here.peak_gflops and other.read_gbps and other.peak_gflops
    memory, compute = facts.memory_bytes / here.read_gbps, facts.flops / here.peak_gflops
    faster = max(memory, compute) / max(facts.memory_bytes / other.read_gbps, facts.flops / other.peak_gflops)
    return Advice(
        change=change,
        because=f"memory {here.read_gbps:.1f} -> {other.read_gbps:.1f} GB/s, "
        f"arithmetic {here.peak_gflops:.0f} -> {other.peak_gflops:.0f} GFLOP/s, both measured",
        tokens_per_s=1 / (_computing(facts, faster=max(1.0, faster)) + facts.waited_s / facts.tokens),
    )


def _system(facts: Facts) -> list[Advice]:
    """What the system withholds: facts, for nothing here measures what they cost."""
    found: list[tuple[str, str]] = []
    process, disk = facts.process, facts.disk
    huge, asked = process.huge_bytes, min(facts.slab_bytes, process.anonymous_bytes or 0)  # slots may not be filled yet
    if huge is not None and asked > LARGE_BYTES and huge < FEW_HUGE_PAGES * asked:
        because = (
            f"{huge / 1e9:.2f} GB are in huge pages, weights take {asked / 1e9:.2f}; setting: {process.huge_pages}"
        )
        found.append(("huge pages: see /sys/kernel/mm/transparent_hugepage/enabled", because))
    if facts.queued_s is not None and facts.queued_s > MUCH_QUEUED * facts.seconds:
        share = f"{facts.queued_s / facts.seconds:.0%} of the time a thread was ready and others had the CPUs"
        found.append(("fewer programs beside, or fewer --threads", share))
    if process.swapped_bytes:
        because = f"{process.swapped_bytes / 1e9:.2f} GB of this process are swapped out"
        found.append(("less --expert-memory, or fewer programs beside", because))
    if disk is not None and not disk.direct:
        because = "this one reads through the page cache"
        found.append(("a filesystem that reads past the page cache, as ext4 and xfs do", because))
    if disk is not None and disk.backend != disk.best_backend:
        found.append((f"unset BALTORO_READER: {disk.best_backend} runs here", f"{disk.backend} reads"))
    return [Advice(change=change, because=because, tokens_per_s=None) for change, because in found]


def _hardware(facts: Facts) -> list[Advice]:
    found: list[Advice] = []
    disk, read_gbps, waiting = facts.disk, facts.roof.read_gbps, facts.waited_s / facts.tokens
    if disk is not None and waiting:
        share = facts.waited_s / facts.seconds
        found.append(
            Advice(
                change="a drive that reads twice as fast",
                because=f"this one reads {disk.read_gbps:.2f} GB/s, and {share:.0%} of the time is waited for it",
                tokens_per_s=1 / (_computing(facts) + waiting / 2),
            )
        )
    if read_gbps is not None:
        found.append(
            Advice(
                change="memory that reads twice as fast",
                because=f"this one reads {read_gbps:.1f} GB/s, and a token reads {facts.memory_bytes / 1e9:.2f} GB",
                tokens_per_s=1 / (_computing(facts, bytes_share=0.5) + waiting),
            )
        )
    return found
