"""All tasks in one run: a perfect model, nano, runs that are interrupted, and what stands beside the scores."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from baltoro.errors import BaltoroError
from baltoro.eval import compare, evaluate
from baltoro.eval.budget import Budget
from baltoro.eval.code import Runner
from baltoro.eval.display import Display
from baltoro.eval.endpoint import Endpoint, loaded
from baltoro.eval.evaluate import Protocol, Result
from baltoro.eval.interval import interval
from baltoro.eval.ledger import Ledger
from baltoro.eval.offline import TASKS, chosen
from baltoro.llm import LLM
from tests.eval import questions
from tests.eval.endpoints import Scripted, document

PROTOCOL = Protocol(samples=1, max_tokens=30, temperature=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions.write(tmp_path_factory.mktemp("data"))


def run(
    client: Any,
    model: str,
    data: Path,
    out: Path,
    names: list[str],
    protocol: Protocol = PROTOCOL,
) -> tuple[list[Result], list[str]]:
    async def go() -> tuple[list[Result], list[str]]:
        with Ledger(out / "ledger.jsonl", {"model": model}) as ledger, Display(Budget()) as display:
            asking = Endpoint(client, model, ledger=ledger, concurrency=1)
            work = evaluate.Work(endpoint=asking, out=out, data=data, runner=Runner.open(unsafe=True), display=display,
                                 length_field="max_completion_tokens")  # fmt: skip
            return await evaluate.run(work, [(task, protocol) for task in chosen(names)[0]])

    return asyncio.run(go())


def perfect(body: dict[str, Any]) -> tuple[int, Any]:
    content, calls = questions.right(body)
    return 200, document(content, calls)


def test_a_perfect_model_is_right_everywhere_but_where_no_function_fits(data: Path, tmp_path: Path) -> None:
    results, open_ends = run(Scripted(perfect).client(), "kimi", data, tmp_path, [])
    assert not open_ends
    assert {each.task for each in results} == {each.name for each in chosen([])[0]}
    wrong = {f"{each.task} {kind}" for each in results for kind, share in each.kinds.items() if share < 1}
    assert wrong == {"bfcl irrelevance", "bfcl live_irrelevance", "acebench special_error_param",
                     "acebench special_incomplete", "acebench special_irrelevant"}  # fmt: skip


def test_a_model_that_only_talks_is_right_only_there(data: Path, tmp_path: Path) -> None:
    scripted = Scripted(lambda _: (200, document("I do not know, sorry.")))
    results, _ = run(scripted.client(), "kimi", data, tmp_path, [])
    good = {f"{each.task} {kind}" for each in results for kind, share in each.kinds.items() if share > 0}
    assert good == {"bfcl irrelevance", "bfcl live_irrelevance", "acebench special_error_param",
                    "acebench special_incomplete", "acebench special_irrelevant"}  # fmt: skip


def test_nano_runs_all_tasks_and_interrupted_twice_gives_the_same_result_and_page(data: Path, tmp_path: Path) -> None:
    names = [name for name in TASKS if name not in ("humaneval-cpp", "humaneval-java", "humaneval-js")]
    llm = LLM.open("nano", threads=1, max_context=2048, loose_schemas=True)

    def all_of(out: Path, tokens: int | None = None) -> tuple[list[Result], list[str], int]:
        async def go() -> tuple[list[Result], list[str], int]:
            async with loaded(llm) as (client, model):
                budget = Budget(most_tokens=tokens)
                with Ledger(out / "ledger.jsonl", {"model": model}) as ledger, Display(budget) as display:
                    asking = Endpoint(client, model, ledger=ledger, budget=budget, concurrency=4)
                    work = evaluate.Work(endpoint=asking, out=out, data=data, runner=Runner.open(unsafe=True),
                                         display=display, length_field="max_completion_tokens")  # fmt: skip
                    results, open_ends = await evaluate.run(work, [(task, PROTOCOL) for task in chosen(names)[0]])
                    return results, open_ends, asking.paid

        return asyncio.run(go())

    try:
        whole, _, paid = all_of(tmp_path / "whole")
        tokens = sum(each.prompt_tokens + each.completion_tokens for each in whole)
        first = all_of(tmp_path / "cut", tokens=tokens // 3)
        second = all_of(tmp_path / "cut", tokens=2 * tokens // 3)
        third = all_of(tmp_path / "cut")
    finally:
        llm.close()
    assert first[1]
    assert second[1]
    assert not third[1]
    assert len(first[0]) < len(second[0]) < len(whole)
    assert third[0] == whole
    assert first[2] + second[2] + third[2] == paid, "nothing is asked twice"
    for name in names:
        records = [(tmp_path / out / f"{name}.records.jsonl").read_text() for out in ("whole", "cut")]
        assert records[0] == records[1]
    page = compare.html("nano", whole, [])
    assert page.count("<svg") == 1 + sum(bool(compare.published(each)) for each in whole)
    assert "69.6" in page, "K2's AIME 2024"
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"'(]?https?:", page)


def test_more_samples_pay_only_what_is_new(data: Path, tmp_path: Path) -> None:
    scripted = Scripted(perfect)
    run(scripted.client(), "kimi", data, tmp_path, ["gsm8k"])
    assert len(scripted.asked) == 2
    three = Protocol(samples=3, max_tokens=30, temperature=0.0)
    (result,), _ = run(scripted.client(), "kimi", data, tmp_path, ["gsm8k"], three)
    assert len(scripted.asked) == 6
    assert len({body["seed"] for body in scripted.asked}) == 6, "samples have seeds of their own"
    assert (result.score, result.questions) == (1.0, 2)


def test_a_refused_question_is_wrong_and_an_unanswered_one_gives_no_score(data: Path, tmp_path: Path) -> None:
    scripted = Scripted(lambda body: (400, {"error": "too long"}) if "998" in json.dumps(body) else perfect(body))
    (result,), open_ends = run(scripted.client(), "kimi", data, tmp_path / "a", ["gsm8k"])
    assert (result.score, result.refused, open_ends) == (0.5, 1, [])
    broken = Scripted(lambda body: (500, {}) if "998" in json.dumps(body) else perfect(body))

    async def go() -> tuple[list[Result], list[str]]:
        with Ledger(tmp_path / "b" / "ledger.jsonl", {}) as ledger, Display(Budget()) as display:
            asking = Endpoint(broken.client(), "kimi", ledger=ledger, retries=0)
            work = evaluate.Work(
                endpoint=asking, out=tmp_path / "b", data=data, runner=Runner(walled=False), display=display
            )
            return await evaluate.run(work, [(TASKS["gsm8k"], PROTOCOL)])

    results, open_ends = asyncio.run(go())
    assert results == []
    assert "1 requests had no answer" in open_ends[0]


def test_the_protocol_hash_changes_with_everything_that_a_score_depends_on(data: Path, tmp_path: Path) -> None:
    task = TASKS["gsm8k"]
    items = task.items(data / task.data)
    hashes = [PROTOCOL.hash(task, items), PROTOCOL.hash(task, items[:1]), PROTOCOL.hash(TASKS["aime24"], items)]
    hashes += [
        Protocol(**{"samples": 1, "max_tokens": 30, "temperature": 0.0, **change}).hash(task, items)
        for change in ({"samples": 2}, {"max_tokens": 31}, {"temperature": 0.1}, {"limit": 2})
    ]
    assert len(set(hashes)) == len(hashes)
    assert PROTOCOL.hash(task, task.items(data / task.data)) == hashes[0]
    for name in TASKS:
        each = TASKS[name]
        assert re.fullmatch("[0-9a-f]{16}", PROTOCOL.hash(each, each.items(data / each.data)))


def test_answers_to_one_problem_are_no_independent_trials() -> None:
    same = interval([[True] * 64] * 5 + [[False] * 64] * 5)
    single = interval([[True]] * 5 + [[False]] * 5)
    assert same.share == single.share == 0.5
    assert same.total == 10
    assert same.high - same.low > 0.5, "64 answers that agree tell no more than one"
    assert interval([[True, False]]).low == 0.0
    spread = interval([[True, False]] * 10)
    assert (spread.low, spread.high) == (0.5, 0.5), "problems that are all alike leave nothing open"


def test_questions_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "evals/gsm8k").mkdir(parents=True)
    with pytest.raises(BaltoroError, match=r"test\.jsonl"):
        run(Scripted(perfect).client(), "kimi", tmp_path, tmp_path / "out", ["gsm8k"])
    (tmp_path / "evals/gsm8k/test.jsonl").write_text("")
    with pytest.raises(BaltoroError, match="has no questions"):
        run(Scripted(perfect).client(), "kimi", tmp_path, tmp_path / "out", ["gsm8k"])
    with pytest.raises(BaltoroError, match="no task is called gsm9k"):
        chosen(["gsm9k"])
