"""A model's forward as one native call gives the bits of its modules, one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from baltoro.kernels.formats import FORMATS, Format
from baltoro.kernels.forward import ForwardStep
from baltoro.kernels.targets import targets
from baltoro.model import slices
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.rope import RotaryTable, rotary_table
from baltoro.model.transformer import Observed, Transformer
from tests import tiny

pytestmark = pytest.mark.skipif(len(targets()) < 2, reason="nothing was built")
K2 = tiny.config(
    hidden_size=128, intermediate_size=160, moe_intermediate_size=96, q_lora_rank=64, kv_lora_rank=64,
    qk_nope_head_dim=32, v_head_dim=32, n_routed_experts=6, num_hidden_layers=3,
)  # fmt: skip
MOONLIGHT = replace(K2, q_lora_rank=None, yarn=None, n_shared_experts=2, rms_norm_eps=1e-5)
NO_SHARED = replace(K2, n_shared_experts=0, n_group=2, topk_group=1, first_k_dense_replace=0)
IDS = torch.randint(0, K2.vocab_size, (60,), generator=torch.Generator().manual_seed(0))


def model_of(config: Any, format: Format, *, norms: bool = True) -> Transformer:
    model = slices.make(config, format, experts=config.n_routed_experts)
    if norms:  # away from 1, each its own
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


def batch(
    first: int, edges: tuple[int, ...], starts: tuple[int, ...], generated: tuple[bool, ...], **more: Any
) -> Batch:
    positions = [torch.arange(start, start + b - a) for start, a, b in zip(starts, edges, edges[1:], strict=False)]
    return Batch(
        ids=IDS[first : first + edges[-1]], positions=torch.cat(positions), edges=edges,
        pages=tuple((n, n + 4) for n in range(len(starts))), generated=generated, **more,
    )  # fmt: skip


# Two prompts, the second in two pieces; then one decodes beside it, with guesses; then all do.
STEPS = (
    batch(0, (0, 9, 16), (0, 0), (False, False)),
    batch(16, (0, 3, 12), (9, 7), (True, False), logit_rows=torch.tensor([2, 0, 11])),
    batch(30, (0, 1, 2), (12, 16), (True, True)),
)


def run(model: Transformer, *, by_layer: bool) -> tuple[list[Tensor], Tensor]:
    model.by_layer = by_layer
    cache = LatentCache(model.config, num_pages=8, page_tokens=16)
    with torch.inference_mode():
        return [model(step, cache) for step in STEPS], cache.latents


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("config", [K2, MOONLIGHT, NO_SHARED], ids=["K2", "Moonlight", "no shared experts"])
def test_one_call_gives_the_bits_of_the_modules(config: Any, format: Format) -> None:
    model = model_of(config, format)
    expected, expected_cache = run(model, by_layer=True)
    with patch.object(ForwardStep, "__call__", autospec=True, side_effect=ForwardStep.__call__) as called:
        found, cache = run(model, by_layer=False)
    assert called.call_count == len(STEPS)
    assert [tuple(logits.shape) for logits in found] == [(16, 320), (3, 320), (2, 320)]
    for mine, other in zip(found, expected, strict=True):
        assert mine.isfinite().all()
        assert torch.equal(mine, other)
    assert torch.equal(cache, expected_cache)


def test_who_looks_at_the_layers_sees_them() -> None:
    model, observed = model_of(K2, "int8"), Observed()
    cache = LatentCache(K2, num_pages=8, page_tokens=16)
    with torch.inference_mode():
        logits = model(STEPS[0], cache, observed)
        assert torch.equal(logits, model(STEPS[0], cache))
    assert [tuple(chosen.shape) for chosen in observed.chosen] == [(16, 2), (16, 2)]


def test_a_cache_in_float32_goes_through_the_modules_whatever_was_before() -> None:
    model = model_of(K2, "int8")
    run(model, by_layer=False)
    cache = LatentCache(K2, num_pages=8, page_tokens=16, dtype=torch.float32)
    with torch.inference_mode():
        assert model(STEPS[0], cache).isfinite().all()
    assert cache.latents.any()


def test_a_table_of_angles_holds_what_is_worked_out_for_each_position() -> None:
    table, positions = RotaryTable(K2), torch.tensor([1999, 3, 1024, 0])
    for most in (1, 700, 1500, 2000):
        cos, sin = table.upto(most)
        assert len(cos) == len(sin) >= most
    for mine, other in zip((cos, sin), rotary_table(K2, positions), strict=True):
        assert torch.equal(mine[positions], other)
    assert table.upto(5)[0] is cos, "it was not made anew"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ids": torch.tensor([320])}, "ids hold 320 .. 320, expected 0 .. 319"),
        ({"positions": torch.tensor([-1])}, "positions hold -1"),
        ({"wanted": torch.tensor([1])}, "wanted hold 1 .. 1, expected 0 .. 0"),
        ({"cache": torch.zeros(2, 128, 72, dtype=torch.bfloat16)}, r"cache is torch.bfloat16 \(2, 128, 72\)"),
        ({"cache": torch.zeros(3, 128, 72)}, "cache is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    model = model_of(K2, "bf16")
    cache = LatentCache(K2, num_pages=8, page_tokens=16)
    seen: dict[str, Any] = {}

    def look(_step: ForwardStep, ids: Tensor, positions: Tensor, table: Any, latents: Tensor, rows: Any, wanted: Any):
        seen.update(ids=ids, positions=positions, table=table, cache=latents, rows=rows, wanted=wanted)
        return torch.zeros(1, 320)

    one = Batch(ids=IDS[:1], positions=torch.tensor([0]), edges=(0, 1), pages=((0,),))
    with torch.inference_mode(), patch.object(ForwardStep, "__call__", look):
        model(one, cache)
    step = model._step  # pyright: ignore[reportPrivateUsage]
    assert step is not None
    assert np.isfinite(step(**seen).numpy()).all()
    with pytest.raises(ValueError, match=named):
        step(**(seen | change))
