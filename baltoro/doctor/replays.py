"""This run's own choices of experts against other budgets: what more memory, or smaller experts, would have read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from baltoro.config import ModelConfig
from baltoro.doctor import reads
from baltoro.doctor.facts import Replay
from baltoro.kernels.formats import FORMATS
from baltoro.weights import eviction, simulate
from baltoro.weights.eviction import Key
from baltoro.weights.experts import POLICY
from baltoro.weights.simulate import Uses
from baltoro.weights.trace import Reader, Record

LARGER = (1.25, 1.5, 2.0, 3.0)  # times this run's slots


def replays(
    trace: Reader, config: ModelConfig, *, format: str, slots: int, block_bytes: int, affordable: int,
    smaller: Iterable[str], warm_steps: int, earlier: Counter[Key],
) -> tuple[Replay, ...]:  # fmt: skip
    """This run's budget, larger ones, then this one's bytes in smaller formats.

    affordable: slots that this and the free memory would hold
    warm_steps: how many at the beginning are not counted, as in the run
    earlier:    uses that the store knew when it began
    """
    records = list(trace)
    header = trace.header
    both = Uses.of(header, _first(records, warm_steps)), Uses.of(header, records)
    every = len(header.layers) * header.experts
    counts = [slots, *sorted({min(every, count) for count in (*(int(slots * by) for by in LARGER), affordable, every)})]
    wanted = [(count, format, block_bytes) for count in counts if count >= slots]
    for name in FORMATS:
        if name in smaller:
            size = reads.block_bytes(config, name)
            wanted.append((min(every, slots * block_bytes // size), name, size))
    return tuple(_replay(both, count, name, size, earlier) for count, name, size in dict.fromkeys(wanted))


def _replay(both: tuple[Uses, Uses], slots: int, format: str, block_bytes: int, earlier: Counter[Key]) -> Replay:
    """The whole run less its beginning: misses of steps that came after memory was warm."""
    before, whole = (simulate.replay(uses, POLICY, eviction.make(POLICY, slots, uses=earlier), slots) for uses in both)
    misses, uses = whole.misses - before.misses, whole.uses - before.uses
    return Replay(
        slots=slots,
        block_bytes=block_bytes,
        format=format,
        hit_rate=1 - misses / max(1, uses),
        misses_per_token=misses / max(1, whole.tokens - before.tokens),
    )


def _first(records: list[Record], steps: int) -> list[Record]:
    """A step begins where a layer is not above the one before."""
    begun, before = 0, simulate.NEVER
    found: list[Record] = []
    for record in records:
        begun += record.layer <= before
        before = record.layer
        if begun > steps:
            break
        found.append(record)
    return found
