"""What docs/agent.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()


def test_its_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example.py", "exec"), {"__name__": "example"})
    assert re.search(r"^(done|steps|length|seconds)\b", capsys.readouterr().out, flags=re.MULTILINE)


def test_the_bounds_it_names_are_those_of_the_code() -> None:
    from baltoro.agent import commands, copies, files, tool, workspace
    from baltoro.agent.budget import Budget
    from baltoro.agent.sandbox import Limits

    limits = Limits()
    for told in (
        f"{files.READ_LINES} lines unless",
        f"files up to {workspace.LARGEST_FILE >> 20} MiB",
        f"{files.MATCHES} lines, {files.SEARCH_S:.0f} s",
        f"{files.ENTRIES} entries",
        f"{tool.RESULT_CHARS:,} characters",
        f"{limits.seconds:.0f} s, or what it asks for up to {commands.LONGEST_S} s",
        f"{limits.cpu_s} s of CPU time",
        f"{limits.memory_bytes >> 30} GiB, each process",
        f"{limits.processes} at once",
        f"{limits.file_bytes >> 30} GiB; {limits.scratch_bytes >> 20} MiB each",
        f"{limits.output_bytes >> 20} MiB, then it is ended",
        f"`--steps` ({Budget().steps})",
        f"up to {copies.MOST_BYTES >> 30} GiB",
    ):
        assert told in DOCUMENT


def test_every_test_that_it_names_is_there() -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DOCUMENT):
        assert f"def {name}(" in (Path(__file__).parents[2] / path).read_text()
