"""Predictions beside measurements of doctor and of servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baltoro.cli import app
from baltoro.errors import PlanError
from baltoro.plan import check
from tests.plan.made import plan


def facts(**changes: Any) -> dict[str, Any]:
    found = plan("epyc-9135", format="int4")
    rate = found.tokens_per_s.expected
    base = {
        "format": "int4",
        "tokens": 32,
        "seconds": 32 / rate,
        "prompt_tokens": 1024,
        "prompt_s": 20.0,
        "load_s": 90.0,
    }
    return {"facts": base | changes}


def histogram(count: int, total: float) -> dict[str, Any]:
    return {"count": count, "sum": total, "buckets": {}}


def test_what_doctor_measured_stands_beside_what_was_planned() -> None:
    found = plan("epyc-9135", format="int4")
    decode, prompt, loading = check.compare(found, facts())
    assert decode.ratio == pytest.approx(1)
    assert decode.verdict == "within the band"
    assert prompt.measured == pytest.approx(51.2)
    assert loading.measured == pytest.approx(found.weights.whole / 1e6 / 90)
    slow = check.compare(found, facts(seconds=32.0))[0]
    assert slow.verdict.startswith("slower")
    fast = check.compare(found, facts(seconds=0.5))[0]
    assert fast.verdict.startswith("faster")
    assert json.loads(json.dumps(slow.document()))["verdict"] == slow.verdict


def test_short_prompts_are_not_compared_with_long_ones() -> None:
    rows = check.compare(plan("epyc-9135", format="int4"), facts(prompt_tokens=12))
    assert [row.what for row in rows] == ["decode, tokens/s", "loading, MB/s"]


def test_another_format_is_refused() -> None:
    with pytest.raises(PlanError, match="measured int4") as error:
        check.compare(plan("epyc-9135", format="int8"), facts())
    assert "--format int4" in error.value.hint


def test_a_servers_histograms_are_read() -> None:
    names = {
        "request_time_per_output_token_seconds": histogram(10, 1.0),
        "time_to_first_token_seconds": histogram(10, 40.0),
    }
    stats = {"engine": {"histograms": names, "prefilled_tokens": 2000}}
    decode, prompt = check.compare(plan("epyc-9135", format="int4"), stats)
    assert decode.measured == pytest.approx(10.0)
    assert prompt.measured == pytest.approx(50.0)
    names["request_time_per_output_token_seconds"] = names["time_to_first_token_seconds"] = histogram(0, 0.0)
    with pytest.raises(PlanError, match="nothing to compare"):
        check.compare(plan("epyc-9135", format="int4"), stats)
    with pytest.raises(PlanError, match="neither"):
        check.compare(plan("epyc-9135", format="int4"), {"engine": {}})


def test_the_command_reads_what_doctor_printed(tmp_path: Path) -> None:
    (tmp_path / "doctor.json").write_text(json.dumps(facts()))
    arguments = ["plan", "--machine", "epyc-9135", "--format", "int4", "--check", str(tmp_path / "doctor.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "within the band" in result.stdout
    for text in ("[]", "{", ""):
        (tmp_path / "doctor.json").write_text(text)
        assert isinstance(CliRunner().invoke(app, arguments).exception, PlanError)
