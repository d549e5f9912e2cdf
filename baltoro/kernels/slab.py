"""One piece of memory in huge pages, from which packed weights are cut.

Reading weights is what decode costs, and where every 4 KiB need their own address translation a CPU reads little more
than half as fast. A slab is anonymous memory for which the kernel was asked to use 2 MiB pages (transparent huge
pages, Linux); elsewhere, or where the administrator has switched them off, it is ordinary memory.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys

import torch
from torch import Tensor

from baltoro.errors import BaltoroError

HUGE_PAGE = 2**21
ALIGNMENT = 64  # of every tensor: a cache line, a register


class Slab:
    """Tensors cut one behind the other; the memory lives as long as one of them. It is given out by the kernel as
    zeros when it is first written to."""

    def __init__(self, nbytes: int) -> None:
        self._used = 0
        try:
            memory = _private(nbytes + HUGE_PAGE)
        except (OSError, ValueError, OverflowError) as error:
            raise BaltoroError(
                f"{nbytes / 1e9:.1f} GB of memory for weights cannot be had: {error}", hint="take a smaller --format"
            ) from error
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a kernel that was built without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = -whole.data_ptr() % HUGE_PAGE
        self._memory = whole[start : start + nbytes]

    def cut(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros until it is written to."""
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        end = start + math.prod(shape) * dtype.itemsize
        assert end <= len(self._memory), f"a slab of {len(self._memory)} bytes is too small for {end}"
        self._used = end
        return self._memory[start:end].view(dtype).view(shape)


def _private(nbytes: int) -> mmap.mmap:
    """Shared memory, Python's default, has a switch of its own for huge pages, which is mostly off."""
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def aligned(nbytes: int) -> int:
    """What a tensor of `nbytes` takes of a slab, at most."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
