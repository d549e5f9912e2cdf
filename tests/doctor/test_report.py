"""`baltoro doctor` from end to end: nano, packed, with room for some of its experts."""

from __future__ import annotations

from pathlib import Path

import pytest

from baltoro.doctor import report
from baltoro.errors import ContextError
from baltoro.weights.experts import HOT
from baltoro.weights.quantize.run import quantize


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packed")
    quantize("nano", directory, "int8")
    return directory


def test_a_streamed_model_is_measured_judged_and_left_as_it_was(packed: Path) -> None:
    said: list[str] = []
    found, lines = report.of_model(
        str(packed), tokens=6, threads=1, format=None, expert_memory=500_000, say=said.append
    )
    facts, verdict = found["facts"], found["verdict"]
    store = facts["store"]
    assert 2 <= store["slots"] < store["all_slots"] == 64
    assert store["hits"] + store["misses"] == 6 * 4 * 2  # tokens, layers with experts, experts of a token
    guesses = 6 * 4  # at most one a layer and token
    assert store["bytes_read"] <= (store["misses"] + guesses) * store["block_bytes"]
    replayed = facts["replays"][0]
    assert replayed["slots"] == store["slots"]
    assert replayed["misses_per_token"] * 6 == pytest.approx(store["misses"], abs=2)  # the store reads ahead
    assert facts["replays"][-2]["hit_rate"] >= replayed["hit_rate"]
    assert facts["disk"]["read_gbps"] > 0
    assert (facts["threads"], facts["format"]) == (1, "int8")
    assert verdict["tokens_per_s"] == pytest.approx(6 / facts["seconds"])
    printed = "\n".join(lines)
    assert "tokens/s measured" in printed and f"experts   {store['slots']} of 64 in memory" in printed
    assert said[0].startswith("loading")
    assert not (packed / HOT).exists()  # its prompt is no user's


def test_a_plain_model_has_no_disk_in_its_limits(tiny_checkpoint: Path) -> None:
    found, lines = report.of_model(
        str(tiny_checkpoint), tokens=2, threads=1, format=None, expert_memory=None, say=lambda _: None
    )
    assert found["facts"]["format"] == "float32"
    assert (found["facts"]["store"], found["facts"]["disk"], found["facts"]["replays"]) == (None, None, ())
    assert {each["resource"] for each in found["verdict"]["limits"]} <= {"memory", "compute"}
    assert "experts   all in memory" in "\n".join(lines)


def test_more_tokens_than_the_context_holds_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ContextError, match="the context holds"):
        report.of_model(
            str(tiny_checkpoint), tokens=10**6, threads=1, format=None, expert_memory=None, say=lambda _: None
        )
