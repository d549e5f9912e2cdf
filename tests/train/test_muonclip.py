"""MuonClip against a naive form of its algorithm, written one parameter and one block at a time in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from baltoro.model.attention import Attention
from baltoro.model.batch import Batch
from baltoro.model.transformer import Observed, Transformer
from baltoro.train.muonclip import MuonClip, OptimizerConfig, newton_schulz, qk_clip, rebalance
from tests import tiny
from tests.model.random_models import SHAPES, random_ids, random_model

# Five steps in bfloat16 differ from float64 by 1 to 2 % of the update (measured); forgetting Nesterov's term,
# a block or the scale shows as 10 % and more.
BF16 = 0.03


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact_newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """The iteration moves singular values alone: each goes through the polynomial by itself."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / (matrix.double().norm() + 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ vt


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def peaks_of(model: Transformer, value: float = 0.0) -> list[Tensor]:
    return [torch.full((model.config.num_attention_heads,), value) for _ in range(model.config.num_hidden_layers)]


def set_gradients(model: Transformer, seed: int) -> None:
    for number, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.grad = randn(*parameter.shape, seed=1000 * seed + number)


# --- Newton-Schulz ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (40, 40), (1, 17), (64, 65)])
def test_newton_schulz_equals_the_polynomial_on_singular_values(shape: tuple[int, int]) -> None:
    matrix = randn(*shape)
    assert relative_error(newton_schulz(matrix.unsqueeze(0), 5)[0], exact_newton_schulz(matrix)) < BF16


@pytest.mark.parametrize("shape", [(24, 96), (96, 24)])
def test_singular_values_land_around_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(newton_schulz(randn(3, *shape), 5).float())
    assert 0.6 < values.min() <= values.max() < 1.3


@pytest.mark.parametrize("shape", [(24, 96), (96, 24)])
def test_stacked_matrices_are_orthogonalised_each_for_itself(shape: tuple[int, int]) -> None:
    matrices = randn(5, *shape) * torch.tensor([1e-6, 1.0, 1e3, 7.0, 0.0]).view(5, 1, 1)
    together = newton_schulz(matrices, 5)
    for matrix, result in zip(matrices[:4], together, strict=False):
        assert relative_error(result, newton_schulz(matrix.unsqueeze(0), 5)[0]) < 0.01
    assert not together[4].any(), "a zero gradient moves nothing"


# --- the update ---------------------------------------------------------------------------------------------------


def naive_blocks(name: str, matrix: Tensor, model: Transformer, per_head: bool) -> list[Tensor]:
    """The pieces of one matrix that are orthogonalised apart, in the order of their rows."""
    config = model.config
    nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    heads = range(config.num_attention_heads)
    if per_head and ("q_b_proj" in name or "q_proj" in name):
        starts = [(head * (nope + rope), nope, rope) for head in heads]
    elif per_head and "kv_b_proj" in name:
        starts = [(head * (nope + value), nope, value) for head in heads]
    elif per_head and "kv_a_proj_with_mqa" in name:
        starts = [(0, config.kv_lora_rank, rope)]
    else:
        return [matrix]
    return [
        block
        for start, upper, lower in starts
        for block in (matrix[start : start + upper], matrix[start + upper : start + upper + lower])
    ]


def naive_muon(
    name: str, weight: Tensor, gradients: list[Tensor], model: Transformer, config: OptimizerConfig, lr: float
) -> Tensor:
    """Several steps of one (O, I) matrix."""
    weight, momentum = weight.double(), torch.zeros_like(weight).double()
    for gradient in gradients:
        momentum = config.momentum * momentum + gradient.double()
        nesterov = gradient.double() + config.momentum * momentum
        updates = []
        for block in naive_blocks(name, nesterov, model, config.per_head):
            updates.append(exact_newton_schulz(block) * 0.2 * math.sqrt(max(block.shape)))
        weight = weight - lr * (torch.cat(updates) + config.weight_decay * weight)
    return weight


@pytest.mark.parametrize("q_lora_rank", [20, None])
@pytest.mark.parametrize("per_head", [True, False])
def test_three_steps_of_every_matrix_equal_the_naive_form(q_lora_rank: int | None, per_head: bool) -> None:
    model = random_model(
        tiny.config(hidden_size=48, intermediate_size=64, moe_intermediate_size=40, q_lora_rank=q_lora_rank)
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = OptimizerConfig(lr=0.02, weight_decay=0.3, per_head=per_head)
    optimizer = MuonClip(model, config)
    gradients: dict[str, list[Tensor]] = {name: [] for name in before}
    for step in range(3):
        set_gradients(model, step)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name].append(parameter.grad.clone())
        optimizer.step(0.5, peaks_of(model))

    matrices = {matrix.name for matrix in optimizer.matrices}
    expected_names = {
        name
        for name, p in model.named_parameters()
        if p.dim() > 1 and "embed_tokens" not in name and "lm_head" not in name
    }
    assert matrices == expected_names
    for name, parameter in model.named_parameters():
        if name not in matrices:
            continue
        stack = parameter.detach().dim() == 3  # experts: each its own matrix
        for index in range(len(parameter)) if stack else [slice(None)]:
            given = [gradient[index] for gradient in gradients[name]]
            truth = naive_muon(name, before[name][index], given, model, config, lr=0.01)
            moved, wanted = parameter.detach()[index] - before[name][index], truth - before[name][index]
            assert relative_error(moved, wanted) < BF16, name


def test_decay_is_the_learning_rate_times_the_weight_and_nothing_else() -> None:
    model = random_model(SHAPES["k2"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = MuonClip(model, OptimizerConfig(lr=0.02, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5, peaks_of(model))
    for name, parameter in model.named_parameters():
        wanted = before[name] if name.endswith("e_score_correction_bias") else before[name] * (1 - 0.01 * 0.1)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=0, msg=name)


def naive_adamw(weight: Tensor, gradients: list[Tensor], config: OptimizerConfig, lr: float) -> Tensor:
    weight, mean, square = weight.double(), 0.0, 0.0
    (beta1, beta2), eps = config.adamw_betas, config.adamw_eps
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient.double()
        mean, square = beta1 * mean + (1 - beta1) * gradient, beta2 * square + (1 - beta2) * gradient**2
        update = mean / (1 - beta1**step) / ((square / (1 - beta2**step)) ** 0.5 + eps)
        weight = weight - lr * (update + config.weight_decay * weight)
    return weight


@pytest.mark.parametrize("adamw_lr", [None, 0.005])
def test_embeddings_head_and_norms_go_through_adamw_and_so_does_what_the_recipe_names(adamw_lr: float | None) -> None:
    model = random_model(SHAPES["k2"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = OptimizerConfig(lr=0.02, adamw_lr=adamw_lr, adamw_matrices=(r"mlp\.gate\.weight", "layers.0.*o_proj"))
    optimizer = MuonClip(model, config)
    gradients: dict[str, list[Tensor]] = {name: [] for name in before}
    for step in range(3):
        set_gradients(model, step)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name].append(parameter.grad.clone())
        optimizer.step(0.5, peaks_of(model))
    rest = set(before) - {matrix.name for matrix in optimizer.matrices}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= rest
    assert {"model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.o_proj.weight"} <= rest
    assert "model.layers.1.self_attn.o_proj.weight" not in rest
    for name, parameter in model.named_parameters():
        if name in rest and not name.endswith("e_score_correction_bias"):
            truth = naive_adamw(before[name], gradients[name], config, lr=0.5 * (adamw_lr or 0.02))
            torch.testing.assert_close(parameter.detach().double(), truth, rtol=1e-5, atol=1e-6, msg=name)


def test_a_step_with_real_gradients_lowers_the_loss() -> None:
    model = random_model(tiny.config(num_hidden_layers=2)).train()
    ids = random_ids(model.config, 120)
    optimizer = MuonClip(model, OptimizerConfig(lr=0.01))

    def loss_of(observed: Observed) -> Tensor:
        return torch.nn.functional.cross_entropy(model(Batch.of([ids]), observed=observed)[:-1], torch.tensor(ids[1:]))

    losses = []
    for _ in range(6):
        observed = Observed()
        loss = loss_of(observed)
        losses.append(loss.item())
        loss.backward()
        optimizer.step(1.0, observed.max_logits)
        optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert losses[-1] < 0.7 * losses[0]


def test_a_resumed_optimizer_continues_bit_for_bit() -> None:
    config = OptimizerConfig(lr=0.02, qk_clip_tau=5.0)
    straight = random_model(SHAPES["k2"])
    optimizer = MuonClip(straight, config)

    def steps(model: Transformer, optimizer: MuonClip, numbers: range) -> None:
        for number in numbers:
            set_gradients(model, number)
            optimizer.step(1 / (1 + number), peaks_of(model, 4.0 + number))

    steps(straight, optimizer, range(2))
    resumed = copy.deepcopy(straight)
    second = MuonClip(resumed, config)
    for piece, saved in zip(second.pieces(), optimizer.pieces(), strict=True):
        assert (piece.kind, piece.name) == (saved.kind, saved.name)
        piece.tensor.copy_(saved.tensor)
    second.taken(2)
    steps(straight, optimizer, range(2, 4))
    steps(resumed, second, range(2, 4))
    for (name, parameter), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(parameter, other), name


# --- QK-clip ------------------------------------------------------------------------------------------------------


def observe(model: Transformer, sequences: list[list[int]]) -> list[Tensor]:
    observed = Observed()
    with torch.no_grad():
        model(Batch.of(sequences), observed=observed)
    return observed.max_logits


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("shape", ["k2", "moonlight", "deepseek"])
def test_clipped_heads_show_exactly_tau_on_the_same_batch_and_the_others_are_untouched(shape: str, layer: int) -> None:
    model = random_model(SHAPES[shape])
    sequences = [random_ids(model.config, tokens, seed=tokens) for tokens in (20, 7)]
    before = copy.deepcopy(model)
    peaks = observe(model, sequences)[layer]
    tau = float(peaks.sort().values[:2].mean())  # one head stays below, the others are above
    attention = [module for module in model.modules() if isinstance(module, Attention)][layer]
    assert qk_clip(attention, peaks, tau) == len(peaks) - 1

    over = peaks > tau
    clipped = observe(model, sequences)[layer]  # the layer's input is the same: only this layer was clipped
    torch.testing.assert_close(clipped[over], torch.full((int(over.sum()),), tau), rtol=1e-4, atol=0)
    assert torch.equal(clipped[~over], peaks[~over])

    config = model.config
    changed = {}
    for (name, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        if not torch.equal(parameter, old):
            changed[name] = (parameter, old)
    queries = "q_proj" if config.q_lora_rank is None else "q_b_proj"
    prefix = f"model.layers.{layer}.self_attn."
    assert set(changed) == {f"{prefix}{queries}.weight", f"{prefix}kv_b_proj.weight"}
    nope = config.qk_nope_head_dim
    for head, gamma in enumerate((tau / peaks).tolist()):
        new_q, old_q = (t.view(len(peaks), config.qk_head_dim, -1)[head] for t in changed[f"{prefix}{queries}.weight"])
        new_kv, old_kv = (
            t.view(len(peaks), nope + config.v_head_dim, -1)[head] for t in changed[f"{prefix}kv_b_proj.weight"]
        )
        assert torch.equal(new_kv[nope:], old_kv[nope:]), "values are no part of a score"
        if gamma >= 1:
            assert torch.equal(new_q, old_q)
            assert torch.equal(new_kv, old_kv)
        else:
            torch.testing.assert_close(new_q[:nope], old_q[:nope] * math.sqrt(gamma))
            torch.testing.assert_close(new_q[nope:], old_q[nope:] * gamma)
            torch.testing.assert_close(new_kv[:nope], old_kv[:nope] * math.sqrt(gamma))


def test_nothing_is_clipped_at_tau_or_below() -> None:
    model = random_model(SHAPES["k2"])
    before = copy.deepcopy(model)
    attention = next(module for module in model.modules() if isinstance(module, Attention))
    assert qk_clip(attention, torch.tensor([100.0, -500.0, 3.0]), 100.0) == 0
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("peak", [0.0, -1e30, math.nan, -math.inf, math.inf])
def test_a_peak_that_is_no_positive_number_clips_nothing_and_is_never_divided_by(peak: float) -> None:
    model = random_model(SHAPES["k2"])
    before = copy.deepcopy(model)
    attention = next(module for module in model.modules() if isinstance(module, Attention))
    assert qk_clip(attention, torch.tensor([peak, 200.0, peak]), 100.0) == 1
    for (name, parameter), old in zip(attention.named_parameters(), before.parameters(), strict=False):
        assert parameter.isfinite().all(), name
        assert old.isfinite().all()
    q, old = (m.model.layers[0].self_attn.q_b_proj.weight.view(3, -1) for m in (model, before))
    assert torch.equal(q[[0, 2]], old[[0, 2]]) and not torch.equal(q[1], old[1])


def test_a_step_clips_every_layer_by_its_own_peaks_and_counts_the_heads() -> None:
    model = random_model(SHAPES["k2"])
    optimizer = MuonClip(model, OptimizerConfig(lr=0.0, qk_clip_tau=10.0))
    set_gradients(model, 0)
    weights = [model.get_parameter(f"model.layers.{layer}.self_attn.q_b_proj.weight") for layer in range(3)]
    before = [weight.detach().clone() for weight in weights]
    peaks = [torch.tensor([1.0, 40.0, 2.0]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([90.0, 3.0, 12.0])]
    assert optimizer.step(1.0, peaks) == 3
    for weight, old, peak in zip(weights, before, peaks, strict=True):
        rope = (slice(None), slice(model.config.qk_nope_head_dim, None))
        new, was = (w.view(3, model.config.qk_head_dim, -1)[rope] for w in (weight.detach(), old))
        torch.testing.assert_close(new, was * (10.0 / peak).clamp(max=1.0).view(3, 1, 1))


# --- load balance -------------------------------------------------------------------------------------------------


def test_the_routers_bias_moves_towards_even_load() -> None:
    """Moonlight, section 2.3, by hand: mean load 25; three experts below it, one above."""
    bias = torch.tensor([0.5, 0.0, -0.5, 0.1])
    rebalance([bias], [torch.tensor([10, 70, 0, 20])], rate=0.01)
    # signs of the error: 1, -1, 1, 1; their mean: 0.5
    np.testing.assert_allclose(bias.numpy(), [0.505, -0.015, -0.495, 0.105], atol=1e-7)


def test_an_even_load_leaves_the_bias_and_every_layer_has_its_own() -> None:
    biases = [torch.zeros(4), torch.zeros(4)]
    rebalance(biases, [torch.tensor([5, 5, 5, 5]), torch.tensor([0, 0, 10, 10])], rate=0.001)
    assert biases[0].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(biases[1].numpy(), [0.001, 0.001, -0.001, -0.001], atol=1e-9)
