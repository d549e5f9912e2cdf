"""That the measuring of layers measures: rows that hang together, on layers small enough for a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.engine.config import EngineConfig
from baltoro.errors import BaltoroError
from baltoro.kernels import memory
from baltoro.kernels.formats import FORMATS, Format
from baltoro.kernels.targets import targets
from baltoro.model import bench, measure, rows
from baltoro.model.measure import Wanted
from baltoro.model.rows import Row
from tests import tiny

SMALL = tiny.config(
    hidden_size=256, moe_intermediate_size=64, kv_lora_rank=64, v_head_dim=32, n_routed_experts=32,
    num_experts_per_tok=4, num_hidden_layers=9, vocab_size=9000,
)  # fmt: skip
native = pytest.mark.skipif(len(targets()) == 1, reason="no native kernels were built")


@pytest.fixture(autouse=True)
def little_to_read_for_the_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SMALLEST_SCRATCH", 2**22)
    monkeypatch.setattr(memory, "last_cache", lambda: 2**20)


def measured(config: ModelConfig, format: Format, wanted: Wanted) -> list[tuple[Row, ...]]:
    return list(measure.layers(config, format, replace(wanted, seconds=0.01), progress=lambda _: None))


def budget(experts: int, wanted: Wanted) -> int:
    """Bytes that just hold so many."""
    short = measure.slices.shorten(SMALL, dense=1, mixtures=1, vocabulary=measure.VOCABULARY)
    cache = measure.cache_pages(wanted) * measure.PAGE_TOKENS * counts.cache_bytes_per_token(short)
    held = measure.slices.nbytes(short, "int8", experts=experts)
    return held + cache + measure.scratch_bytes() + measure.work_bytes(short, wanted)


@native
@pytest.mark.parametrize("format", FORMATS)
def test_each_size_has_a_row_of_every_layer(format: Format) -> None:
    found = measured(SMALL, format, Wanted(contexts=(70, 9), batches=(3,), prompts=(40,)))
    assert [(group[0].work, group[0].tokens, group[0].context) for group in found] == [
        ("decode", 1, 70), ("decode", 3, 70), ("decode", 1, 9), ("decode", 3, 9), ("prefill", 40, 40),
    ]  # fmt: skip
    for group in found:
        assert [row.layer for row in group] == ["dense", "mixture", "head"]
        for row in group:
            assert row.format == format
            assert row.gbps * row.seconds * 1e9 == pytest.approx(row.bytes)
            assert row.roof_fraction == pytest.approx(row.gbps / row.roof_gbps)
            assert row.peak_fraction == pytest.approx(row.gflops / row.peak_gflops)
            assert row.tokens_per_s * row.seconds == pytest.approx(row.tokens)
            assert f"{row.seconds * 1e3:.2f} ms" in rows.line(row)
            if row.layer != "head":
                parts = row.attention_seconds + row.experts_seconds + row.rest_seconds
                assert parts == pytest.approx(row.seconds)
                assert min(row.attention_seconds, row.experts_seconds, row.rest_seconds) > 0
        assert rows.title(group).startswith(f"{format}: ")


@native
def test_operations_are_those_of_counting() -> None:
    (dense, mixture, head), (_, some, _), (_, prompt, _) = measured(
        SMALL, "int8", Wanted(contexts=(70,), batches=(3,), prompts=(40,))
    )
    total = dense.gflops * dense.seconds + 8 * mixture.gflops * mixture.seconds + head.gflops * head.seconds
    assert total * 1e9 == pytest.approx(counts.decode_flops(SMALL, context=70))
    assert some.gflops * some.seconds == pytest.approx(3 * mixture.gflops * mixture.seconds)
    layer = replace(SMALL, num_hidden_layers=1, first_k_dense_replace=0)
    assert prompt.gflops * prompt.seconds * 1e9 == pytest.approx(
        counts.prefill_flops(layer, tokens=40) - 2 * 9000 * 256
    )


@native
def test_one_token_reads_its_experts_and_a_batch_the_distinct_ones() -> None:
    wanted = Wanted(contexts=(70,), batches=(3,), prompts=())
    (_, alone, head), (_, three, _) = measured(SMALL, "int8", wanted)
    assert alone.touched == 4
    assert 4 < three.touched <= 12
    cached = 70 * (64 + 8) * 2
    assert three.bytes - alone.bytes == pytest.approx((three.touched - 4) * three.expert_bytes + 2 * cached)
    assert (alone.time_ratio, alone.bytes_ratio) == (None, None)
    assert three.bytes_ratio == pytest.approx(three.bytes / alone.bytes)
    assert three.time_ratio == pytest.approx(three.seconds / alone.seconds)
    assert "x the bytes" in rows.line(three)
    assert head.bytes == pytest.approx(9000 * 258, rel=0.01)  # the whole vocabulary's, a byte a weight and scales


@native
def test_a_budget_decides_how_many_experts_there_are_and_a_prompt_reads_as_if_all_were() -> None:
    wanted = Wanted(prompts=(64,), contexts=(9,))
    found = measured(SMALL, "int8", replace(wanted, memory=budget(16, wanted)))
    assert found[0][1].experts == 16
    prompt = found[1][1]
    assert 16 < prompt.touched <= 32  # 32 tokens with 4 choices each of 16 experts, twice
    assert prompt.bytes > prompt.touched * prompt.expert_bytes
    assert measured(SMALL, "int8", wanted)[0][1].experts == 32


@native
def test_too_little_memory_is_explained() -> None:
    wanted = Wanted(contexts=(9,), prompts=())
    with pytest.raises(BaltoroError, match=r"int8 layers take .* GB with 8 experts") as caught:
        measured(SMALL, "int8", replace(wanted, memory=budget(7, wanted)))
    assert "--memory" in caught.value.hint
    with pytest.raises(BaltoroError, match="GB are free"):
        measured(SMALL, "int8", replace(wanted, memory=2**60))


@native
def test_what_the_model_was_not_made_for_is_refused() -> None:
    for wanted in (Wanted(contexts=(2049,)), Wanted(contexts=(9,), prompts=(2049,))):
        with pytest.raises(BaltoroError, match="a context of 2049 tokens is beyond the model's 2048"):
            measured(SMALL, "int8", wanted)


def test_without_native_kernels_there_is_nothing_to_measure() -> None:
    with pytest.raises(BaltoroError, match="no native kernels to measure"):
        list(measure.layers(SMALL, "int8", Wanted(), progress=lambda _: None, target="torch"))


@native
def test_models_without_dense_layers_or_without_mixtures_are_measured_too() -> None:
    wanted = Wanted(contexts=(9,), prompts=(10,))
    for config, expected in (
        (replace(SMALL, first_k_dense_replace=0), ["mixture", "head"]),
        (replace(SMALL, first_k_dense_replace=9), ["dense", "head"]),
    ):
        assert [[row.layer for row in group] for group in measured(config, "int8", wanted)] == [expected] * 2


def test_prompts_are_cut_as_the_engine_cuts_them() -> None:
    assert EngineConfig(cache_bytes=1).prefill_tokens == bench.CHUNK_TOKENS
    assert bench.chunks_of(4097) == [(0, 2048), (2048, 4096), (4096, 4097)]
    k2 = ModelConfig.open("kimi-k2-instruct")
    whole = bench.layer_flops(k2, "prefill", 4096, 4096, mixture=True)
    assert whole > 2 * bench.layer_flops(k2, "prefill", 2048, 2048, mixture=True)
