"""Memory that is taken piece by piece and kept from step to step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor


class Room:
    """Memory of one forward and its backward: taken piece by piece, given back all at once, kept for the next.

    Fresh memory costs a page fault for every 4 KiB, a tenth of a step.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._taken = self._wanted = 0
        self.generation = 0

    def clear(self) -> None:
        """What was taken until now may be overwritten from here on."""
        if self._wanted > self._bytes.numel():
            self._bytes = torch.empty(self._wanted + self._wanted // 8, dtype=torch.uint8)
        self._taken = self._wanted = 0
        self.generation += 1

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        begin, size = self._taken, -(-math.prod(shape) * dtype.itemsize // 64) * 64
        self._taken += size
        self._wanted = max(self._wanted, self._taken)
        if self._taken > self._bytes.numel():
            return torch.empty(shape, dtype=dtype)
        none: Any = torch.empty(0, dtype=dtype)  # its stub does not know this form of set_
        return none.set_(self._bytes.untyped_storage(), begin // dtype.itemsize, shape)

    @contextlib.contextmanager
    def piece(self) -> Generator[None]:
        """What is taken inside is given back at the end."""
        taken = self._taken
        try:
            yield
        finally:
            self._taken = taken
