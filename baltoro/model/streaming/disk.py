"""The disk's own speed: blocks of a file read as the expert store reads them, with nothing else to do."""

from __future__ import annotations

import time
from collections import deque
from random import Random

import torch

from baltoro.kernels.reader import Reader, Ticket
from baltoro.kernels.slab import Slab
from baltoro.weights.blocks import ExpertBlock

TOGETHER = 4  # blocks under way: more pieces than a drive takes at once, and little memory
BURST_S = 0.4


class Disk:
    """Short bursts, between the steps that are measured: a disk's speed changes from second to second."""

    def __init__(self, blocks: list[ExpertBlock]) -> None:
        self._blocks, self._random = blocks, Random(0)
        self._reader = Reader()
        self._files = {path: self._reader.open(path) for path in {block.shard for block in blocks}}
        self._room = Slab(TOGETHER * blocks[0].nbytes).cut((TOGETHER, blocks[0].nbytes), torch.uint8)

    def burst(self) -> tuple[int, float]:
        """Bytes and seconds of reading blocks in random order."""
        began, nbytes = time.perf_counter(), 0
        under_way: deque[tuple[int, Ticket]] = deque()
        free = list(range(TOGETHER))
        while under_way or not nbytes:
            while (free and time.perf_counter() - began < BURST_S) or not (under_way or nbytes):
                block, place = self._random.choice(self._blocks), free.pop()
                file = self._files[block.shard]
                under_way.append((place, self._reader.submit(file, block.offset, self._room[place])))
            place, ticket = under_way.popleft()
            ticket.wait()
            nbytes += self._room[place].nbytes
            free.append(place)
        return nbytes, time.perf_counter() - began

    def close(self) -> None:
        self._reader.close()
