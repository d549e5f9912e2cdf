from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from baltoro.agent import episode as episodes
from baltoro.agent.budget import Budget
from baltoro.agent.episode import CallResult, Episode, Recorder, Turn
from baltoro.agent.loop import Called, Event, Loop, Settings
from baltoro.agent.tool import AgentTool, tool
from baltoro.chat.messages import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    ChatRequest,
    Finished,
    Likelihoods,
    TextDelta,
    Usage,
)
from baltoro.errors import BaltoroError, EngineError
from baltoro.llm import LLM
from baltoro.scripted import ScriptedLLM
from tests.agent.script import said


def add(a: int, b: int) -> str:
    """Add."""
    return str(a + b)


def run(
    answers: list[object], tools: list[AgentTool] | None = None, **parts: object
) -> tuple[Episode, list[ChatRequest]]:
    model = ScriptedLLM(answers)  # type: ignore[arg-type]
    episode = Loop(model=model, tools=[tool(add)] if tools is None else tools, **parts).run("add")  # type: ignore[arg-type]
    return episode, [each for each in model.requests if isinstance(each, ChatRequest)]


def test_results_go_back_to_the_model_until_it_calls_nothing() -> None:
    episode, requests = run([said("I add.", ("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})), said("3 and 7")])
    assert (episode.end, episode.text) == ("done", "3 and 7")
    assert [len(each.messages) for each in requests] == [2, 5]
    assistant, *results = requests[1].messages[2:]
    assert [call.id for call in assistant.tool_calls] == ["functions.add:0", "functions.add:1"]
    assert [(each.role, each.tool_call_id, each.name, each.content) for each in results] == [
        ("tool", "functions.add:0", "add", "3"),
        ("tool", "functions.add:1", "add", "7"),
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("subtract", {}, "Error: there is no tool subtract; there are add"),
        ("add", {"a": 1}, "'b' is a required property"),
        ("add", "nonsense", "no JSON"),
        ("add", "[" * 5000, "no JSON"),
    ],
)
def test_a_call_that_cannot_run_is_told_to_the_model(name: str, arguments: object, told: str) -> None:
    _, requests = run([said("", (name, arguments)), said("sorry")])
    assert told in str(requests[1].messages[-1].content)


def test_results_are_cut_to_what_settings_allow() -> None:
    def long() -> str:
        return "x" * 10_000

    _, requests = run([said("", ("long", {})), said("")], [tool(long)], settings=Settings(result_chars=100))
    content = str(requests[1].messages[-1].content)
    assert "[... 9,900 of 10,000 characters left out here ...]" in content
    assert len(content) < 200


CALL = [
    CallBegun(0, "functions.add:0", "add"),
    ArgumentsDelta(0, '{"a": 1, "b": 2}'),
    CallEnded(0),
    Finished("tool_calls", Usage(prompt_tokens=1, completion_tokens=1)),
]


@pytest.mark.parametrize(("budget", "end", "steps"), [(Budget(steps=4), "steps", 4), (Budget(tokens=5), "tokens", 3)])
def test_a_budget_ends_the_episode_before_the_next_call(budget: Budget, end: str, steps: int) -> None:
    episode, requests = run([CALL] * 9, budget=budget)
    assert (episode.end, len(episode.turns), len(requests)) == (end, steps, steps)


def test_answers_are_no_longer_than_the_tokens_that_are_left() -> None:
    deltas = [TextDelta("x"), Finished("length", Usage(prompt_tokens=40, completion_tokens=25, cached_tokens=15))]
    episode, requests = run([deltas], budget=Budget(tokens=50))
    assert requests[0].max_tokens == 50
    assert (episode.end, episode.tokens) == ("tokens", 50)
    assert run([deltas], budget=Budget(tokens=51))[0].end == "length"


def test_seconds_are_a_budget_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("baltoro.agent.budget.time.monotonic", lambda: now[0])

    def slow() -> str:
        now[0] += 61
        return "done"

    assert run([said("", ("slow", {})), said("")], [tool(slow)], budget=Budget(seconds=60))[0].end == "seconds"


@pytest.mark.parametrize("budget", [{"steps": 0}, {"tokens": -1}, {"seconds": 0.0}])
def test_a_budget_of_nothing_is_refused(budget: dict[str, int]) -> None:
    with pytest.raises(BaltoroError, match="budget of"):
        Budget(**budget)  # type: ignore[arg-type]


def test_ctrl_c_and_errors_of_the_model_end_a_saved_episode(tmp_path: Path) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    path = tmp_path / "a.jsonl"
    episode, _ = run([said("", ("interrupted", {}))], [tool(interrupted)], recorder=Recorder(path))
    assert episode.end == episodes.read(path).end == "interrupted"
    path = tmp_path / "b.jsonl"
    episode, _ = run([[EngineError("broken")]], recorder=Recorder(path))
    assert (episode.end, episode.error) == ("error", "broken")
    assert episodes.read(path).error == "broken"
    assert run([said("")], cancelled=lambda: True)[0].end == "interrupted"


INTERRUPTED = """
import sys
from pathlib import Path
from baltoro.agent.act import act
from baltoro.agent.loop import Called
from baltoro.agent.sandbox import Unconfined
from baltoro.agent.workspace import Workspace
from baltoro.scripted import ScriptedLLM
from tests.agent.script import said

place = Workspace(Path(sys.argv[1]))
model = ScriptedLLM([said("", ("shell", {"command": "echo begun > begun; sleep 600"}))])
box = Unconfined(place, lambda _: True)
print(act(model, "sleep", place, sandbox=box, journal=Path(sys.argv[2])).end)
"""


def test_ctrl_c_ends_the_command_and_saves_the_episode(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    journal = tmp_path / "episode.jsonl"
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "work"), str(journal)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    end_s = time.monotonic() + 120
    while not (tmp_path / "work" / "begun").exists():
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[0] == "interrupted\n"
    found = episodes.read(journal)
    assert (found.end, len(found.turns), found.turns[0].results) == ("interrupted", 1, [])


def test_a_malformed_call_is_told_and_the_model_may_try_again() -> None:
    broken = [CallBegun(0, "functions.add:0", "add"), Finished("stop", Usage(prompt_tokens=1, completion_tokens=1))]
    episode, requests = run([broken, said("better")])
    assert "malformed" in str(requests[1].messages[-1].content)
    assert episode.end == "done"
    assert run([[*broken[:1], Finished("length", Usage(prompt_tokens=1, completion_tokens=1))]])[0].end == "length"


def test_who_listens_hears_answer_call_and_result_in_their_order() -> None:
    heard: list[Event] = []
    run([said("", ("add", {"a": 1, "b": 2})), said("3")], tell=heard.append)
    assert [type(each) for each in heard] == [Turn, Called, CallResult, Turn]


def test_a_journal_is_the_episode(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "episode.jsonl"
    answers: list[object] = [said("ä 漢", ("add", {"a": 1, "b": 2}), ("nothing", {})), said("3")]
    episode, _ = run(answers, recorder=Recorder(path), facts={"workspace": "/x"})
    assert episodes.read(path) == episode
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BaltoroError, match="is there"):
        Recorder(path)


def test_a_journal_cut_anywhere_is_the_beginning_of_the_episode(tmp_path: Path) -> None:
    path = tmp_path / "episode.jsonl"
    episode, _ = run([said("", ("add", {"a": 1, "b": 2})), said("3")], recorder=Recorder(path))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole), 37):
        path.write_bytes(whole[:size])
        found = episodes.read(path)
        assert found.end is None
        assert found.messages == episode.messages[: len(found.messages)]
    for size in (0, 10, first - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BaltoroError, match="no journal of an episode"):
            episodes.read(path)
    path.write_text(json.dumps({"type": "episode", "version": 99}) + "\n")
    with pytest.raises(BaltoroError, match="version 99"):
        episodes.read(path)


def test_an_episode_has_the_ids_and_log_probs_that_were_generated(tmp_path: Path) -> None:
    path = tmp_path / "episode.jsonl"
    settings = Settings(seed=1, logprobs=True, answer_tokens=60)
    with closing(LLM.open("nano", threads=1)) as llm:
        episode = Loop(
            model=llm, tools=[tool(add)], settings=settings, budget=Budget(steps=2), recorder=Recorder(path)
        ).run("Who are you?")
        request = ChatRequest(
            messages=tuple(episode.messages[:2]), tools=(tool(add).declared,), seed=1, max_tokens=60, logprobs=0
        )
        scored = [each.chosen for each in llm.stream(request) if isinstance(each, Likelihoods)]
        num_prompt = llm.count_tokens(request)
    answer = episode.turns[0].answer
    assert answer.token_ids == tuple(each.token for each in scored)
    assert answer.logprobs == tuple(each.logprob for each in scored)
    assert len(answer.prompt_ids) == num_prompt
    assert [each.answer for each in episodes.read(path).turns] == [each.answer for each in episode.turns]
