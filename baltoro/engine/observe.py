"""What the engine's thread notes of every step and every request, for who looks from another thread.

Names of histograms are vLLM's without their prefix; seconds are of a clock that only runs forward.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import asdict, dataclass

from baltoro.engine.request import FinishReason
from baltoro.engine.sequence import Sequence
from baltoro.engine.timeline import Timeline

_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0,
)  # fmt: skip
_TOKENS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
HISTOGRAMS = {
    "request_queue_time_seconds": _SECONDS,  # from submit to the first step that computes something of it
    "time_to_first_token_seconds": _SECONDS,  # from submit
    "request_time_per_output_token_seconds": _SECONDS,  # mean of each request, between its first and its last token
    "e2e_request_latency_seconds": _SECONDS,  # from submit to the end, whatever that was
    "iteration_tokens_total": _TOKENS,  # rows of a step
}


class Histogram:
    """Observations counted in fixed buckets. Who observes and who reads see to it that they don't at once."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """bounds: upper ones, inclusive, rising; what is above the last is counted too."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> dict[str, object]:
        """As Prometheus has it: `buckets` from an upper bound to how many are not above it, "+Inf" is all."""
        names = (*map(repr, self._bounds), "+Inf")
        buckets: dict[str, int] = {}
        seen = 0
        for name, count in zip(names, self._counts, strict=True):
            seen += count
            buckets[name] = seen
        return {"buckets": buckets, "count": seen, "sum": self._sum}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step: who was in it, and where its time went."""

    began_s: float  # time.monotonic()
    schedule_s: float  # orders, scheduler and guesses
    pack_s: float
    forward_s: float  # the model, until its logits are here
    sample_s: float  # tokens chosen, and told to their sinks
    sequences: int
    tokens: int  # rows: prompts, decoded tokens and guesses
    logits: int  # rows of them that asked for logits
    waiting: int  # requests
    free_pages: int


class Observer:
    """One for the engine's whole life, whatever loops come and go. Its own lock is held for microseconds."""

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.timeline = timeline
        self._guard = threading.Lock()
        self._histograms = {name: Histogram(bounds) for name, bounds in HISTOGRAMS.items()}
        self._phases = dict.fromkeys(("schedule", "pack", "forward", "sample"), 0.0)
        self._finished: Counter[str] = Counter()
        self._last: StepRecord | None = None

    def step(self, record: StepRecord) -> None:
        with self._guard:
            self._last = record
            self._histograms["iteration_tokens_total"].observe(record.tokens)
            for phase in self._phases:
                self._phases[phase] += getattr(record, f"{phase}_s")
        if self.timeline is not None:
            self.timeline.step(asdict(record))

    def began(self, sequence: Sequence, now: float) -> None:
        """Its first tokens are about to be computed."""
        sequence.began_s = sequence.request.marks.began_s = now
        with self._guard:
            self._histograms["request_queue_time_seconds"].observe(now - sequence.arrived_s)

    def first_token(self, sequence: Sequence, now: float) -> None:
        sequence.first_s = sequence.request.marks.first_s = now
        with self._guard:
            self._histograms["time_to_first_token_seconds"].observe(now - sequence.arrived_s)

    def ended(self, sequence: Sequence, finish: FinishReason, now: float) -> None:
        with self._guard:
            self._finished[finish.value] += 1
            self._histograms["e2e_request_latency_seconds"].observe(now - sequence.arrived_s)
            if sequence.first_s is not None and sequence.generated > 1:
                each = (now - sequence.first_s) / (sequence.generated - 1)
                self._histograms["request_time_per_output_token_seconds"].observe(each)
        if self.timeline is not None:
            self.timeline.request(
                sequence.request.id, sequence.arrived_s, sequence.began_s, sequence.first_s, now,
                {"prompt_tokens": len(sequence.request.prompt), "cached_tokens": sequence.reused or 0,
                 "generated_tokens": sequence.generated, "finish": finish.value},
            )  # fmt: skip

    def read(self) -> dict[str, object]:
        """For JSON; all of one moment."""
        with self._guard:
            return {
                "finished": {reason.value: self._finished[reason.value] for reason in FinishReason},
                "phase_seconds": dict(self._phases),
                "last_step": None if self._last is None else asdict(self._last),
                "histograms": {name: each.read() for name, each in self._histograms.items()},
            }
