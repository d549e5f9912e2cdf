"""Layouts: what divides, what a GPU holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro import counts
from baltoro.errors import BaltoroError, PlanError
from baltoro.plan.formats import FORMATS
from baltoro.plan.layout import Layout, cache_per_token, candidates, parse, per_gpu, problems
from baltoro.plan.weights import weights
from tests.plan.anchors import CATALOGUE, K2
from tests.plan.made import plan

LAYOUTS = st.builds(
    Layout, tp=st.sampled_from([1, 2, 4, 8, 16, 32]), pp=st.integers(1, 8), dp=st.sampled_from([1, 2, 4, 8, 16]),
    ep=st.booleans(), dcp=st.sampled_from([1, 2, 8]),
)  # fmt: skip


@given(LAYOUTS)
def test_a_name_reads_back(layout: Layout) -> None:
    assert parse(layout.name) == layout
    assert parse(layout.name.lower().replace("+", ",")) == layout


@pytest.mark.parametrize("text", ["xp8", "tp", "tp0", "16", "tp16+ep8", "tp8++zz"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(BaltoroError):
        parse(text)


def test_tp32_fails_for_the_reason_that_sglang_gives() -> None:
    """sglang#3345: 576 is no multiple of 128. With int4 or bf16 weights there are no such blocks."""
    found = list(problems(K2, FORMATS["fp8"], Layout(tp=32)))
    assert any("18,432 cut in 32 is 576" in each for each in found)
    assert not list(problems(K2, FORMATS["bf16"], Layout(tp=32)))
    assert not list(problems(K2, FORMATS["fp8"], Layout(tp=16)))


def test_divisibility() -> None:
    assert "64 heads" in next(problems(K2, FORMATS["bf16"], Layout(tp=12)))
    assert "384 experts" in next(problems(K2, FORMATS["bf16"], Layout(dp=40, ep=True)))
    assert "PP62" in next(problems(K2, FORMATS["bf16"], Layout(pp=62)))
    assert "DCP" in next(problems(K2, FORMATS["bf16"], Layout(tp=4, dcp=8)))
    with pytest.raises(PlanError, match="TP32 does not start in fp8") as error:
        plan("h200-x16", nodes=4, layout="tp32", format="fp8")
    assert "TP8+PP4" in error.value.hint
    with pytest.raises(PlanError, match="is for 8 GPUs"):
        plan("h200-x16", layout="tp8")
    with pytest.raises(PlanError, match="needs GPUs"):
        plan("desktop", layout="tp8")


@given(LAYOUTS, st.sampled_from(sorted(FORMATS)))
def test_all_gpus_together_hold_the_model_and_what_is_repeated(layout: Layout, format: str) -> None:
    held = weights(K2, FORMATS[format])
    resident, experts = per_gpu(K2, held, layout)
    assert layout.gpus * experts >= held.experts * (1 - 1e-12)
    assert layout.gpus * resident >= (held.resident - 1) * (1 - 1e-12) or layout.pp > 1
    assert layout.width * experts <= held.experts
    assert resident <= held.resident * (1 + 1e-12)


def test_tensor_parallelism_repeats_the_cache_and_dcp_cuts_it() -> None:
    whole = counts.cache_bytes_per_token(K2)
    assert cache_per_token(K2, Layout(tp=16)) == whole == 70272
    assert cache_per_token(K2, Layout(tp=16, dcp=8)) == whole / 8
    assert cache_per_token(K2, Layout(tp=8, pp=2)) == whole * 31 / 61  # the longer stage
    assert cache_per_token(K2, Layout(), value_bytes=1) == whole / 2


@pytest.mark.parametrize("machine", [name for name, each in CATALOGUE.machines.items() if each.gpus])
@pytest.mark.parametrize("format", ["fp8", "int8", "w4a16"])
def test_candidates_use_every_gpu_and_start(machine: str, format: str) -> None:
    target = CATALOGUE.machines[machine]
    found = candidates(K2, FORMATS[format], target)
    assert found
    for layout in found:
        assert layout.gpus == target.gpu_count
        assert not list(problems(K2, FORMATS[format], layout))
