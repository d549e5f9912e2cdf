"""/health shows what was verified last, and stays healthy whatever becomes of the report."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from baltoro.errors import BaltoroError
from baltoro.scripted import ScriptedLLM
from baltoro.server.app import Served, create_app
from baltoro.server.verified import Verified
from tests.server.conftest import serving

REPORT = {"at": "2026-11-28T09:00:00+00:00", "target": "http://a", "model": "kimi", "schema_accuracy": 0.76,
          "tool_call_f1": 0.83, "checks": [{"detail": "somebody's text"}], "verdicts": {"pass": 3}}  # fmt: skip


def write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def test_health_follows_the_report_as_it_comes_changes_breaks_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    served = Served(llm=ScriptedLLM([]), names=("tiny",), verified=Verified(path))
    with serving(create_app(served)) as server:

        def verified() -> dict | None:
            answer = httpx.get(f"{server.url}/health")
            assert answer.status_code == 200
            return answer.json()["verified"]

        assert verified() is None
        write(path, json.dumps(REPORT))
        shown = verified()
        assert shown is not None
        assert (shown["schema_accuracy"], shown["tool_call_f1"], shown["at"]) == (0.76, 0.83, REPORT["at"])
        assert "checks" not in shown, "anybody may read /health"
        write(path, json.dumps({**REPORT, "schema_accuracy": 1.0}))
        assert (verified() or {})["schema_accuracy"] == 1.0
        for broken in ("{", "[]", "{}", "\udcff"):
            path.write_bytes(broken.encode(errors="surrogateescape"))
            assert verified() is None
        path.unlink()
        assert verified() is None


def test_a_file_that_is_no_report_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(BaltoroError, match="is no report"):
        Verified(tmp_path / "a.json")


def test_without_the_option_health_is_as_before() -> None:
    with serving(create_app(Served(llm=ScriptedLLM([]), names=("tiny",)))) as server:
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "model": "tiny"}
