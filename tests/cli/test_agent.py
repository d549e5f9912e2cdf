"""The command, against our own server with a script behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner, Result

from baltoro.agent.sandbox import Bubblewrap
from baltoro.cli import app
from baltoro.scripted import ScriptedLLM
from baltoro.server.app import Served, create_app
from tests.agent.script import said

Run = Callable[..., Result]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("BALTORO_API_KEY", raising=False)
    (tmp_path / "work" / "tests").mkdir(parents=True)
    (tmp_path / "work" / "double.py").write_text("def double(n):\n    return n + n + 1\n")
    (tmp_path / "work" / "tests" / "test_double.py").write_text("from double import double\nassert double(2) == 4\n")
    return tmp_path / "work"


@pytest.fixture
def run(work: Path) -> Iterator[Run]:
    stopping: list[Callable[[], None]] = []

    def run(script: list[str], *arguments: str) -> Result:
        llm = ScriptedLLM(script, max_context=100_000)
        config = uvicorn.Config(create_app(Served(llm=llm, names=("scripted",))), port=0, log_level="error")
        server = uvicorn.Server(config)
        ready = threading.Event()
        started = server.startup

        async def startup(sockets: object = None) -> None:
            await started(sockets)  # type: ignore[arg-type]
            ready.set()

        server.startup = startup  # type: ignore[method-assign]
        thread = threading.Thread(target=server.run)
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join()

        stopping.append(stop)
        assert ready.wait(60)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        return CliRunner().invoke(app, ["agent", "--url", url, "--workspace", str(work), *arguments])

    yield run
    for stop in stopping:
        stop()


EDIT = ("edit", {"path": "double.py", "old": "n + n + 1", "new": "n + n"})
TEST = "PYTHONPATH=. python tests/test_double.py"
FIX = [said("I look.", ("read", {"path": "double.py"})), said("", EDIT, first=1), "It doubles now."]


def test_a_failing_test_is_repaired_journaled_and_replayed(work: Path, run: Run, tmp_path: Path) -> None:
    journal = tmp_path / "episode.jsonl"
    before = (work / "double.py").read_text()
    result = run([*FIX[:2], said("", ("shell", {"command": TEST}), first=2), FIX[2]],
                 "repair double", "--yes", "--journal", str(journal))  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "It doubles now.\n")
    assert "· edit" in result.stderr
    assert "→ exit code 0" in result.stderr
    assert (work / "double.py").read_text() == "def double(n):\n    return n + n\n"

    replayed = ["agent", "--replay", str(journal), "--workspace", str(work), "--yes", "--json"]
    found = json.loads(CliRunner().invoke(app, replayed).stdout)
    assert [each["name"] for each in found["differences"]] == ["read", "edit"]  # the folder is repaired already
    (work / "double.py").write_text(before)
    result = CliRunner().invoke(app, replayed)
    assert (result.exit_code, json.loads(result.stdout)["calls"]) == (0, 3)
    assert json.loads(result.stdout)["differences"] == []
    assert (work / "double.py").read_text() == before  # it ran in a copy


def test_json_tells_what_was_done_and_where_it_is_written(run: Run, tmp_path: Path) -> None:
    result = run(["nothing to do"], "rest", "--json")
    told = json.loads(result.stdout)
    assert (told["end"], told["text"], told["steps"], result.stderr) == ("done", "nothing to do", 1, "")
    assert Path(told["journal"]).parent == tmp_path / "data" / "baltoro" / "episodes"
    assert Path(told["journal"]).exists()


def test_an_episode_that_is_not_done_is_exit_code_1(run: Run) -> None:
    result = run(FIX, "repair", "--steps", "1")
    assert result.exit_code == 1
    assert "[steps: 1 steps" in result.stderr


def test_the_best_of_several_attempts_is_applied_and_all_are_kept(work: Path, run: Run, tmp_path: Path) -> None:
    # Attempts ask in any order, so that all say the same: each takes the next answer of one script.
    fix = said("", EDIT)
    result = run([fix, fix, "done", "done"], "repair", "--attempts", "2", "--choose", "tests", "--check", TEST,
                 "--protect", "tests", "--keep", str(tmp_path / "kept"), "--yes")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "+    return n + n\n" in result.stdout
    assert (work / "double.py").read_text().endswith("n + n\n")
    assert sorted(each.name for each in (tmp_path / "kept").iterdir()) == ["1", "2"]


def test_where_no_attempt_is_good_nothing_is_applied(work: Path, run: Run) -> None:
    before = (work / "double.py").read_text()
    result = run(
        ["a", "b"], "repair", "--attempts", "2", "--choose", "verifier", "--check", "echo 0", "--yes", "--json"
    )
    assert result.exit_code == 1
    assert json.loads(result.stdout)["chosen"] is None
    assert (work / "double.py").read_text() == before


def test_without_a_sandbox_and_a_person_no_command_runs(work: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bubblewrap, "missing", staticmethod(lambda: "there is none"))
    result = run([said("", ("shell", {"command": "touch made"})), "I could not"], "make it")
    assert result.exit_code == 0
    assert "no sandbox: there is none" in result.stderr
    assert "did not allow" in result.stderr
    assert not (work / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "what is to be done"),
        (["x", "--choose", "tests"], "several --attempts"),
        (["x", "--attempts", "2"], "how is the best found"),
        (["x", "--attempts", "2", "--choose", "tests"], "--check"),
        (["x", "--attempts", "2", "--choose", "model", "--check", "y"], "--check"),
        (["x", "--format", "int8", "--url", "http://x"], "loaded here"),
        (["x", "--replay", "y"], "goes without TASK"),
        (["x", "--journal", "inside.jsonl"], "in the workspace"),
    ],
)
def test_wrong_usage_is_told(work: Path, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "300")
    result = CliRunner().invoke(app, ["agent", *arguments])
    assert result.exit_code == 2
    assert told in result.stderr
