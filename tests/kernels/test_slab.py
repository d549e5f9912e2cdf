"""Memory in huge pages: what is cut from it, and what cannot be had."""

from __future__ import annotations

import gc

import pytest
import torch

from baltoro.errors import BaltoroError
from baltoro.kernels.slab import ALIGNMENT, HUGE_PAGE, Slab, aligned


def test_tensors_lie_one_behind_the_other_aligned_and_empty() -> None:
    slab = Slab(10_000)
    first, second = slab.cut((3, 5), torch.uint8), slab.cut((7,), torch.float32)
    assert first.data_ptr() % HUGE_PAGE == 0
    assert second.data_ptr() - first.data_ptr() == aligned(15) == ALIGNMENT
    assert (first.shape, second.shape) == ((3, 5), (7,))
    assert not first.any()
    assert not second.any()
    first.fill_(255)
    assert not second.any()


def test_the_memory_lives_as_long_as_a_tensor_of_it() -> None:
    kept = Slab(100).cut((4,), torch.float32)
    gc.collect()
    kept.fill_(2.0)
    assert kept.sum() == 8


def test_more_than_there_is_is_never_cut() -> None:
    slab = Slab(100)
    slab.cut((60,), torch.uint8)
    with pytest.raises(AssertionError, match="too small"):
        slab.cut((60,), torch.uint8)


def test_memory_that_cannot_be_had_is_an_error_that_says_how_much() -> None:
    with pytest.raises(BaltoroError, match=r"1000000000000000\.0 GB of memory for weights cannot be had"):
        Slab(10**24)
