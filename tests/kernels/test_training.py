"""Training's kernels against float64, from the same bfloat16 numbers; gradients against autograd in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, silu

from baltoro.kernels import training
from baltoro.kernels.room import Room
from baltoro.kernels.routing import Choice

pytestmark = pytest.mark.skipif(not training.runs(), reason="this CPU's target has no kernels for training")

BF16 = 2.0**-8  # half the distance of neighbours, relative
WIDTHS = st.integers(1, 9).map(lambda n: 16 * n)


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def halves(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed).bfloat16()


def size(x: Tensor) -> float:
    return float(x.double().square().sum().sqrt())


def error(found: Tensor, truth: Tensor) -> float:
    return size(found.double() - truth) / max(size(truth), 1e-30)


@settings(max_examples=25)
@given(rows=st.integers(1, 130), inputs=WIDTHS, outputs=WIDTHS)
def test_a_product_and_its_gradients_are_those_of_rounded_numbers(rows: int, inputs: int, outputs: int) -> None:
    x, w, dy = halves(rows, inputs), halves(outputs, inputs, seed=1), halves(rows, outputs, seed=2)
    room, onto = Room(), randn(rows, outputs, seed=3)
    y = x.double() @ w.double().T
    found = training.product(x, training.forward_panels(w.float()), room, wide=True)
    assert error(found, y) < 2e-6  # float32 sums of at most 144 products, which are exact
    assert torch.equal(training.product(x, training.forward_panels(w.float()), room), found.bfloat16())
    added = training.product(x, training.forward_panels(w.float()), room, onto=onto)
    assert error(added, y + onto.double()) < 2e-6
    back = training.product(dy, training.gradient_panels(w.float()), room, wide=True)
    assert error(back, dy.double() @ w.double()) < 2e-6
    gradient = onto.new_ones(outputs, inputs)
    training.add_outer(dy, x, gradient)
    assert error(gradient, 1 + dy.double().T @ x.double()) < 2e-6


def test_rows_have_the_same_bits_in_any_company() -> None:
    x, w = halves(101, 48), training.forward_panels(randn(80, 48, seed=1))
    whole = training.product(x, w, Room(), wide=True)
    for first, last in ((0, 1), (7, 8), (40, 101)):
        part = training.product(x[first:last].contiguous(), w, Room(), wide=True)
        assert torch.equal(part, whole[first:last])


@settings(max_examples=25)
@given(rows=st.integers(1, 300), width=WIDTHS, apart=st.integers(0, 2))
def test_a_norm_and_its_gradient(rows: int, width: int, apart: int) -> None:
    x, weight = randn(rows, width + 16 * apart)[:, :width], randn(width, seed=1)
    dy, onto = randn(rows, width, seed=2), randn(rows, width, seed=3)
    wide, gain = x.double().requires_grad_(), weight.double().requires_grad_()
    y = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain
    y.backward(dy.double())
    assert wide.grad is not None and gain.grad is not None
    normed = training.norm(x, weight, 1e-6, Room(), wide=True)
    assert normed.wide is not None and error(normed.wide, y.detach()) < 1e-6
    assert torch.equal(normed.y, normed.wide.bfloat16())
    dweight, dx = torch.ones(width), torch.empty(rows, width)
    normed.gradient(dy, dweight, to=dx, onto=onto)
    assert error(dweight, 1 + gain.grad) < 1e-5 and error(dx, wide.grad + onto.double()) < 1e-6
    narrow = torch.empty(rows, width + 32, dtype=torch.bfloat16)
    normed.gradient(dy, dweight, to=narrow[:, :width])
    assert error(narrow[:, :width], wide.grad) < BF16


@pytest.mark.parametrize("rotary", [16, 48])
def test_turning_there_and_back(rotary: int) -> None:
    x, angles = halves(7, 3, 16 + rotary), randn(7, rotary // 2, seed=1)
    cos, sin = angles.cos(), angles.sin()
    turned = x.clone()
    training.turn(turned, cos, sin)
    even, odd = x[..., 16::2].double(), x[..., 17::2].double()
    c, s = cos.double()[:, None], sin.double()[:, None]
    truth = torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)
    assert torch.equal(turned[..., :16], x[..., :16]) and error(turned[..., 16:], truth) < BF16
    training.turn(turned, cos, sin, back=True)
    assert error(turned, x.double()) < 2 * BF16


def attention(q: Tensor, kv: Tensor, k_pe: Tensor, edges: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """Document by document, head by head, with every score at hand: context (T, H, V) and peaks (B, H)."""
    N = q.shape[2] - k_pe.shape[1]
    contexts, peaks = list[Tensor](), list[Tensor]()
    for begin, end in zip(edges, edges[1:], strict=False):
        keys = torch.cat((kv[begin:end, :, :N], k_pe[begin:end, None].expand(-1, q.shape[1], -1)), -1)
        scores = torch.einsum("qhn,khn->hqk", q[begin:end], keys) * scale
        scores = scores.masked_fill(torch.ones(end - begin, end - begin).triu(1).bool(), -torch.inf)
        peaks.append(scores.detach().amax((1, 2)))
        contexts.append(torch.einsum("hqk,khv->qhv", scores.softmax(-1), kv[begin:end, :, N:]))
    return torch.cat(contexts), torch.stack(peaks)


@settings(max_examples=25)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 20), st.integers(45, 150)), min_size=1, max_size=4),
    heads=st.integers(1, 3), sizes=st.tuples(*[st.integers(1, 3).map(lambda n: 16 * n)] * 3),
)  # fmt: skip
def test_attention_inside_ragged_documents(lengths: list[int], heads: int, sizes: tuple[int, int, int]) -> None:
    (N, R, V), T, scale = sizes, sum(lengths), 0.2
    edges = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    q, kv, k_pe = halves(T, heads, N + R), halves(T, heads, N + V, seed=1), halves(T, R, seed=2)
    dcontext = halves(T, heads, V, seed=3)
    given = [t.double().requires_grad_() for t in (q, kv, k_pe)]
    context, peaks = attention(given[0], given[1], given[2], edges, scale)
    context.backward(dcontext.double())
    truths = [t.grad for t in given]
    room = Room()
    done = training.attend(q, kv, k_pe, torch.tensor(edges), room, scale=scale)
    assert error(done.context, context.detach()) < 2 * BF16 and error(done.peaks, peaks) < 1e-6
    dq, dkv, dk_pe = done.gradient(dcontext, room)
    for found, truth in zip((dq, dkv, dk_pe.sum(1)), truths, strict=True):
        assert truth is not None
        # Score gradients are differences that cancel: of a lone token they are 0, and here rounding's
        assert size(found.double() - truth) < 3 * BF16 * (size(truth) + size(dcontext) * scale)


def test_a_document_attends_to_the_same_bits_in_any_company() -> None:
    q, kv, k_pe = halves(190, 2, 48), halves(190, 2, 48, seed=1), halves(190, 16, seed=2)
    dcontext = halves(190, 2, 16, seed=3)
    all_edges, room = torch.tensor([0, 60, 61, 190]), Room()
    together = training.attend(q, kv, k_pe, all_edges, room, scale=0.2)
    every = (together.context, together.log_sums, *together.gradient(dcontext, room))
    own = slice(61, 190)
    alone = training.attend(q[own], kv[own], k_pe[own], torch.tensor([0, 129]), room, scale=0.2)
    for found, whole in zip(
        (alone.context, alone.log_sums, *alone.gradient(dcontext[own].contiguous(), room)), every, strict=True
    ):
        assert torch.equal(found, whole[own])


@settings(max_examples=25)
@given(
    tokens=st.integers(16, 150), chosen=st.integers(1, 3), hidden=st.integers(1, 5).map(lambda n: 16 * n),
    inner=st.integers(1, 5).map(lambda n: 16 * n), unused=st.booleans(),
)  # fmt: skip
def test_a_mixture_and_its_gradients(tokens: int, chosen: int, hidden: int, inner: int, unused: bool) -> None:
    E = 5  # with `unused`, two of them have no token
    x, dy, onto = halves(tokens, hidden), halves(tokens, hidden, seed=1), randn(tokens, hidden, seed=2)
    stacks = [
        halves(E, *s, seed=i).float() / 4 for i, s in ((3, (inner, hidden)), (4, (inner, hidden)), (5, (hidden, inner)))
    ]
    scores = randn(tokens, E, seed=6)
    if unused:
        scores[:, 1::3] = -torch.inf
    experts, weights = scores.topk(chosen).indices, randn(tokens, chosen, seed=7).sigmoid()

    wide, own = x.double().requires_grad_(), weights.double().requires_grad_()
    gate, up, down = doubled = [stack.double().requires_grad_() for stack in stacks]
    h = silu(torch.einsum("td,tkfd->tkf", wide, gate[experts])) * torch.einsum("td,tkfd->tkf", wide, up[experts])
    y = (torch.einsum("tkf,tkdf->tkd", h, down[experts]) * own[..., None]).sum(1)
    y.backward(dy.double())

    room, panels = Room(), training.expert_panels(*stacks)
    mixed = training.experts(x, weights, training.grouped(experts, E), panels, room, onto=onto)
    assert error(mixed.y - onto, y.detach()) < 3 * BF16
    gradients = (torch.ones_like(stacks[0]), torch.ones_like(stacks[1]), torch.ones_like(stacks[2]))
    dx, dweights = mixed.gradient(dy, gradients, room)
    assert wide.grad is not None and own.grad is not None
    assert error(dx, wide.grad) < 3 * BF16 and error(dweights, own.grad) < 8 * BF16  # a difference that cancels
    for found, truth in zip(gradients, doubled, strict=True):
        assert truth.grad is not None and error(found - 1, truth.grad) < 4 * BF16
        untouched = truth.grad.flatten(1).abs().sum(1) == 0
        assert (found[untouched] == 1).all()
    again, _ = mixed.gradient(dy, gradients, room, onto=onto.clone())
    assert error(again - dx, onto.double()) < 1e-5


@settings(max_examples=25)
@given(
    rows=st.integers(1, 300),
    hidden=st.integers(1, 4).map(lambda n: 16 * n),
    vocabulary=st.sampled_from([16, 80, 560, 1040]),
)
def test_losses_and_gradients_of_a_few_rows_at_a_time(rows: int, hidden: int, vocabulary: int) -> None:
    x, head = halves(rows, hidden), halves(vocabulary, hidden, seed=1).float()
    targets = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(2))
    wide, weight = x.double().requires_grad_(), head.double().requires_grad_()
    nats = cross_entropy(wide @ weight.T, targets, reduction="none")
    nats.sum().backward()
    assert wide.grad is not None and weight.grad is not None
    dhead = torch.zeros_like(head)
    panels = training.forward_panels(head), training.gradient_panels(head)
    found, dx = training.losses(x, targets, *panels, dhead, Room())
    assert error(found, nats.detach()) < 1e-5
    assert error(dx, wide.grad) < 2 * BF16 and error(dhead, weight.grad) < 2 * BF16


def test_a_target_beyond_the_vocabulary_is_refused() -> None:
    head = randn(32, 16)
    panels = training.forward_panels(head), training.gradient_panels(head)
    with pytest.raises(ValueError, match=r"targets are 3 \.\. 32, expected 0 \.\. 31"):
        training.losses(halves(2, 16), torch.tensor([3, 32]), *panels, torch.zeros_like(head), Room())


def test_numbers_that_are_none_reach_the_loss() -> None:
    x, head = halves(3, 16), randn(32, 16)
    x[1, 3] = torch.nan
    panels = training.forward_panels(head), training.gradient_panels(head)
    found, _ = training.losses(x, torch.tensor([1, 2, 3]), *panels, torch.zeros_like(head), Room())
    assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("normalized", [True, False])
def test_a_routers_gradient(normalized: bool) -> None:
    choice = Choice(chosen=3, groups=1, kept_groups=1, normalized=normalized, factor=2.5)
    x, weight, dweights = randn(300, 48), randn(7, 48, seed=1) / 4, randn(300, 3, seed=2)
    wide, own = x.double().requires_grad_(), weight.double().requires_grad_()
    scores = (wide @ own.T).sigmoid()
    experts = scores.detach().topk(3).indices
    weights = scores.gather(1, experts)
    if normalized:
        weights = weights / weights.sum(1, keepdim=True)
    (weights * 2.5).backward(dweights.double())
    assert wide.grad is not None and own.grad is not None
    dx, dweight = torch.ones(300, 48), torch.ones(7, 48)
    training.add_route_gradient(x, weight, choice, experts, dweights, dx=dx, dweight=dweight)
    assert error(dx, 1 + wide.grad) < 1e-6 and error(dweight, 1 + own.grad) < 1e-5


def test_a_sum_over_heads() -> None:
    x, to = randn(131, 3, 32), torch.zeros(131, 48, dtype=torch.bfloat16)
    training.sum_heads(x, to[:, 16:])
    assert error(to[:, 16:], x.double().sum(1)) < BF16 and not to[:, :16].any()
