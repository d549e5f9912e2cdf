"""The router against the oracle, and both ways of running experts against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from baltoro.kernels.formats import FORMATS, Format, pack, pack_fp8, unpack
from baltoro.model.linear import swiglu
from baltoro.model.moe import MoE, Router, Routing
from baltoro.weights import fp8
from tests import oracle, tiny
from tests.model.random_models import ODD_SHAPES, SHAPES, random_model

ALL_SHAPES = {**SHAPES, **ODD_SHAPES}


def mixture_of(name: str) -> MoE:
    return next(module for module in random_model(ALL_SHAPES[name]).modules() if isinstance(module, MoE))


def hidden(tokens: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def as_file(mixture: MoE) -> dict[str, np.ndarray]:
    """float64 weights under the checkpoint's names."""
    own = {}
    for name, parameter in mixture.named_parameters():
        value = parameter.detach().double().numpy()
        if name.startswith("experts."):
            own |= {f"mlp.experts.{e}.{name.removeprefix('experts.')}": matrix for e, matrix in enumerate(value)}
        else:
            own[f"mlp.{name}"] = value
    return own


@pytest.mark.parametrize("name", ALL_SHAPES)
def test_choice_and_weights_equal_the_oracle(name: str) -> None:
    mixture = mixture_of(name)
    config = mixture.gate.config
    x = hidden(50, config.hidden_size)
    routing = mixture.gate(x)
    for token, row in enumerate(x):
        expected = oracle.route(config.to_dict(), as_file(mixture), row.double().numpy())
        found = dict(zip(routing.experts[token].tolist(), routing.weights[token].tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_bias_steers_the_choice_and_never_the_weights() -> None:
    gate = mixture_of("k2").gate
    x = hidden(20, gate.config.hidden_size)
    with torch.no_grad():
        gate.e_score_correction_bias.zero_()
        gate.e_score_correction_bias[[2, 5, 7]] = 10.0
        routing = gate(x)
    assert (routing.experts.sort(-1).values == torch.tensor([2, 5, 7])).all()
    scores = (x @ gate.weight.T).sigmoid().gather(-1, routing.experts)
    expected = scores / scores.sum(-1, keepdim=True) * gate.config.routed_scaling_factor
    torch.testing.assert_close(routing.weights, expected)


def test_experts_outside_the_best_groups_are_never_chosen_even_if_all_scores_are_negative() -> None:
    gate = mixture_of("deepseek").gate
    config = gate.config
    with torch.no_grad():
        gate.e_score_correction_bias.sub_(5.0)  # every choice is now below 0
        experts = gate(hidden(60, config.hidden_size)).experts
    groups = experts // (config.n_routed_experts // config.n_group)
    assert max(len(set(row)) for row in groups.tolist()) == config.topk_group


def test_weights_sum_to_the_scaling_factor_and_survive_scores_that_underflow() -> None:
    gate = mixture_of("k2").gate
    x = hidden(9, gate.config.hidden_size)
    torch.testing.assert_close(gate(x).weights.sum(-1), torch.full((9,), gate.config.routed_scaling_factor))
    with torch.no_grad():
        gate.weight.copy_(-1e4 * x[:1].sign().expand_as(gate.weight))
        assert gate(x[:1]).weights.isfinite().all()


def test_the_router_computes_in_float32_whatever_comes_in() -> None:
    gate = mixture_of("k2").gate
    x = hidden(30, gate.config.hidden_size).bfloat16()
    low, high = gate(x), gate(x.float())
    assert low.weights.dtype is torch.float32
    assert torch.equal(low.weights, high.weights)
    assert torch.equal(low.experts, high.experts)


def plain_loop(mixture: MoE, x: Tensor, routing: Routing) -> Tensor:
    """sum of weight x expert(token), one (token, choice) at a time."""
    experts, rows = mixture.experts, []
    for token in range(len(x)):
        row = torch.zeros_like(x[0])
        for choice in range(routing.experts.shape[1]):
            e = routing.experts[token, choice]
            gate, up = experts.gate_proj.weight[e] @ x[token], experts.up_proj.weight[e] @ x[token]
            row = row + routing.weights[token, choice] * (experts.down_proj.weight[e] @ swiglu(gate, up))
        rows.append(row)
    return torch.stack(rows)


def loads(config_experts: int, chosen: int) -> dict[str, Tensor]:
    """Who is chosen by 24 tokens: evenly, one expert by all, some experts by nobody."""
    even = torch.stack([torch.arange(t, t + chosen) % config_experts for t in range(24)])
    return {"even": even, "same for all": even[:1].expand(24, -1), "some unused": even % (chosen + 1)}


@pytest.mark.parametrize("load", ["even", "same for all", "some unused"])
@pytest.mark.parametrize("way", ["one by one", "grouped"])
def test_both_ways_of_running_experts_equal_a_plain_loop_and_so_do_their_gradients(way: str, load: str) -> None:
    mixture = mixture_of("k2").double()
    config = mixture.gate.config
    x = hidden(24, config.hidden_size).double().requires_grad_()
    weights = torch.rand(24, config.num_experts_per_tok, generator=torch.Generator().manual_seed(1)).double()
    routing = Routing(weights.requires_grad_(), loads(config.n_routed_experts, config.num_experts_per_tok)[load])
    leaves = [x, weights, *mixture.experts.parameters()]
    toward = hidden(24, config.hidden_size, seed=2).double()

    truth = plain_loop(mixture, x, routing)
    expected = torch.autograd.grad((truth * toward).sum(), leaves)
    if way == "grouped":
        found = mixture.experts._grouped(x, routing, config.n_routed_experts)
    else:
        found = mixture.experts._one_by_one(x, routing)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)
    for gradient, other in zip(torch.autograd.grad((found * toward).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 13, 14, 60, 300])
def test_a_layer_equals_the_oracle_for_few_tokens_and_for_many(tokens: int) -> None:
    mixture = mixture_of("k2")
    config = mixture.gate.config
    x = hidden(tokens, config.hidden_size)
    with torch.no_grad():
        out, routing = mixture(x)
    expected, counts = oracle.mixture(config.to_dict(), as_file(mixture), x.double().numpy())
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-5)
    assert torch.bincount(routing.experts.flatten(), minlength=config.n_routed_experts).tolist() == counts.tolist()


@pytest.mark.parametrize("name", ["no shared experts", "moonlight", "deepseek", "one expert per token"])
def test_layers_of_other_shapes_equal_the_oracle(name: str) -> None:
    mixture = mixture_of(name)
    x = hidden(80, mixture.gate.config.hidden_size)
    with torch.no_grad():
        out, _ = mixture(x)
    expected, _ = oracle.mixture(mixture.gate.config.to_dict(), as_file(mixture), x.double().numpy())
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("format", FORMATS)
def test_packed_experts_equal_their_unpacked_twins(format: Format, tokens: int) -> None:
    kept, plain = mixture_of("k2").experts, mixture_of("k2").experts
    for mine, other in zip(
        (kept.gate_proj, kept.up_proj, kept.down_proj), (plain.gate_proj, plain.up_proj, plain.down_proj), strict=True
    ):
        weights = mine.weight.detach()
        mine.pack(pack_fp8(*fp8.quantize(weights)) if format == "fp8" else pack(weights, format))
        assert mine.packed is not None
        other.weight = torch.nn.Parameter(unpack(mine.packed), requires_grad=False)
    x = hidden(tokens, tiny.config().hidden_size)
    routing = mixture_of("k2").gate(x)
    with torch.no_grad():
        found, expected = kept(x, routing), plain(x, routing)
    assert (found - expected).norm() <= (0.005 if format in ("bf16", "fp8") else 0.015) * expected.norm()


def test_the_routers_bias_is_no_business_of_the_optimizer() -> None:
    gate = Router(SHAPES["k2"])
    assert [name for name, p in gate.named_parameters() if p.requires_grad] == ["weight"]
    loss = gate(hidden(5, SHAPES["k2"].hidden_size)).weights.square().sum()
    loss.backward()
    assert gate.e_score_correction_bias.grad is None
