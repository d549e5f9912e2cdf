"""Memory handed out piece by piece."""

from __future__ import annotations

import torch

from baltoro.kernels.room import Room


def test_a_room_hands_out_memory_again_only_when_it_is_cleared() -> None:
    room = Room()
    room.empty(100)
    room.clear()
    first = room.empty(10, 3)
    with room.piece():
        inner = room.empty(5, dtype=torch.bfloat16)
    last = room.empty(20)
    assert first.is_contiguous() and first.data_ptr() + 128 == inner.data_ptr() == last.data_ptr()
    beyond = room.empty(1000)
    assert beyond.shape == (1000,)
    room.clear()
    assert (
        room.generation == 2
        and room.empty(4000 // 4).untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
    )
