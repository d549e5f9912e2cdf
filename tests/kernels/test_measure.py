"""That the measuring measures: rows that hang together, on shapes small enough for a test."""

from __future__ import annotations

import pytest
import torch

from baltoro.errors import BaltoroError
from baltoro.kernels import measure, measure_attention
from baltoro.kernels.formats import FORMATS, Format, unpack
from baltoro.kernels.targets import chosen_target, targets
from tests import tiny

SMALL = tiny.config(hidden_size=128, moe_intermediate_size=64, n_routed_experts=32, num_experts_per_tok=4)
native = pytest.mark.skipif(len(targets()) == 1, reason="no native kernels were built")


@native
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_says_what_was_done(format: Format) -> None:
    decode, prefill = measure.rows(SMALL, (format,), experts=16, prefill=(64,), seconds=0.01)
    assert (decode.work, decode.tokens, prefill.work, prefill.tokens) == ("decode", 1, "prefill", 64)
    mixture = measure.random_mixture(SMALL, format, 16)
    # One token reads 4 of the experts
    assert decode.gbps * decode.seconds * 1e9 == pytest.approx(4 * mixture.expert_bytes)
    # Half of the layer's experts are here: 32 tokens' worth of choices
    assert prefill.gflops * prefill.seconds * 1e9 == pytest.approx(2 * 3 * 128 * 64 * 4 * 32)
    for row in (decode, prefill):
        assert row.roof_fraction == pytest.approx(row.gbps / row.roof_gbps)
        assert row.peak_fraction == pytest.approx(row.gflops / row.peak_gflops)
        assert f"{row.tokens} tokens" in measure.line(row)


@pytest.mark.parametrize("format", FORMATS)
def test_random_weights_are_numbers_of_either_sign(format: Format) -> None:
    mixture = measure.random_mixture(SMALL, format, 3)
    for packed in (mixture.gate, mixture.up, mixture.down):
        w = unpack(packed)
        assert w.isfinite().all()
        assert 0.3 < (w > 0).float().mean() < 0.7
        assert w.unique().numel() > 10


@native
def test_rows_of_attention_count_its_bytes_and_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baltoro.kernels.memory.last_cache", lambda: 2**20)
    config = tiny.config(v_head_dim=32, kv_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=32)
    heads, target = config.num_attention_heads, chosen_target()
    decode, prefill = measure_attention.rows(config, contexts=(100,), prompts=(20,), seconds=0.01, target=target)
    assert (decode.work, decode.tokens, prefill.work, prefill.tokens) == ("mla_decode", 100, "mla_prefill", 20)
    assert decode.gbps * decode.seconds * 1e9 == pytest.approx(100 * (64 + 16) * 2)
    assert decode.gflops * decode.seconds * 1e9 == pytest.approx(2 * heads * 100 * (80 + 64))
    assert prefill.gflops * prefill.seconds * 1e9 == pytest.approx(2 * heads * 210 * (48 + 32))


def test_a_context_that_memory_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baltoro.kernels.memory.free", lambda: 2**30)
    for contexts, prompts in (((10**9,), (20,)), ((20,), (10**9,))):
        with pytest.raises(BaltoroError, match=r"GB, 1\.1 GB are free"):
            list(
                measure_attention.rows(tiny.config(), contexts=contexts, prompts=prompts, seconds=0.01, target="torch")
            )


@native
@pytest.mark.parametrize("target", targets()[1:])
def test_roofs_are_positive_on_every_target(target: str) -> None:
    assert measure.read_roof(torch.zeros(2**20, dtype=torch.uint8), target) > 0
    assert measure.peak("int8", target) > 0
    assert measure.peak("bf16", target) > 0


def test_without_native_kernels_there_is_nothing_to_measure() -> None:
    with pytest.raises(BaltoroError, match="no native kernels to measure"):
        list(measure.rows(SMALL, ("int8",), target="torch"))
