"""The whole of `baltoro verify`: our server with random weights, and a run that is killed with -9."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from baltoro.eval.budget import Budget
from baltoro.eval.verify import metrics, report, samples
from baltoro.eval.verify.run import Order, recount, run
from baltoro.llm import LLM
from baltoro.server.app import Served, create_app
from tests.eval.endpoints import Counter
from tests.server.conftest import serving

BALTORO = [sys.executable, "-c", "from baltoro.cli import main; main()"]


def test_our_server_with_random_weights_has_a_schema_accuracy_of_100_percent(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    own = [each for each in samples.own({"tool_choice": "required", "max_tokens": 200}) if len(str(each.body)) < 1100]
    llm = LLM.open(tiny_checkpoint, threads=1, max_context=2048)
    with closing(llm), serving(create_app(Served(llm=llm, names=("tiny",)))) as server:
        order = Order(
            url=server.url, model=None, key=None, samples=own[:16], reference=None, suites=("calls",),
            tokenizer=llm.tokenizer, out=tmp_path,
        )  # fmt: skip
        found = asyncio.run(run(order))
    assert found["failure_count"] == 0
    assert found["finish_tool_calls"] >= 5, "random weights may run into max_tokens, but not always"
    assert found["schema_accuracy"] == 1.0
    again = recount(tmp_path / "results.jsonl", metrics.read(tmp_path / "results.jsonl"))
    assert again["schema_accuracy"] == again["tool_call_f1"] == 1.0
    assert {n: v for n, v in again.items() if n in metrics.summary([], "")} == {
        n: v for n, v in found.items() if n in metrics.summary([], "")
    }
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"'(]?https?:", page), "nothing is loaded from elsewhere"


def test_a_run_that_is_killed_goes_on_where_it_was_and_pays_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": str(i)}]}) + "\n" for i in range(20)))
    counter = Counter()
    counter.hang = 8
    with counter.serve() as url:
        command = [*BALTORO, "verify", url, "--model", "m", "--samples", str(file), "--suite", "calls", "--json",
                   "--concurrency", "1", "--out", str(tmp_path / "out")]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert counter.silent.wait(120)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asked = [body["messages"][0]["content"] for body in counter.asked]
        assert sorted(asked, key=int) == sorted([*map(str, range(20)), asked[7]], key=int), (
            "all once, but the one cut off"
        )
        found = json.loads(done.stdout)
        assert (found["success_count"], found["finish_tool_calls"], found["schema_accuracy"]) == (20, 20, 0.0)
        subprocess.run(command, check=True, capture_output=True)
        assert len(counter.asked) == 41, "a run that is complete is made anew"


def test_a_spent_budget_says_what_is_left_and_more_of_it_goes_on(tmp_path: Path) -> None:
    counter = Counter()
    own = samples.own({"max_tokens": 5, "stream": False})[:10]

    def order(url: str, tokens: int) -> Order:
        return Order(url=url, model="m", key=None, samples=own, reference=None, suites=("calls",), out=tmp_path,
                     concurrency=1, budget=Budget(most_tokens=tokens))  # fmt: skip

    with counter.serve() as url:
        first = asyncio.run(run(order(url, 64)))  # an answer takes 15
        assert (first["success_count"], len(counter.asked)) == (4, 4)
        assert any("6 of 10 samples were not asked" in line for line in report.lines(first))
        second = asyncio.run(run(order(url, 1000)))
        assert (second["success_count"], len(counter.asked)) == (10, 10)
        assert not second["open"]


@pytest.mark.parametrize(
    "arguments", [["--suite", "cals"], ["--price-input", "1"], ["--extra-body", "[1]"], ["--extra-body", "{"]]
)
def test_wrong_usage_is_told_before_anybody_is_asked(arguments: list[str]) -> None:
    done = subprocess.run([*BALTORO, "verify", "http://127.0.0.1:9", *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
