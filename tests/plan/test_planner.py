"""The plan: what must hold whatever the machine, the forms that scripts rely on, refusals, advice, prices."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from baltoro.cli import app
from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError, PlanError
from baltoro.plan import document, planner, text
from baltoro.plan.choice import best, choose
from baltoro.plan.formats import FORMATS
from baltoro.plan.machine import Machine
from baltoro.plan.memory import Wish, memories
from baltoro.plan.picture import svg
from tests.plan.anchors import CATALOGUE, K2
from tests.plan.made import plan

RUNNER = CliRunner()
MACHINES = st.builds(
    Machine, name=st.just("any"), ram_bytes=st.floats(2**33, 2**42), ram_bandwidth=st.floats(2e10, 2e12),
    sockets=st.sampled_from([1, 2]), cores=st.integers(1, 256), disk_bandwidth=st.floats(1e8, 3e10),
)  # fmt: skip
WITH_GPUS = st.builds(
    lambda machine, gpu, gpus, nodes: replace(machine, gpu=gpu, gpus=gpus, nodes=nodes),
    MACHINES, st.sampled_from(sorted(CATALOGUE.gpus.values(), key=lambda gpu: gpu.name)), st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4]),
)  # fmt: skip


@given(MACHINES | WITH_GPUS, st.sampled_from(sorted(FORMATS)), st.sampled_from([1024, 32768, 131072]))
@settings(max_examples=60)
def test_what_fits_fits_and_what_does_not_says_by_how_much(machine: Machine, format: str, context: int) -> None:
    wish = Wish(context=context)
    for memory in memories(K2, FORMATS[format], machine, wish):
        over = {where: memory.used(where) - room for where, room in memory.capacity}
        assert (memory.short is None) == all(each < 1 for each in over.values())
        if memory.short is not None:
            where, missing = memory.short
            assert missing == over[where] == max(over.values())
            grown = replace(machine, ram_bytes=machine.ram_bytes + 1.1 * missing + 1)
            again = [each for each in memories(K2, FORMATS[format], grown, wish) if each.place == memory.place]
            if where == "RAM":
                assert again[0].short is None or again[0].short[0] != "RAM"


@given(MACHINES, st.sampled_from(["bf16", "fp8", "int8", "int4"]), st.floats(1.1, 4))
@settings(max_examples=60)
def test_more_of_anything_is_never_slower(machine: Machine, format: str, more: float) -> None:
    wish = Wish(context=4096)
    now = best(K2, FORMATS[format], machine, wish)
    for name in ("ram_bytes", "ram_bandwidth", "disk_bandwidth"):
        then = best(K2, FORMATS[format], replace(machine, **{name: more * getattr(machine, name)}), wish)
        assert now is None or (then is not None and then.tokens_per_s >= now.tokens_per_s * (1 - 1e-9)), name


@given(WITH_GPUS, st.sampled_from([1, 8, 64]))
@settings(max_examples=40)
def test_bands_are_in_order_and_company_costs_time(machine: Machine, requests: int) -> None:
    try:
        alone, together = (
            choose(K2, machine, Wish(context=2048, concurrency=n), FORMATS["w4a16"]) for n in (1, requests)
        )
    except PlanError:
        return
    for each in (alone, together):
        seconds = each.step.seconds
        assert seconds.least >= seconds.expected >= seconds.most > 0
    assert together.tokens_per_s <= alone.tokens_per_s * (1 + 1e-9)


def test_the_cache_of_128k_is_9_21_gb_and_not_229() -> None:
    for machine in ("desktop", "h200-x16", "m3-ultra"):
        assert document.document(plan(machine))["cache_bytes"]["131072"] == 131072 * 61 * 576 * 2 == 9_210_691_584
    assert plan("h200-x16").cache_bytes(262144) == pytest.approx(17.16 * 2**30, rel=1e-3)


def test_the_known_smallest_unit_of_fp8_and_128k_is_16_gpus() -> None:
    """Moonshot's guide: 16 H200 or H20. Eight H800 do not hold it, and the refusal says how much is missing."""
    found = plan("h20-x16", format="fp8", place="gpu", context=131072)
    assert found.memory.free_cache_tokens >= 131072
    with pytest.raises(PlanError, match="GB short") as error:
        plan("h800-x16", nodes=1, format="fp8", place="gpu", context=131072)
    whole, room = 1029e9, 8 * CATALOGUE.machines["h800-x16"].usable_gpu
    assert error.value.short_bytes == pytest.approx((whole - room) / 8 + 9.2e9, rel=0.1)


def test_a_machine_without_fp8_is_told_so() -> None:
    machine = replace(CATALOGUE.machines["h200-x16"], nodes=4, gpu=CATALOGUE.gpus["A100"])
    with pytest.raises(PlanError, match="block-fp8 does not run on A100"):
        choose(K2, machine, Wish(context=8192, place="gpu"), FORMATS["fp8"])
    assert choose(K2, machine, Wish(context=8192), None).format.name != "fp8"


def test_a_context_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(PlanError, match="the model has 131,072"):
        plan("h200-x16", context=131073)


def test_streaming_is_bound_by_the_disk_and_advice_says_so() -> None:
    found = plan("desktop")
    assert (found.memory.place, found.single.binding) == ("disk", "disk")
    assert found.cold is not None
    assert found.cold.expected < found.tokens_per_s.expected
    kinds = [each.kind for each in found.advice]
    assert kinds == sorted(kinds, key=["free", "disk", "RAM", "GPU", "node"].index)
    assert "second drive" in found.advice[0].change
    for hit, rate in found.by_hits.items():
        assert rate == pytest.approx(7e9 / (found.cold_bytes_per_token * (1 - hit)))


def test_users_table_of_ceilings() -> None:
    """fp8 from NVMe of 7 and 12 GB/s at hits of 0, 50, 70 and 90 %, as users compute them."""
    for rate, expected in ((7e9, (0.33, 0.66, 1.1, 3.3)), (12e9, (0.57, 1.13, 1.9, 5.7))):
        found = plan("desktop", format="fp8", disk_bandwidth=rate)
        assert list(found.by_hits.values()) == [pytest.approx(each, rel=0.03) for each in expected]


def test_a_price_is_that_of_the_hour_over_its_tokens() -> None:
    found = plan("h200-x16", concurrency=16, price_hour=20.0, watts=10_000.0)
    assert found.cost is not None
    assert found.cost.money is not None
    assert found.cost.kwh is not None
    assert found.cost.money[1] == pytest.approx(2 * 20.0 / (found.throughput.expected * 3600) * 1e6)
    assert found.cost.kwh[1] == pytest.approx(20.0 / (found.throughput.expected * 3600) * 1e6)
    assert plan("h200-x16").cost is None
    with_power = planner.make(
        "k2", K2, found.machine, found.wish, card=CATALOGUE.gpus["RTX-4090"], electricity=0.5, format=found.format
    )
    assert with_power.cost is not None
    assert with_power.cost.money is not None
    assert with_power.cost.money[1] == pytest.approx(found.cost.money[1] + 0.5 * found.cost.kwh[1])


@pytest.mark.parametrize("machine", sorted(CATALOGUE.machines))
def test_every_machine_of_the_catalogue_has_a_plan_a_picture_and_a_document(machine: str) -> None:
    found = plan(machine, context=131072)
    drawn = ElementTree.fromstring(svg(found))
    rectangles = list(drawn.iter("{http://www.w3.org/2000/svg}rect"))
    assert all(float(each.get("width", 0)) >= 0 and float(each.get("x", 0)) >= 0 for each in rectangles)
    assert json.loads(json.dumps(document.document(found)))["fits"] is True
    console = Console(width=160, record=True, file=io.StringIO())
    text.show(found, console)
    shown = console.export_text()
    assert found.single.binding in shown
    assert "9.21 GB" in shown


def test_models_of_the_same_architecture_are_planned_too() -> None:
    for name, place in (("moonlight-16b-a3b", "ram"), ("nano", "ram")):
        config = ModelConfig.open(name)
        wish = Wish(context=min(2048, config.max_position_embeddings))
        found = planner.make(name, config, CATALOGUE.machines["desktop"], wish, card=CATALOGUE.gpus["RTX-4090"])
        assert found.memory.place == place


# ------------------------------------------------------------------------------------------------ the command


def run(*arguments: str) -> Any:
    return RUNNER.invoke(app, ["plan", *arguments])


def test_the_form_that_scripts_rely_on() -> None:
    result = run("kimi-k2-instruct", "--json", "--ram", "24GiB", "--disk", "2GB/s")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cache_bytes"]["131072"] == 9_210_691_584
    assert found["cold_bytes_per_token"] == 11_890_851_840
    assert found["binding"] == "disk"
    assert found["tokens_per_s"]["low"] < found["tokens_per_s"]["expected"] < found["tokens_per_s"]["high"]
    assert found["resident_bytes"] + found["expert_bytes"] == pytest.approx(579.8e9, rel=1e-3)


def test_what_cannot_fit_is_refused_with_exit_code_1_and_a_document() -> None:
    result = run("kimi-k2-instruct", "--json", "--ram", "8GiB")
    assert isinstance(result.exception, PlanError)
    found = json.loads(result.stdout)
    assert (found["fits"], found["binding"]) == (False, "memory")
    assert found["short_bytes"] == result.exception.short_bytes > 10**9


def test_a_refusal_names_the_cheapest_change_that_makes_it_fit() -> None:
    with pytest.raises(PlanError, match="GB short") as error:
        plan("h200-x8", format="fp8", place="gpu", context=131072)
    assert "w4a16 instead of fp8" in error.value.hint
    with pytest.raises(PlanError) as error:
        plan("desktop", format="int4", context=131072, ram_bytes=8e9)
    assert "a context of" in error.value.hint or "GiB of RAM" in error.value.hint


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option in ("--out", "--picture"):
        result = run("--machine", "h200-x16", option, str(tmp_path / "file" / "x"))
        assert isinstance(result.exception, BaltoroError)


def test_no_torch_for_a_described_machine() -> None:
    code = (
        "from baltoro.cli import app; import sys\n"
        "try: app(['plan', '--machine', 'h200-x16', '--json'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_files_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    result = run(
        "--machine", "h200-x16", "--form", "systemd", "--hosts", "a,b", "--out", str(tmp_path), "--picture",
        str(tmp_path / "plan.svg"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert names == [
        "node0/baltoro-gateway.service",
        "node0/baltoro-vllm-0.service",
        "node1/baltoro-vllm-1.service",
        "plan.svg",
    ]
    assert "--master-addr a" in (tmp_path / "node1" / "baltoro-vllm-1.service").read_text()
    assert "hosts for 2 nodes" in str(run("--machine", "h200-x16", "--hosts", "a").exception)


@pytest.mark.parametrize("engine", ["sglang", "tgi", "tensorrt-llm", "ktransformers"])
def test_an_engine_that_is_asked_for_and_cannot_is_an_error(engine: str) -> None:
    result = run("--machine", "desktop", "--engine", engine)
    assert isinstance(result.exception, PlanError)
    assert "--place" in result.exception.hint


def test_the_list_of_machines_names_each() -> None:
    output = run("--list-machines").stdout
    assert all(name in output for name in [*CATALOGUE.machines, *CATALOGUE.gpus])
