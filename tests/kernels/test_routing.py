"""The router's kernel against float64, its twin, and itself in other company."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baltoro.kernels.routing import Choice, route
from baltoro.kernels.targets import targets

NATIVE = targets()[1:]
K2 = Choice(chosen=8, groups=1, kept_groups=1, normalized=True, factor=2.827)
SHAPES = [
    (0, 16, 4, replace(K2, chosen=2)),
    (1, 1, 1, replace(K2, chosen=1)),
    (1, 384, 7168, K2),
    (3, 17, 130, replace(K2, chosen=17)),
    (40, 384, 515, K2),
    (5, 64, 33, replace(K2, chosen=6, normalized=False)),
    (9, 16, 100, replace(K2, chosen=4, groups=4, kept_groups=2)),
    (30, 256, 64, replace(K2, groups=8, kept_groups=4)),
]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(tokens: int, experts: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    weight = randn(experts, width, seed=seed) * 2 * width**-0.5
    return randn(tokens, width, seed=seed + 1), weight, randn(experts, seed=seed + 2) * 0.1


@pytest.fixture(params=targets())
def target(request: pytest.FixtureRequest) -> str:
    return request.param


def scores_of(x: Tensor, weight: Tensor) -> Tensor:
    return (x.double() @ weight.double().T).sigmoid()


@pytest.mark.parametrize(("tokens", "experts", "width", "choice"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_choice_and_its_weights_are_those_of_float64(
    tokens: int, experts: int, width: int, choice: Choice, dtype: torch.dtype, target: str
) -> None:
    x, weight, bias = case(tokens, experts, width)
    weight = weight.to(dtype)
    weights, chosen = route(x, weight, bias, choice, target=target)
    scores = scores_of(x, weight)
    biased = scores + bias.double()
    if choice.groups > 1:
        groups = biased.view(tokens, choice.groups, -1)
        strength = groups.sort(descending=True).values[..., :2].sum(-1)
        kept = strength.sort(descending=True).indices[:, : choice.kept_groups]
        outside = torch.ones_like(strength, dtype=torch.bool).scatter(1, kept, False)
        biased = groups.masked_fill(outside.unsqueeze(-1), -torch.inf).flatten(1)
    expected = biased.sort(descending=True).indices[:, : choice.chosen]
    # In doubt only where two scores are nearer than the rounding of float32 sums; at these seeds none is.
    assert torch.equal(chosen, expected)
    right = scores.gather(1, expected)
    right = (right / right.sum(1, keepdim=True) if choice.normalized else right) * choice.factor
    assert weights.dtype is torch.float32
    torch.testing.assert_close(weights.double(), right, rtol=2e-6, atol=0)


@pytest.mark.parametrize("native", NATIVE)
def test_of_equal_scores_the_lower_number_is_chosen(native: str) -> None:
    weight = torch.full((40, 24), 0.01)
    weight[[30, 7, 19]] = 0.02  # three equal ones above 37 equal ones
    _, chosen = route(torch.ones(2, 24), weight, torch.zeros(40), K2, target=native)
    assert chosen.tolist() == [[7, 19, 30, 0, 1, 2, 3, 4]] * 2
    grouped = replace(K2, chosen=3, groups=4, kept_groups=2)
    _, chosen = route(torch.ones(2, 24), torch.ones(40, 24), torch.zeros(40), grouped, target=native)
    assert chosen.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize(("tokens", "experts", "width", "choice"), SHAPES)
def test_a_token_gets_the_same_bits_on_every_target_in_any_company_on_any_number_of_threads(
    tokens: int, experts: int, width: int, choice: Choice, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = case(tokens, experts, width, seed=5)
    weights, chosen = route(x, weight, bias, choice, target="scalar")
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = route(x, weight, bias, choice, target=native)
        assert torch.equal(found[0], weights)
        assert torch.equal(found[1], chosen)
    for t in range(tokens):
        alone = route(x[t : t + 1], weight, bias, choice, target=native)
        assert torch.equal(alone[0][0], weights[t])
        assert torch.equal(alone[1][0], chosen[t])


def test_scores_that_underflow_leave_finite_weights(target: str) -> None:
    weights, _ = route(torch.ones(1, 8), torch.full((16, 8), -1e4), torch.zeros(16), K2, target=target)
    assert weights.isfinite().all()


def test_a_nan_reaches_the_weights_and_only_of_its_token(target: str) -> None:
    x, weight, bias = case(3, 32, 40)
    x[1, 7] = torch.nan
    weights, chosen = route(x, weight, bias, K2, target=target)
    assert weights[1].isnan().all()
    assert weights[[0, 2]].isfinite().all()
    assert ((chosen >= 0) & (chosen < 32)).all()


def test_a_gradient_is_kept(target: str) -> None:
    x, weight, bias = case(3, 32, 40)
    weights, _ = route(x.requires_grad_(), weight.requires_grad_(), bias, K2, target=target)
    weights.square().sum().backward()
    assert x.grad is not None
    assert weight.grad is not None


@pytest.mark.skipif(not NATIVE, reason="nothing was built")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": torch.zeros(16, 9)}, r"weight is torch.float32 \(16, 9\)"),
        ({"bias": torch.zeros(15)}, r"bias is torch.float32 \(15,\)"),
        ({"choice": replace(K2, chosen=17)}, "chosen=17.* of 16 experts"),
        ({"choice": replace(K2, groups=3)}, "groups=3"),
        ({"choice": replace(K2, groups=4, kept_groups=1)}, "kept_groups=1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    good: dict[str, Any] = {"x": torch.zeros(2, 8), "weight": torch.zeros(16, 8), "bias": torch.zeros(16), "choice": K2}
    route(**good)
    with pytest.raises(ValueError, match=named):
        route(**(good | change), target=NATIVE[-1])
