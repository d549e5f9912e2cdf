"""Experts within a budget of memory: what is used often is here, the rest comes from disk when it is wanted.

    store = ExpertStore(checkpoint, config, budget_bytes=12 * 2**30)
    for experts, places in store.take(layer, wanted):      # as they come
        ... multiply with store.blocks[places] ...

A block is one expert as `baltoro quantize` wrote it, read in one piece past the page cache, to where it is multiplied
from: nothing is copied, nothing is there twice. What memory holds is known to the byte: the slots are made at once.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError, CheckpointError, ReadError, TraceError
from baltoro.kernels import blocks
from baltoro.kernels.formats import Format
from baltoro.kernels.reader import UNIT, File, Reader, Ticket
from baltoro.kernels.slab import Slab
from baltoro.weights import eviction
from baltoro.weights.blocks import ExpertBlock, expert_block
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.eviction import Key

POLICY = "pinned-lru"  # docs/numbers.md
HOT = ".hot-experts.json"  # in the checkpoint's directory
GUESSES = 1  # of a layer; docs/numbers.md
LEAST_SLOTS = 2  # one is read while another is multiplied with


@dataclass(slots=True)
class Statistics:
    """Since the store was made. A use is an expert of one layer in one step, however many tokens chose it."""

    hits: int = 0
    misses: int = 0
    guesses: int = 0  # read before they were known to be wanted
    foreseen: int = 0  # misses among them: guesses that came true
    bytes_read: int = 0
    waited_s: float = 0.0  # with nothing to multiply


class ExpertStore:
    """One thread uses it: the one that runs the model."""

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, *, budget_bytes: int, policy: str = POLICY,
        uses: Counter[Key] | None = None,
    ) -> None:  # fmt: skip
        """budget_bytes: of memory for blocks; at least two must fit
        uses: of earlier runs, for policies that pin; None: what `close` kept
        """
        self._checkpoint, self._config = checkpoint, config
        first = next(layer for layer in range(config.num_hidden_layers) if config.is_moe(layer))
        block = expert_block(checkpoint, first, 0)
        self.shape = _shape(config, block)
        layers = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
        slots = min(budget_bytes // block.nbytes, layers * config.n_routed_experts)
        if slots < LEAST_SLOTS:
            raise BaltoroError(
                f"a budget of {budget_bytes / 1e9:.2f} GB holds {slots} experts of {block.nbytes / 1e6:.1f} MB",
                hint=f"expert memory of at least {LEAST_SLOTS * block.nbytes} bytes; some thousand are better",
            )
        self.budget_bytes = budget_bytes
        self.blocks: Tensor = Slab(slots * block.nbytes).cut((slots, block.nbytes), torch.uint8)
        self.policy = eviction.make(policy, slots, uses=_earlier_uses(checkpoint) if uses is None else uses)
        self.statistics = Statistics()
        self.remembers = True  # whether `close` keeps what was used most
        self.reader = Reader()
        self._files: dict[Path, File] = {}
        self._where: dict[Key, tuple[File, int]] = {}
        self._slots: dict[Key, int] = {}  # here, or coming
        self._coming: dict[Key, Ticket] = {}
        self._foreseen: set[Key] = set()
        self._held: set[Key] = set()  # by the step under way
        self._free = list(range(slots - 1, -1, -1))

    @property
    def chosen(self) -> int:
        """Experts of a layer that a token needs. With fewer slots a step goes on, and reads every one each time."""
        return self._config.num_experts_per_tok

    @property
    def slots(self) -> int:
        return len(self.blocks)

    def take(
        self, layer: int, experts: Sequence[int], *, in_order: bool = False
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Experts and their places in `blocks`, some at a time, until all were given; a place is valid until the next.

        in_order: as `experts` has them; otherwise those that are here come first.
        Reading goes on meanwhile, as far ahead as there is room. Raises ReadError where one cannot be read.
        """
        keys = [(layer, expert) for expert in experts]
        waiting = deque(keys if in_order else sorted(keys, key=lambda key: key not in self._slots))
        for key in waiting:
            self.policy.touched(key)
            here = key in self._slots
            self.statistics.hits += here and key not in self._coming
            self.statistics.misses += not here or key in self._coming
            self.statistics.foreseen += key in self._foreseen
            self._foreseen.discard(key)
        held: deque[Key] = deque()
        try:
            while waiting or held:
                while waiting and self._hold(waiting[0], urgent=not held):
                    held.append(waiting.popleft())
                some = self._ready(held, in_order)
                yield [expert for _, expert in some], [self._slots[key] for key in some]
                self._held.difference_update(some)
        finally:
            self._held.difference_update(keys)

    def begin(self, layer: int, experts: Sequence[int], *, in_order: bool = False) -> None:
        """Start to read what `take` will want next, and keep what is here of it: of a few all, else of the first."""
        keys = [(layer, expert) for expert in experts]
        self._held = set() if in_order else {key for key in keys if key in self._slots}
        for key in keys:
            if not self._hold(key, urgent=False):
                return

    def expect(self, layer: int, experts: Sequence[int], *, most: int = GUESSES) -> None:
        """These, the likeliest first, will be wanted soon: up to `most` that are not here are read."""
        self._settle()
        for key in [(layer, expert) for expert in experts if (layer, expert) not in self._slots][:most]:
            if len(self._coming) >= max(1, self.slots // 2) or not self._read(key):
                return
            self._foreseen.add(key)
            self.statistics.guesses += 1

    def close(self) -> None:
        """Nothing is read or written any more when this returns. What was used most is kept for the next run."""
        self.reader.close()
        if self.remembers and isinstance(self.policy, eviction.Pinned) and self.policy.uses:
            with suppress(TraceError):  # a directory that may not be written to
                eviction.write_uses(self._checkpoint.directory / HOT, self._checkpoint.directory.name, self.policy.uses)

    def _hold(self, key: Key, *, urgent: bool) -> bool:
        """Keep it until the step is over, and have it read if it is not here; False where there is no room yet."""
        self._held.add(key)
        if key in self._slots:
            return True
        while not self._read(key):
            if not (urgent and self._coming):
                self._held.discard(key)
                assert not urgent, "every slot is held by a step that holds nothing"
                return False
            with suppress(ReadError):  # of one that nobody waits for: told when it is wanted
                self._arrive(next(iter(self._coming)))
        return True

    def _read(self, key: Key) -> bool:
        if self._free:
            slot = self._free.pop()
        else:
            victim = self.policy.victim(self._held)
            if victim is None:
                return False
            slot = self._slots.pop(victim)
            self.policy.removed(victim)
            self._foreseen.discard(victim)
        try:
            file, offset = self.locate(key)
            file.check()
            ticket = self.reader.submit(file, offset, self.blocks[slot])
        except BaltoroError:
            self._free.append(slot)
            raise
        self._slots[key], self._coming[key] = slot, ticket
        return True

    def _settle(self) -> None:
        """What was guessed wrongly has come all the same: it may give up its place now."""
        for key in [key for key, ticket in self._coming.items() if ticket.finished]:
            self._foreseen.discard(key)
            with suppress(ReadError):  # of one that nobody waits for
                self._arrive(key)

    def _ready(self, held: deque[Key], in_order: bool) -> list[Key]:
        """Take from `held` what can be multiplied with now; wait until there is something."""
        finished = [key for key in held if key not in self._coming or self._coming[key].finished]
        if in_order or not finished:
            self._arrive(held[0])
        some: list[Key] = []
        if in_order:  # no more than half, so that there is room to read into
            while held and len(some) < max(1, self.slots // 2) and self._is_here(held[0]):
                some.append(held.popleft())
        else:
            some = [key for key in held if self._is_here(key)]
            for key in some:
                held.remove(key)
        return some

    def _is_here(self, key: Key) -> bool:
        ticket = self._coming.get(key)
        if ticket is not None and ticket.finished:
            self._arrive(key)
        return key not in self._coming

    def _arrive(self, key: Key) -> None:
        """Wait for it; a ReadError where it does not come, and then it is not here."""
        if key not in self._coming:
            return
        began = time.perf_counter()
        try:
            self._coming[key].wait()
        except BaltoroError:
            del self._coming[key]
            self._free.append(self._slots.pop(key))
            raise
        self.statistics.waited_s += time.perf_counter() - began
        self.statistics.bytes_read += self.shape.nbytes
        del self._coming[key]
        self.policy.admitted(key)

    def locate(self, key: Key) -> tuple[File, int]:
        if key not in self._where:
            block = expert_block(self._checkpoint, *key)
            if (block.nbytes, block.parts) != (self.shape.nbytes, self.shape.parts):
                raise CheckpointError(
                    f"{block.shard.name}: expert {key[1]} of layer {key[0]} has {block.nbytes} bytes in other parts "
                    f"than the first one of {self.shape.nbytes}",
                    hint="files of different formats are mixed; quantize the model once more",
                )
            if block.shard not in self._files:
                self._files[block.shard] = self.reader.open(block.shard)
            self._where[key] = self._files[block.shard], block.offset
        return self._where[key]


def _earlier_uses(checkpoint: Checkpoint) -> Counter[Key] | None:
    try:
        return eviction.read_uses(checkpoint.directory / HOT, checkpoint.directory.name)
    except TraceError:  # there was none, or it is damaged: it is learned anew
        return None


def _shape(config: ModelConfig, block: ExpertBlock) -> blocks.Shape:
    assert block.nbytes % UNIT == 0
    return blocks.Shape(
        format=cast("Format", config.packed_format), hidden=config.hidden_size, width=config.moe_intermediate_size,
        nbytes=block.nbytes, parts=block.parts,
    )  # fmt: skip
