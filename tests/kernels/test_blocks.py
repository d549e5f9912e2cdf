"""Experts in blocks give the bits of stacked ones, wherever they lie and in however many calls they come."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baltoro.kernels import blocks, formats, ops
from baltoro.kernels.formats import FORMATS, Format, Packed, pack
from baltoro.kernels.slab import Slab
from baltoro.kernels.targets import targets

D, F, E = 128, 64, 7
TARGETS = targets()


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shape_of(format: Format, *, padding: int = 192) -> blocks.Shape:
    parts: list[tuple[int, int]] = []
    at = 0
    for outputs, inputs in ((F, D), (F, D), (D, F)):
        one = pack(randn(outputs, inputs, seed=0), format)
        for size in (one.data.nbytes, one.scales.nbytes):
            parts.append((at, size))
            at += size
    return blocks.Shape(format=format, hidden=D, width=F, nbytes=at + padding, parts=tuple(parts))


def filled(shape: blocks.Shape, places: list[int], count: int) -> tuple[Tensor, list[Packed]]:
    """Blocks of all experts that have a place, noise elsewhere, and the stacks of all experts."""
    room = torch.randint(0, 255, (count, shape.nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    stacks = [
        formats.empty(shape.format, outputs, inputs, slab=Slab(2**20), experts=E) for outputs, inputs in shape.matrices
    ]
    for expert, place in enumerate(places):
        for index, (stack, (outputs, inputs)) in enumerate(zip(stacks, shape.matrices, strict=True)):
            one = pack(randn(outputs, inputs, seed=10 * expert + index), shape.format)
            stack.put(one, expert)
            if place >= 0:
                shape.views(room[place])[index].put(one)
    return room, stacks


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [0, 1, 3, 40])
def test_blocks_in_several_calls_are_stacks_in_one(format: Format, tokens: int, target: str) -> None:
    places = [5, 0, 8, 3, 1, 7, 2]
    shape = shape_of(format)
    room, stacks = filled(shape, places, 9)
    x, weights = randn(tokens, D, seed=1), randn(tokens, 3, seed=2)
    chosen = torch.stack([torch.randperm(E, generator=torch.Generator().manual_seed(t))[:3] for t in range(tokens)] or
                         [torch.zeros(3, dtype=torch.int64)])[:tokens]  # fmt: skip
    expected = ops.experts(x, chosen, weights, *stacks, target=target)
    for cuts in ((0, E), (0, 2, 3, 6, E)):
        found = torch.zeros(tokens, D)
        for begin, end in zip(cuts, cuts[1:], strict=False):
            some = torch.tensor([place if begin <= expert < end else -1 for expert, place in enumerate(places)])
            blocks.experts(x, chosen, weights, shape, room, some, found, target=target)
        assert torch.equal(found, expected)


def test_experts_without_a_place_add_nothing() -> None:
    shape = shape_of("int8")
    room, _ = filled(shape, [0, 1, -1, -1, -1, -1, -1], 2)
    onto = randn(2, D, seed=4)
    before = onto.clone()
    nowhere = torch.full((E,), -1)
    chosen = torch.tensor([[0, 1], [2, 3]])
    blocks.experts(randn(2, D, seed=1), chosen, torch.ones(2, 2), shape, room, nowhere, onto)
    assert torch.equal(onto, before)
    blocks.experts(randn(2, D, seed=1), chosen, torch.ones(2, 2), shape, room, torch.tensor([0, 1] + 5 * [-1]), onto)
    assert torch.equal(onto[1], before[1]) and not torch.equal(onto[0], before[0])


def test_what_does_not_fit_is_refused_by_name() -> None:
    shape = shape_of("int8")
    room, places, x, onto = (
        torch.zeros(2, shape.nbytes, dtype=torch.uint8),
        torch.zeros(E).long(),
        torch.zeros(1, D),
        torch.zeros(1, D),
    )
    chosen, weights = torch.tensor([[0]]), torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"places are -2 .. 0, expected -1 .. 1"):
        blocks.experts(x, chosen, weights, shape, room, places - torch.eye(E)[0].long() * 2, onto)
    with pytest.raises(ValueError, match=r"places are 0 .. 2"):
        blocks.experts(x, chosen, weights, shape, room, places + torch.eye(E)[3].long() * 2, onto)
    with pytest.raises(ValueError, match=r"chosen holds 7 .. 7, expected 0 .. 6"):
        blocks.experts(x, chosen + 7, weights, shape, room, places, onto)
    with pytest.raises(ValueError, match=r"blocks is torch.uint8"):
        blocks.experts(x, chosen, weights, shape, room[:, 1:], places, onto)
    with pytest.raises(ValueError, match="parts are"):
        blocks.Shape(format="int8", hidden=D, width=F, nbytes=shape.nbytes - 1024, parts=shape.parts)
