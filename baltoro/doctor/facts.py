"""What `baltoro doctor` measures, as data: gathered in gather.py, judged in judge.py, neither knowing the other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """The machine as this process finds it. None: this system does not say."""

    cpus: int  # of the machine
    usable_cpus: int  # affinity and control group
    ram_bytes: int
    free_bytes: int  # that can be had without swapping, while the model is loaded
    page_cache_bytes: int | None
    swapped_bytes: int | None  # of this process
    anonymous_bytes: int | None  # of this process, in memory
    huge_bytes: int | None  # of those, in huge pages
    huge_pages: str | None  # the kernel's setting: always, madvise, never
    target: str  # instruction set that runs
    best_target: str
    forced_target: str | None  # what BALTORO_CPU says


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What the machine reaches at best. None: it cannot be measured without native kernels."""

    threads: int
    target: str
    read_gbps: float | None
    peak_gflops: float | None  # of the instruction that the format is multiplied with


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The checkpoint's own shards, read as the expert store reads them."""

    read_gbps: float
    backend: str
    best_backend: str
    direct: bool  # past the page cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Experts within a budget, over the tokens that were measured."""

    slots: int
    all_slots: int  # that would hold every expert
    block_bytes: int
    hits: int
    misses: int
    bytes_read: int
    waited_s: float

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """This run's own choices of experts, replayed against a budget, over the tokens that were measured."""

    slots: int
    block_bytes: int
    format: str
    hit_rate: float
    misses_per_token: float

    @property
    def budget_bytes(self) -> int:
        return self.slots * self.block_bytes

    @property
    def bytes_per_token(self) -> float:
        return self.misses_per_token * self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One run. Bytes and operations are those of one decoded token."""

    model: str
    format: str  # bf16, fp8, int8, int4, or float32 or bfloat16 where nothing is packed
    threads: int
    load_s: float
    prompt_tokens: int
    prompt_s: float
    tokens: int  # decoded and measured
    seconds: float
    queued_s: float | None  # of them, that a thread waited for a CPU which others had, on average; None: not known
    resident_bytes: int  # weights that every token is multiplied with
    expert_bytes: int  # routed experts that one token chooses
    cache_bytes: int  # latents that it attends to
    flops: int
    last_cache_bytes: int  # of the CPU
    slab_bytes: int  # packed weights and expert slots: memory that huge pages were asked for
    roof: Roof  # as the run was
    other_roofs: tuple[Roof, ...]  # with other threads, another target
    disk: Disk | None  # None: nothing is read from it
    store: Store | None  # None: every expert is in memory
    replays: tuple[Replay, ...]  # the budget of this run first
    smaller_formats: tuple[tuple[str, float], ...]  # name, its bytes a token as a share of what they are
    process: Process
    spare_bytes: int  # free memory that experts could have beside those of this run

    @property
    def memory_bytes(self) -> int:
        return self.resident_bytes + self.expert_bytes + self.cache_bytes

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def waited_s(self) -> float:
        """Of `seconds`, for the disk."""
        return min(self.seconds, self.store.waited_s) if self.store else 0.0
