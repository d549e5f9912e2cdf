"""Plain weights and few tokens: every target against float64 and the twin, with the same bits everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from baltoro.kernels import dense
from baltoro.kernels.targets import targets

NATIVE = targets()[1:]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=targets())
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"), [(0, 3, 4), (1, 1, 1), (1, 2048, 300), (3, 130, 17), (8, 65, 128), (9, 5, 31)]
)
def test_products_equal_float64(tokens: int, outputs: int, inputs: int, target: str) -> None:
    x, w = randn(tokens, inputs, seed=0), randn(outputs, inputs, seed=1)
    # As in test_ops.py: a float32 sum of n rounded products in any order.
    bound = (inputs + 1) * 2.0**-24 * (x.double().abs() @ w.double().abs().T) + 1e-30
    assert ((dense.linear(x, w, target=target).double() - x.double() @ w.double().T).abs() <= bound).all()


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (1030, 700), (130, 17)])
def test_a_row_has_the_same_bits_on_every_target_and_in_any_small_company(
    native: str, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = randn(dense.FEW, inputs, seed=2), randn(outputs, inputs, seed=3)
    expected = dense.linear(x, w, target="scalar")
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(dense.linear(x, w, target=native), expected)
    for t, row in enumerate(x):
        assert torch.equal(dense.linear(row[None], w, target=native)[0], expected[t])


def mixture(tokens: int, experts: int, chosen: int, hidden: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    numbers = torch.stack([torch.randperm(experts, generator=generator)[:chosen] for _ in range(tokens)])
    return (
        randn(tokens, hidden, seed=5), numbers, torch.rand(tokens, chosen, generator=generator),
        randn(experts, width, hidden, seed=6) * hidden**-0.5, randn(experts, width, hidden, seed=7) * hidden**-0.5,
        randn(experts, hidden, width, seed=8) * width**-0.5,
    )  # fmt: skip


SIZES = [(1, 1, 1, 1, 1), (1, 16, 2, 128, 64), (5, 7, 3, 33, 70), (8, 4, 4, 300, 400), (9, 3, 2, 8, 8)]


@pytest.mark.parametrize("sizes", SIZES)
def test_experts_equal_float64(sizes: tuple[int, int, int, int, int], target: str) -> None:
    x, chosen, weights, gate, up, down = mixture(*sizes)
    found = dense.experts(x, chosen, weights, gate, up, down, target=target)
    for t, row in enumerate(x.double()):
        truth = torch.zeros_like(row)
        for e, weight in zip(chosen[t], weights[t].double(), strict=True):
            h = silu(gate[e].double() @ row) * (up[e].double() @ row)
            truth += weight * (down[e].double() @ h)
        torch.testing.assert_close(found[t].double(), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("sizes", SIZES[:-1])
def test_experts_give_the_same_bits_on_every_target_and_in_any_small_company(
    native: str, sizes: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, chosen, weights, *stacks = mixture(*sizes)
    expected = dense.experts(x, chosen, weights, *stacks, target="scalar")
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(dense.experts(x, chosen, weights, *stacks, target=native), expected)
    for t in range(len(x)):
        alone = dense.experts(x[t : t + 1], chosen[t : t + 1], weights[t : t + 1], *stacks, target=native)
        assert torch.equal(alone[0], expected[t])


@pytest.mark.parametrize("tokens", [1, 4, 20])
def test_a_gated_layer_equals_its_three_products(tokens: int, target: str) -> None:
    x, _, _, gate, up, down = mixture(tokens, 1, 1, 40, 72)
    wide = x.double()
    truth = (silu(wide @ gate[0].double().T) * (wide @ up[0].double().T)) @ down[0].double().T
    found = dense.mlp(x, gate[0], up[0], down[0], target=target)
    torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not NATIVE, reason="nothing was built")
def test_what_does_not_fit_is_refused_by_name() -> None:
    x, chosen, weights, gate, up, down = mixture(2, 4, 2, 8, 6)
    with pytest.raises(ValueError, match=r"weight is torch.float32 \(3, 9\)"):
        dense.linear(x, torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"chosen holds 0 .. 4, expected 0 .. 3"):
        dense.experts(x, torch.tensor([[0, 4], [1, 2]]), weights, gate, up, down)
    with pytest.raises(ValueError, match="down is"):
        dense.experts(x, chosen, weights, gate, up, down.mT)
