"""`baltoro eval`: killed with -9 twice it ends as if nothing had been; what it prints and refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from baltoro.eval import card
from tests.eval import questions
from tests.eval.endpoints import Counter, document

BALTORO = [sys.executable, "-c", "from baltoro.cli import main; main()"]


def answer(body: dict[str, Any]) -> tuple[int, Any]:
    content, calls = questions.right(body)
    return 200, document(content, calls)


def test_a_run_that_is_killed_twice_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    data = questions.write(tmp_path / "data")
    tasks = [word for name in ("gsm8k", "mmlu", "bfcl") for word in ("--task", name)]
    counter = Counter(answer)

    def command(out: str) -> list[str]:
        return [*BALTORO, "eval", "run", "--url", url, "--name", "kimi", "--data", str(data),
                "--out", str(tmp_path / out), "--concurrency", "1",
                "--price-input", "1", "--price-output", "2", "--json", *tasks]  # fmt: skip

    with counter.serve() as url:
        whole = json.loads(subprocess.run(command("whole"), capture_output=True, text=True, check=True).stdout)
        total = len(counter.asked)
        assert total == 2 + 2 + 10
        for hang in (total + 4, total + 9):
            counter.hang = hang
            counter.silent.clear()
            process = subprocess.Popen(command("cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            assert counter.silent.wait(120)
            process.send_signal(signal.SIGKILL)
            process.wait()
        counter.hang = None
        cut = json.loads(subprocess.run(command("cut"), capture_output=True, text=True, check=True).stdout)
    assert cut == whole
    assert len(counter.asked) == 2 * total + 2, "beside the two that were cut off nothing is asked twice"
    assert float(whole["results"][0]["cost"]) == pytest.approx(2 * (10 * 1 + 5 * 2) / 1e6)
    assert "<svg" in (tmp_path / "cut" / "results.html").read_text()


def test_all_32_benchmarks_of_the_card_have_a_name_a_command_and_their_published_numbers() -> None:
    rows = card.benchmarks()
    assert len(rows) == len({row.slug for row in rows}) == len(card.published()) == 32
    for row in rows:
        assert card.find(row.slug) == row
        assert "Kimi K2 Instruct" in card.published()[f"{row.benchmark}|{row.metric}"]
        line = card.command(row, "http://host:8000/v1", "a model; rm -rf /")
        assert "rm -rf" not in line or "'a model; rm -rf /'" in line, "names reach the shell quoted"
        assert "{" not in line.replace("'{\"", "").replace("\"}'", "") or row.runner == "evalscope"


def test_protocols_are_the_cards() -> None:
    """Avg@k is the metric's own number; 8,192 tokens but for SWE-bench agentless; Tau2 and ACEBench at 0."""
    for row in card.benchmarks():
        stated = int(row.metric.removeprefix("Avg@")) if row.metric.startswith("Avg@") else 1
        assert row.samples == stated, row
        assert row.max_tokens == (16384 if "Agentless" in row.benchmark else 8192), row
        assert row.temperature == (0.0 if row.benchmark.startswith(("Tau2", "AceBench")) else 0.6), row


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["delegate", "tau2", "--url", "http://a"], "physics"),
        (["delegate", "zeroeval", "--url", "http://a"], "another package"),
        (["delegate", "swe-bench-verified", "--url", "http://a"], "several benchmarks"),
        (["delegate", "mmlu-pro", "--url", "http://a", "--go"], "pip install 'evalscope'"),
        (["run", "--data", "no-such-folder"], "is no folder"),
        (["run", "--data", ".", "--task", "gsm8k"], "has no evals/gsm8k"),
        (["run", "--data", ".", "--task", "gsm8k", "--task", "mmlu"], "gsm8k, evals/mmlu"),
        (["run", "--data", ".", "--task", "gsm9k"], "no task is called gsm9k"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_with_what_to_do(arguments: list[str], told: str) -> None:
    done = subprocess.run([*BALTORO, "eval", *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert told in done.stderr
