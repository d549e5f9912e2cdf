"""`baltoro replay` and the journal's options, as a shell sees them."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from baltoro.cli import journaling
from baltoro.errors import BaltoroError
from baltoro.llm import LLM
from tests.server.test_replay import CHAT, recording
from tests.test_cli import error_of, run

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "pattern": "^(?!x)"}}}
LOOSE = {**CHAT, "tools": [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]}


@pytest.mark.parametrize(
    "option", [["--journal-content"], ["--journal-days", "3"], ["--journal-size", "1GiB"], ["--journal-redact", "a:b"]]
)
def test_a_journal_s_options_need_a_journal(option: list[str]) -> None:
    assert "name a DIR" in error_of(run("serve", "--port", "0", *option), 2)


def test_a_redaction_is_imported_when_the_server_starts(tmp_path: Path) -> None:
    def opened(redact: str) -> journaling.Writing | None:
        return journaling.opened(tmp_path / "j", content=False, redact=redact, most_bytes=None, most_days=None)

    for wrong in ("nowhere", "no_such_module:f", "json:no_such_function", "json:__name__", ":"):
        with pytest.raises(BaltoroError, match="--journal-redact"):
            opened(wrong)
    writing = opened("copy:copy")
    assert writing is not None
    writing.close()


def test_what_was_recorded_is_asked_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with (
        closing(LLM.open(tiny_checkpoint, threads=1, max_context=512, draw_seeds=True, loose_schemas=True)) as llm,
        recording(llm, tiny_checkpoint, tmp_path / "journal", content=True) as address,
    ):
        assert address.http.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert address.http.post("/v1/chat/completions", json=LOOSE).status_code == 200
    again = ["replay", tmp_path / "journal", "--against", tiny_checkpoint, "--threads", "1"]
    found = json.loads(run(*again, "--json").stdout)
    assert found["summary"]["same"] == found["summary"]["tokens"]["same"] == len(found["requests"]) == 2
    assert "same             1" in run(*again, "--limit", "1").stdout
    assert "no journal" in error_of(run("replay", tmp_path / "nothing", "--against", tiny_checkpoint))
    assert "loaded here" in error_of(run("replay", tmp_path / "journal", "--against", "http://x", "--threads", "1"), 2)
    assert "for a server" in error_of(run(*again, "--model", "k2"), 2)
    refused = run("replay", tmp_path / "journal", "--against", "http://127.0.0.1:1")
    assert "lists no models" in error_of(refused)
