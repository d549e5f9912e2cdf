"""The ledger keeps what it was given, whatever a kill cut off, and no two runs write it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.errors import BaltoroError
from baltoro.eval.ledger import Ledger, key

OWNER = {"url": "http://a", "model": "kimi"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(answers=st.dictionaries(st.text(min_size=1), st.fixed_dictionaries({"body": JSON})), cut=st.integers(0, 400))
def test_what_is_whole_on_disk_comes_back_wherever_the_file_was_cut(
    tmp_path_factory: pytest.TempPathFactory, answers: dict[str, Any], cut: int
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ends: list[int] = []
    with Ledger(path, OWNER) as ledger:
        for name, record in answers.items():
            ledger.put(name, record)
            ends.append(path.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    whole = sum(end <= len(data) - cut for end in ends)
    with Ledger(path, OWNER) as ledger:
        assert {name: ledger.get(name) for name in list(answers)[:whole]} == dict(list(answers.items())[:whole])
        assert len(ledger) == whole
        ledger.put("one more", {"body": 1})
    with Ledger(path, OWNER) as ledger:
        assert ledger.get("one more") == {"body": 1}
        assert len(ledger) == whole + 1 - ("one more" in list(answers)[:whole])


def test_a_process_that_is_killed_loses_nothing_that_it_had_put(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = f"""
import os, signal
from pathlib import Path
from baltoro.eval.ledger import Ledger
ledger = Ledger(Path({str(path)!r}), {OWNER!r})
for number in range(5):
    ledger.put(str(number), {{"body": number}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with Ledger(path, OWNER) as ledger:
        assert [ledger.get(str(number)) for number in range(5)] == [{"body": number} for number in range(5)]


def test_a_ledger_that_is_closed_writes_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", OWNER) as ledger:
        pass
    with (tmp_path / "other").open("w") as other, pytest.raises(OSError, match="Bad file descriptor"):
        ledger.put("a", {"body": other.fileno()})
    assert (tmp_path / "other").read_text() == ""


def test_two_runs_cannot_write_one_ledger(tmp_path: Path) -> None:
    with (
        Ledger(tmp_path / "l", OWNER),
        pytest.raises(BaltoroError, match="is in use"),
        Ledger(tmp_path / "l", OWNER),
    ):
        pass


def test_answers_of_another_model_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", OWNER):
        pass
    with (
        pytest.raises(BaltoroError, match="has answers of model 'kimi'"),
        Ledger(tmp_path / "l", {**OWNER, "model": "b"}),
    ):
        pass


def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(BaltoroError, match="is no ledger of ours"), Ledger(path, OWNER):
        pass
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_key_names_all_that_was_asked() -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    assert key("/chat", body, 0) == key("/chat", dict(reversed(body.items())), 0)
    assert (
        len({key("/chat", body, 0), key("/other", body, 0), key("/chat", body, 1), key("/chat", {**body, "n": 2}, 0)})
        == 4
    )
