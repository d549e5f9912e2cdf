"""The trace of steps is JSON that nests, when it is closed and when the process is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from baltoro.engine.engine import Engine
from baltoro.engine.timeline import Timeline
from baltoro.errors import EngineError
from tests.engine.fake import HashModel, engine_config, request

WAITS = """
import sys, time
from pathlib import Path
from baltoro.engine.engine import Engine
from baltoro.engine.timeline import Timeline
from tests.engine.fake import HashModel, engine_config, request
engine = Engine(HashModel(), engine_config(), timeline=Timeline(Path(sys.argv[1])))
for number in range(3):
    req, heard = request([1, number])
    engine.submit(req)
    heard.wait()
print("ready", flush=True)
time.sleep(60)
"""


def check(events):
    """Slices of the engine's thread lie inside each other or apart; every track opens and closes as brackets do."""
    slices = [event for event in events if event["ph"] == "X"]
    steps = [event for event in slices if event["name"] == "step"]
    end = -1.0
    for step in steps:
        assert step["ts"] >= end - 1e-3, "two steps at once"
        end = step["ts"] + step["dur"]
        assert set(step["args"]) == {"sequences", "tokens", "logits"}
    inner = [event for event in slices if event["name"] != "step"]
    assert len(inner) == 4 * len(steps)
    for place, event in enumerate(inner):
        step = steps[place // 4]
        assert step["ts"] - 1e-3 <= event["ts"]
        assert event["ts"] + event["dur"] <= step["ts"] + step["dur"] + 1e-3
        assert event["name"] == ("schedule", "pack", "forward", "sample")[place % 4]
    open_ = {}
    for event in events:
        if event["ph"] == "b":
            open_.setdefault(event["id"], []).append(event)
        elif event["ph"] == "e":
            begun = open_[event["id"]].pop()
            assert (begun["name"], begun["tid"]) == (event["name"], event["tid"])
            assert begun["ts"] <= event["ts"]
    assert open_
    assert not any(open_.values())
    return steps, set(open_)


def test_steps_nest_and_requests_open_and_close(tmp_path):
    path = tmp_path / "steps.json"
    with Engine(HashModel(), engine_config(), timeline=Timeline(path)) as engine:
        pairs = [request([1, 2, number]) for number in range(5)]
        for req, _ in pairs:
            engine.submit(req)
        for _, heard in pairs:
            heard.wait()
        cancelled, heard = request([4], max_tokens=900)
        engine.submit(cancelled)
        engine.cancel(cancelled)
        heard.wait()
    events = json.loads(path.read_text())
    steps, numbers = check(events)
    assert len(steps) == engine.statistics().steps
    assert numbers == {req.id for req, _ in [*pairs, (cancelled, heard)]}
    told = {event["id"]: event["args"] for event in events if event.get("cat") == "request" and "args" in event}
    assert {told[req.id]["finish"] for req, _ in pairs} == {"length"}
    assert told[cancelled.id]["finish"] == "cancelled"
    counted = {event["name"] for event in events if event["ph"] == "C"}
    assert counted == {"sequences", "waiting", "free_pages"}


def test_a_killed_process_leaves_all_but_the_closing_bracket(tmp_path):
    path = tmp_path / "steps.json"
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    text = path.read_text()
    assert not text.rstrip().endswith("]")
    steps, numbers = check(json.loads(text + "]"))
    assert len(steps) >= 20  # of 24; the last may not be there yet, and guesses spare some
    assert len(numbers) == 3


def test_a_file_that_is_full_is_closed_and_the_engine_goes_on(tmp_path, caplog):
    path = tmp_path / "steps.json"
    with Engine(HashModel(), engine_config(), timeline=Timeline(path, most_bytes=3000)) as engine:
        req, heard = request([1, 2], max_tokens=100)
        engine.submit(req)
        assert len(heard.wait().tokens) == 100
        assert engine.healthy
    assert json.loads(path.read_text())
    assert path.stat().st_size < 6000
    assert "full size" in caplog.text


def test_a_file_that_is_there_is_left_alone(tmp_path):
    path = tmp_path / "steps.json"
    path.write_text("mine")
    with pytest.raises(EngineError, match="is there already"):
        Timeline(path)
    assert path.read_text() == "mine"
    with pytest.raises(EngineError, match="cannot be written"):
        Timeline(tmp_path / "nowhere" / "steps.json")
