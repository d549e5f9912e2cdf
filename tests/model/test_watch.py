"""Looking on changes nothing, and a share of a prompt is what it says."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from baltoro.model import slices
from baltoro.model.batch import Batch
from baltoro.model.moe import MoE
from baltoro.model.watch import Share, Watch
from tests import tiny

CONFIG = tiny.config(v_head_dim=16, n_routed_experts=8)


class Sleeper(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x if self.inner is None else self.inner(x)


def test_times_of_inner_modules_are_part_of_the_outer_ones_and_add_up_over_calls() -> None:
    inner = Sleeper()
    outer = Sleeper(inner)
    watch = Watch({"outer": outer, "inner": inner})
    for _ in range(2):
        outer(torch.zeros(1))
    assert watch.seconds["inner"] >= 0.04
    assert watch.seconds["outer"] >= watch.seconds["inner"] + 0.04
    watch.clear()
    assert watch.seconds == {}


def test_a_watched_model_computes_the_same() -> None:
    model = slices.make(CONFIG, "int8", experts=4)
    batch = Batch.of([[1, 2, 3]])
    with torch.inference_mode():
        expected = model(batch)
        watch = Watch({"attention": model.model.layers[1].get_submodule("self_attn")})
        assert torch.equal(model(batch), expected)
    assert watch.seconds["attention"] > 0


def test_the_experts_that_are_here_get_their_share_of_the_tokens() -> None:
    model = slices.make(CONFIG, "int8", experts=4)
    mixture = model.model.layers[1].mlp
    assert isinstance(mixture, MoE)
    share = Share(mixture.experts, 4 / 8)
    x = torch.randn(10, CONFIG.hidden_size)
    with torch.inference_mode():
        routing = mixture.gate(x)
        all_of_them, some = mixture.experts(x, routing), share(x, routing)
    assert [share.tokens(tokens) for tokens in (1, 2, 10)] == [1, 1, 5]
    assert torch.equal(some[:5], all_of_them[:5])
    assert not some[5:].any()
