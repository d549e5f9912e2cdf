from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from baltoro.agent import episode as episodes
from baltoro.agent.attempts import Plan, attempt
from baltoro.agent.budget import Budget
from baltoro.agent.choose import Judge, by_model, by_tests, by_verifier
from baltoro.agent.commands import Commands
from baltoro.agent.files import Files
from baltoro.agent.loop import Settings
from baltoro.agent.replay import replay
from baltoro.agent.sandbox import Unconfined
from baltoro.agent.workspace import Workspace
from baltoro.answer import Answer
from baltoro.chat.messages import ChatRequest
from baltoro.errors import BaltoroError
from baltoro.scripted import ScriptedLLM
from tests.agent.script import said


class Several:
    """Says to attempt n what the nth script has; they are told apart by their seeds."""

    name = "several"

    def __init__(self, *scripts: list[Any]) -> None:
        self._models = [ScriptedLLM(script) for script in scripts]

    def complete(self, request: ChatRequest) -> Answer:
        assert request.seed is not None
        return self._models[request.seed // 1000 - 1].complete(request)


def writes(text: str, path: str = "n.txt") -> list[str]:
    return [said("", ("write", {"path": path, "content": text})), f"wrote {text.strip()}"]


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "n.txt").write_text("0\n")
    (tmp_path / "work" / "test.sh").write_text("grep -q '^2$' n.txt\n")
    (tmp_path / "copies").mkdir()
    return Workspace(tmp_path / "work", protected=("test.sh",))


def plan(count: int, judge: Judge, **parts: Any) -> Plan:
    return Plan(
        count=count, judge=judge, sandbox=lambda each: Unconfined(each, lambda _: True), settings=Settings(seed=0),
        budget=Budget(), **parts,
    )  # fmt: skip


def test_the_attempt_whose_tests_pass_comes_into_the_workspace(work: Workspace, tmp_path: Path) -> None:
    model = Several(writes("1\n"), writes("2\n"), writes("3\n"))
    journals = [tmp_path / f"{number}.jsonl" for number in range(4)]
    found, best = attempt(
        model, "two", work, tmp_path / "copies", plan(3, by_tests("sh test.sh"), journal=journals.__getitem__)
    )
    assert [each.verdict.good for each in found] == [False, True, False]
    assert best is found[1]
    assert best.diff == "--- a/n.txt\n+++ b/n.txt\n@@ -1 +1 @@\n-0\n+2\n"
    assert (work.root / "n.txt").read_text() == "2\n"
    assert [episodes.read(each).text for each in journals[1:]] == ["wrote 1", "wrote 2", "wrote 3"]
    assert [(tmp_path / "copies" / str(n) / "n.txt").read_text() for n in (1, 2, 3)] == ["1\n", "2\n", "3\n"]


def test_where_none_is_good_the_workspace_is_as_it_was(work: Workspace, tmp_path: Path) -> None:
    model = Several(writes("1\n"), writes("3\n"))
    assert attempt(model, "two", work, tmp_path / "copies", plan(2, by_tests("sh test.sh")))[1] is None
    assert (work.root / "n.txt").read_text() == "0\n"


def test_an_attempt_that_changes_the_tests_has_lost(work: Workspace, tmp_path: Path) -> None:
    cheat = [
        said("", ("shell", {"command": "echo exit 0 > test.sh"})),
        "done",
    ]  # no sandbox here that keeps it from that
    found, best = attempt(Several(cheat, cheat), "two", work, tmp_path / "copies", plan(2, by_tests("sh test.sh")))
    assert best is None
    assert "protected" in found[0].verdict.reason


def test_a_verifier_s_number_decides_and_of_equals_the_shorter_change(work: Workspace, tmp_path: Path) -> None:
    model = Several(writes("5\n"), writes("7\n\n\n"), writes("7\n"), writes("-1\n"))
    found, best = attempt(model, "much", work, tmp_path / "copies", plan(4, by_verifier("echo score; head -1 n.txt")))
    assert [each.verdict.score for each in found] == [5, 7, 7, -1]
    assert best is found[2]


@pytest.mark.parametrize("command", ["echo much", "true", "echo nan", "echo 1e999999x"])
def test_a_verifier_without_a_number_is_an_error(work: Workspace, tmp_path: Path, command: str) -> None:
    with pytest.raises(BaltoroError, match="last line"):
        attempt(Several(writes("1\n")), "much", work, tmp_path / "copies", plan(1, by_verifier(command)))


def test_a_model_s_score_decides_and_it_is_shown_task_and_change(work: Workspace, tmp_path: Path) -> None:
    class Scoring:
        name = "scoring"

        def __init__(self) -> None:
            self.requests: list[ChatRequest] = []

        def complete(self, request: ChatRequest) -> Answer:
            self.requests.append(request)
            score = 9 if "+2" in str(request.messages[-1].content) else 3
            return ScriptedLLM([json.dumps({"reason": "so", "score": score})]).complete(request)

    judge = Scoring()
    model = Several(writes("1\n"), writes("2\n"), ["nothing to do"])
    found, best = attempt(model, "write two", work, tmp_path / "copies", plan(3, by_model(judge)))
    assert [each.verdict.score for each in found] == [3, 9, 0]
    assert best is found[1]
    assert len(judge.requests) == 2  # an empty change needs no judge
    asked = str(judge.requests[0].messages[-1].content)
    assert "write two" in asked
    assert "wrote " in asked
    assert judge.requests[0].answer_format is not None


@pytest.mark.parametrize("answer", ["ten", "{}", '{"reason": "x", "score": "high"}', "[]"])
def test_a_model_that_gives_no_score_chooses_nothing(work: Workspace, tmp_path: Path, answer: str) -> None:
    found, best = attempt(
        Several(writes("1\n")), "x", work, tmp_path / "copies", plan(1, by_model(ScriptedLLM([answer])))
    )
    assert best is None
    assert "no score" in found[0].verdict.reason


# ── replay ───────────────────────────────────────────────────────────────────────────────────────


def test_an_episode_replayed_is_the_same_until_the_folder_is_another(work: Workspace, tmp_path: Path) -> None:
    def tools(place: Workspace) -> list[Any]:
        return [*Files(place).tools(), *Commands(Unconfined(place, lambda _: True)).tools()]

    script = [said("", ("shell", {"command": "pwd; cat n.txt"}), ("read", {"path": "nothing"})), *writes("4\n"),
              ]  # fmt: skip
    journal = tmp_path / "e.jsonl"
    attempt(Several(script), "x", work, tmp_path / "copies", plan(1, by_tests("true"), journal=lambda _: journal))
    then = episodes.read(journal)
    for number, text in enumerate(["0\n", "1\n"]):
        (tmp_path / f"again{number}").mkdir()
        again = Workspace(tmp_path / f"again{number}")
        (again.root / "n.txt").write_text(text)
        now, found = replay(then, tools(again), again.root)
        assert (again.root / "n.txt").read_text() == "4\n"
        assert now.end == "done"
        assert [(each.step, each.call.name) for each in found] == ([] if text == "0\n" else [(1, "shell")])
    with pytest.raises(BaltoroError, match="tools python, shell"):
        replay(then, Files(work).tools(), work.root)
