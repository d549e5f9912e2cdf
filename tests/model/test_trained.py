"""A native training step against the model's modules under torch's autograd, in float32 and in bfloat16."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.kernels import training
from baltoro.model import trained
from baltoro.model.batch import Batch
from baltoro.model.transformer import Observed, Transformer
from tests import tiny
from tests.model.random_models import random_ids, random_model

pytestmark = pytest.mark.skipif(not training.runs(), reason="this CPU's target has no kernels for training")

LENGTHS = (1, 60, 17, 48, 97, 2)


def config(**changes: object) -> ModelConfig:
    """Widths that are multiples of 16, none of them of 64."""
    fields = {
        "vocab_size": 336, "hidden_size": 144, "intermediate_size": 208, "moe_intermediate_size": 80,
        "num_hidden_layers": 3, "q_lora_rank": 48, "kv_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 32,
        "v_head_dim": 16, "n_routed_experts": 8,
    }  # fmt: skip
    return tiny.config(**(fields | changes))


SHAPES = {
    "k2": config(),
    "moonlight": config(q_lora_rank=None, n_shared_experts=2, norm_topk_prob=False, yarn=None),
    "no shared expert": config(n_shared_experts=0, num_experts_per_tok=1, num_hidden_layers=2),
    "groups": config(n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, num_hidden_layers=2),
}


def example(shape: ModelConfig, lengths: tuple[int, ...] = LENGTHS) -> tuple[Batch, Tensor]:
    """Whole documents, and what comes behind each row that is learned: not every one, not in the last document."""
    documents = [random_ids(shape, length, seed=index) for index, length in enumerate(lengths)]
    batch = Batch.of(documents)
    rows = torch.cat([torch.arange(a, b - 1) for a, b in zip(batch.edges[:-2], batch.edges[1:-1], strict=True)])
    rows = rows[rows % 5 != 3]
    return replace(batch, logit_rows=rows), batch.ids[rows + 1]


def never(*_: object) -> bool:
    return False


class Step:
    """The loss with all gradients, and what was observed."""

    def __init__(self, model: Transformer, batch: Batch, targets: Tensor, dtype: torch.dtype, *, native: bool) -> None:
        model.dtype = dtype
        model.zero_grad()
        self.observed = Observed()
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setattr(trained, "suits", never)
            assert trained.suits(model, trained.PackedWeights(), batch) is native
            total, self.nats = model.loss(batch, targets, self.observed)
        total.backward()
        self.total = float(total.detach())
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def error(self, truth: Step, only: str = "") -> float:
        pairs = [(self.gradients[name], truth.gradients[name]) for name in truth.gradients if only in name]
        wrong = sum(float((mine - own).double().square().sum()) for mine, own in pairs)
        return (wrong / sum(float(own.double().square().sum()) for _, own in pairs)) ** 0.5


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_as_near_to_float32_as_torchs_bfloat16_comes(shape: str, threads: None) -> None:
    model = random_model(SHAPES[shape]).train()
    batch, targets = example(model.config)
    truth = Step(model, batch, targets, torch.float32, native=False)
    torchs = Step(model, batch, targets, torch.bfloat16, native=False)
    native = Step(model, batch, targets, torch.bfloat16, native=True)
    assert native.gradients.keys() == truth.gradients.keys()
    assert (native.nats - truth.nats).norm() < 1.25 * (torchs.nats - truth.nats).norm()
    assert abs(native.total - float(native.nats.double().sum())) < 1e-4 * native.total
    for part in ("", "self_attn", "experts", "norm", "embed_tokens", "lm_head"):
        # A token whose two best experts are almost level may go to the other one in either: both are wrong then
        assert native.error(truth, part) < 1.25 * torchs.error(truth, part), part
    for mine, own in zip(native.observed.max_logits, truth.observed.max_logits, strict=True):
        assert mine.shape == own.shape and torch.allclose(mine, own, rtol=0.02, atol=0.02)
    for mine, own in zip(native.observed.chosen, truth.observed.chosen, strict=True):
        assert mine.shape == own.shape and (mine.sort(-1).values == own.sort(-1).values).float().mean() > 0.95


def test_a_gradient_is_the_slope_of_the_loss() -> None:
    model = random_model(SHAPES["k2"], seed=3).train()
    batch, targets = example(model.config)
    step = Step(model, batch, targets, torch.bfloat16, native=True)
    before = Step(model, batch, targets, torch.float32, native=False).total
    squares, expected = sum(float(g.square().sum()) for g in step.gradients.values()), 5.0  # nats, of 1,400
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in step.gradients:
                parameter -= step.gradients[name] * (expected / squares)
    after = Step(model, batch, targets, torch.float32, native=False).total
    assert 0.8 * expected < before - after < 1.2 * expected


def test_a_document_has_the_same_bits_in_any_company(threads: None) -> None:
    model = random_model(SHAPES["k2"]).train()
    batch, targets = example(model.config)
    whole = Step(model, batch, targets, torch.bfloat16, native=True)
    begin, end = batch.edges[4], batch.edges[5]
    assert batch.logit_rows is not None
    own = (batch.logit_rows >= begin) & (batch.logit_rows < end)
    alone = Batch.of([batch.ids[begin:end].tolist()])
    alone = replace(alone, logit_rows=batch.logit_rows[own] - begin)
    assert torch.equal(Step(model, alone, targets[own], torch.bfloat16, native=True).nats, whole.nats[own])


def test_threads_change_no_bit() -> None:
    model = random_model(SHAPES["k2"]).train()
    batch, targets = example(model.config)
    before, steps = torch.get_num_threads(), list[Step]()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        steps.append(Step(model, batch, targets, torch.bfloat16, native=True))
    torch.set_num_threads(before)
    for name, gradient in steps[0].gradients.items():
        if name != "model.embed_tokens.weight" and "gate.weight" not in name:  # torch's
            assert all(torch.equal(gradient, step.gradients[name]) for step in steps), name
    assert all(torch.equal(steps[0].nats, step.nats) for step in steps)


def test_microbatches_add_up() -> None:
    model = random_model(SHAPES["k2"]).train()
    batch, targets = example(model.config)
    other, others = example(model.config, (33, 5, 64))
    one = Step(model, batch, targets, torch.bfloat16, native=True)
    two = Step(model, other, others, torch.bfloat16, native=True)
    model.zero_grad()
    model.loss(batch, targets)[0].backward()
    model.loss(other, others, same_weights=True)[0].backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            both = one.gradients[name] + two.gradients[name]
            assert torch.allclose(parameter.grad, both, rtol=1e-4, atol=1e-5 * float(both.abs().max())), name


def test_a_scaled_loss_has_scaled_gradients() -> None:
    model = random_model(SHAPES["k2"]).train()
    batch, targets = example(model.config)
    one = Step(model, batch, targets, torch.bfloat16, native=True)
    model.zero_grad()
    (model.loss(batch, targets)[0] * 0.25).backward()  # a power of two: every rounding is the same
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, one.gradients[name] / 4, rtol=1e-6, atol=1e-9), name


def test_weights_may_change_in_any_way_between_two_losses() -> None:
    model, other = random_model(SHAPES["k2"]).train(), random_model(SHAPES["k2"], seed=1).train()
    batch, targets = example(model.config)
    first = Step(model, batch, targets, torch.bfloat16, native=True)
    fused = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)
    fused.step()  # torch does not count this change of its tensors
    copy = random_model(SHAPES["k2"]).train()
    copy.load_state_dict(model.state_dict())
    changed = Step(model, batch, targets, torch.bfloat16, native=True)
    assert not torch.equal(changed.nats, first.nats)
    assert torch.equal(changed.nats, Step(copy, batch, targets, torch.bfloat16, native=True).nats)
    model.load_state_dict(other.state_dict())
    expected = Step(other, batch, targets, torch.bfloat16, native=True)
    assert torch.equal(Step(model, batch, targets, torch.bfloat16, native=True).nats, expected.nats)
    model.loss(batch, targets)
    assert torch.equal(model.loss(batch, targets, same_weights=True)[1], expected.nats)


def test_a_backward_behind_the_next_forward_is_refused() -> None:
    model = random_model(SHAPES["k2"]).train()
    model.dtype = torch.bfloat16
    batch, targets = example(model.config)
    early, _ = model.loss(batch, targets)
    model.loss(batch, targets)
    with pytest.raises(RuntimeError, match="backward comes after the next loss"):
        early.backward()


def test_what_does_not_suit_goes_to_torch() -> None:
    model = random_model(SHAPES["k2"]).train()
    model.dtype = torch.bfloat16
    batch, targets = example(model.config)
    assert trained.suits(model, trained.PackedWeights(), batch)
    with torch.no_grad():
        assert not trained.suits(model, trained.PackedWeights(), batch)
        total, nats = model.loss(batch, targets)
    assert torch.isclose(total, nats.sum()) and not total.requires_grad
    model.dtype = torch.float32
    assert not trained.suits(model, trained.PackedWeights(), batch)
    model.dtype = torch.bfloat16
    model.lm_head.weight.requires_grad_(False)
    assert not trained.suits(model, trained.PackedWeights(), batch)
    odd = random_model(config(v_head_dim=24)).train()
    odd.dtype = torch.bfloat16
    assert not trained.suits(odd, trained.PackedWeights(), batch)


def test_a_microbatch_without_anything_to_learn_has_no_loss() -> None:
    model = random_model(SHAPES["k2"]).train()
    batch, _ = example(model.config)
    none = torch.zeros(0, dtype=torch.int64)
    step = Step(model, replace(batch, logit_rows=none), none, torch.bfloat16, native=True)
    assert step.total == 0 and len(step.nats) == 0
    assert all(not gradient.any() for gradient in step.gradients.values())


def test_nothing_is_kept_of_a_step_that_is_over() -> None:
    """A node that kept its own output kept the weights' panels with it, for ever."""
    shape = SHAPES["k2"]
    model = random_model(shape, seed=1)
    model.dtype = torch.bfloat16
    panels: list[weakref.ref[Tensor]] = []
    for _ in range(3):
        total, _ = model.loss(*example(shape), Observed())
        total.backward()
        del total
        kept = model._trained.linear(model.lm_head.weight)[0]  # pyright: ignore[reportPrivateUsage]
        panels.append(weakref.ref(kept.numbers))
        del kept
    gc.collect()
    assert [panel() is not None for panel in panels] == [False, False, True]
