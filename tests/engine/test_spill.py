"""The engine with a prefix cache, in memory and on disk: what is said never changes, only what is computed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from baltoro.engine.engine import Engine
from baltoro.engine.prefix_files import PageShape, PrefixFiles
from baltoro.engine.request import FinishReason
from baltoro.errors import DeadlineError, EngineError
from baltoro.kernels.reader import Reader
from tests.engine import fake
from tests.engine.fake import HashModel, engine_config, expected, request
from tests.engine.test_engine import Fence, settle

SHAPE = PageShape(fingerprint=b"f" * 32, page_tokens=fake.PAGE_TOKENS, page_bytes=fake.PAGE_TOKENS * 4 * 4)
SYSTEM = [7, 1, 9, 3, 7, 7, 2, 0, 1, 1, 3, 8, 4, 4, 6, 5, 9, 2, 2, 1]  # five pages


def files(directory, count=1000):
    return PrefixFiles(directory, SHAPE, budget_bytes=count * SHAPE.file_bytes)


def ask(engine, prompt, **sampling):
    """Its tokens are right; how many of the prompt's were not computed."""
    req, listener = request(prompt, **sampling)
    engine.submit(req)
    assert listener.wait().tokens == expected(prompt, req.sampling)
    return listener.steps[-1].cached_tokens


def test_a_prompt_that_begins_as_another_did_computes_the_rest_alone():
    model = HashModel()
    with Engine(model, engine_config()) as engine:
        assert ask(engine, [*SYSTEM, 5]) == 0
        assert ask(engine, [*SYSTEM, 6]) == 20
        assert [len(batch.ids) for batch in model.batches if len(batch.ids) > 1] == [21]
        assert ask(engine, SYSTEM) == 16, "one token is always computed"
        assert ask(engine, [*SYSTEM[:10], 0, 0, 0]) == 8, "whole pages only"
        assert ask(engine, [0, *SYSTEM]) == 0
        seen = engine.statistics()
        assert (seen.prefix_hits, seen.reused_tokens, seen.prefix_pages) == (3, 44, 5 + 1 + 5)
        settle(engine, running=0, free_pages=64)


def test_what_was_generated_is_not_used_again_for_it_was_computed_in_another_form():
    with Engine(HashModel(), engine_config()) as engine:
        req, listener = request(SYSTEM, max_tokens=12)
        engine.submit(req)
        answer = listener.wait().tokens
        assert ask(engine, [*SYSTEM, *answer, 1, 2]) == 20
        assert ask(engine, [*SYSTEM, *answer, 1, 3]) == 32


def test_a_second_request_shares_what_the_first_has_computed_so_far():
    fence = Fence(3)
    with Engine(HashModel(fence), engine_config(prefill_tokens=8)) as engine:
        (first, heard), (second, heard_second) = request([*SYSTEM, 5]), request([*SYSTEM, 6])
        engine.submit(first)
        assert fence.reached.wait(10)
        engine.submit(second)
        fence.go.set()
        assert heard.wait().tokens == expected(first.prompt, first.sampling)
        assert heard_second.wait().tokens == expected(second.prompt, second.sampling)
        assert heard_second.steps[0].cached_tokens == 20


def test_switched_off_it_shares_nothing(tmp_path):
    with Engine(HashModel(), engine_config(prefix_cache=False)) as engine:
        assert ask(engine, [*SYSTEM, 5]) == ask(engine, [*SYSTEM, 5]) == 0
        assert engine.statistics().prefix_pages == 0
    with pytest.raises(EngineError, match="switched off"):
        Engine(HashModel(), engine_config(prefix_cache=False), files=files(tmp_path))


def conversations(chance, count):
    """Prompts that go on where earlier ones ended, as agents' do."""
    prompts = [[]]
    for _ in range(count):
        begun = chance.choice(prompts)
        prompts.append([*begun, *(chance.randrange(fake.VOCAB) for _ in range(chance.randint(1, 15)))][:60])
    return prompts[1:]


@pytest.mark.parametrize("changes", [{}, {"prefill_tokens": 3}, {"max_running": 2}])
def test_answers_are_right_through_sharing_eviction_preemption_cancels_and_restarts(tmp_path, changes):
    chance = random.Random(1)
    restored = evicted = preemptions = reused = 0
    for _ in range(3):
        with Engine(
            HashModel(), engine_config(24, max_context=90, **({"max_running": 6} | changes)), files=files(tmp_path, 40)
        ) as engine:
            pairs = [
                request(prompt, max_tokens=chance.randint(1, 20), temperature=chance.choice([0.0, 1.0]), seed=index)
                for index, prompt in enumerate(conversations(chance, 60))
            ]
            for req, _ in pairs:
                engine.submit(req)
                if chance.random() < 0.1:
                    engine.cancel(req)
            for req, listener in pairs:
                truth = expected(req.prompt, req.sampling)
                if listener.wait().finish is FinishReason.CANCELLED:
                    truth = truth[: len(listener.tokens)]
                assert listener.tokens == truth
                assert listener.steps[-1].cached_tokens < len(req.prompt)
            settle(engine, running=0, waiting=0, free_pages=24)
            seen = engine.statistics()
            restored += seen.restored_bytes
            evicted += seen.evicted_pages
            preemptions += seen.preemptions
            reused += seen.reused_tokens
        assert len(list(tmp_path.glob("pages/*.page"))) <= 40
    assert restored and evicted and reused
    assert preemptions or changes.get("max_running") == 2, "this case tests nothing"
    if changes.get("max_running") == 2:
        assert evicted > 24


def test_after_a_restart_the_prefix_is_read_and_not_computed(tmp_path):
    with Engine(HashModel(), engine_config(), files=files(tmp_path)) as engine:
        assert ask(engine, [*SYSTEM, 5]) == 0
    model = HashModel()
    with Engine(model, engine_config(), files=files(tmp_path)) as engine:
        assert ask(engine, [*SYSTEM, 6]) == 20
        assert [len(batch.ids) for batch in model.batches] == [1] * 8
        assert ask(engine, [*SYSTEM, 7]) == 20
        seen = engine.statistics()
        assert (seen.restored_bytes, seen.spilled_bytes) == (5 * SHAPE.file_bytes, 0), "read once, and written once"
        assert seen.prefix_hits == 2


def test_what_memory_has_no_room_for_comes_back_from_disk(tmp_path):
    chance = random.Random(2)
    prompts = [[*(chance.randrange(fake.VOCAB) for _ in range(30))] for _ in range(6)]
    with Engine(HashModel(), engine_config(12), files=files(tmp_path)) as engine:
        for prompt in prompts:
            ask(engine, prompt)
        evicted = engine.statistics().evicted_pages
        assert evicted > 28
        settle(engine, spilled_bytes=evicted * SHAPE.file_bytes)
        assert ask(engine, prompts[0]) == 28
        assert engine.statistics().restored_bytes == 7 * SHAPE.file_bytes
    with Engine(HashModel(), engine_config(64), files=files(tmp_path)) as engine:
        assert [ask(engine, prompt) for prompt in prompts] == [28] * 6


@pytest.mark.parametrize("position", [0, 2, 4])
@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
def test_a_page_damaged_while_the_engine_runs_is_discarded_and_computed(tmp_path, caplog, position, how):
    with Engine(HashModel(), engine_config(), files=files(tmp_path)) as engine:
        ask(engine, [*SYSTEM, 5])
    there = files(tmp_path)
    by_age = sorted(there.folder.glob("*.page"), key=lambda path: -path.stat().st_mtime_ns)
    assert len(by_age) == 5
    with Engine(HashModel(), engine_config(), files=there) as engine:
        path = by_age[position]  # of a path of pages the first is the last one used
        raw = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(raw[:-20] if how == "truncated" else raw[:-1] + bytes([raw[-1] ^ 4]))
        assert ask(engine, [*SYSTEM, 6]) == 4 * position
        assert [path.name in record.getMessage() for record in caplog.records] == [True]
        assert ask(engine, [*SYSTEM, 7]) == 20, "others are unharmed"
        settle(engine, running=0, free_pages=64)
    caplog.clear()
    with Engine(HashModel(), engine_config(), files=files(tmp_path)) as engine:
        assert ask(engine, [*SYSTEM, 6]) == 20, "and it is on disk again"
    assert not caplog.records


class SlowReader(Reader):
    """Waits at its first file."""

    reached, go = threading.Event(), threading.Event()

    def open(self, path, *, direct=True):
        self.reached.set()
        assert self.go.wait(20)
        return super().open(path, direct=direct)


@pytest.fixture
def slow(tmp_path, monkeypatch):
    with Engine(HashModel(), engine_config(), files=files(tmp_path)) as engine:
        ask(engine, [*SYSTEM, 5])
    SlowReader.reached, SlowReader.go = threading.Event(), threading.Event()
    monkeypatch.setattr("baltoro.engine.spill.Reader", SlowReader)
    yield SlowReader
    SlowReader.go.set()


def test_others_go_on_while_one_waits_for_the_disk(tmp_path, slow):
    with Engine(HashModel(), engine_config(), files=files(tmp_path)) as engine:
        waits, heard = request([*SYSTEM, 6])
        engine.submit(waits)
        assert slow.reached.wait(10)
        assert ask(engine, [3, 1, 4]) == 0
        assert not heard.steps
        slow.go.set()
        assert heard.wait().tokens == expected(waits.prompt, waits.sampling)
        assert heard.steps[-1].cached_tokens == 20


def test_a_deadline_passes_while_it_waits_for_the_disk_and_nobody_else_is_there(tmp_path, slow):
    with Engine(HashModel(), engine_config(), files=files(tmp_path)) as engine:
        waits, heard = request([*SYSTEM, 6], deadline=time.monotonic() + 0.2)
        engine.submit(waits)
        assert slow.reached.wait(10)
        assert heard.wait().finish is FinishReason.ERROR
        assert isinstance(heard.steps[-1].error, DeadlineError)
        settle(engine, running=0, waiting=0, free_pages=64)
        slow.go.set()
        ask(engine, [*SYSTEM, 6])


def test_one_that_is_cancelled_or_preempted_while_it_waits_leaves_its_pages_alone(tmp_path, slow):
    fence = Fence(2)
    engine = Engine(HashModel(fence), engine_config(20), files=files(tmp_path))
    before, heard_before = request([3], max_tokens=70)  # grows to 18 pages, and takes those of the one that waits
    engine.submit(before)
    assert fence.reached.wait(10)
    waits, heard = request([*SYSTEM, 6])
    gone, heard_gone = request([*SYSTEM, 7])
    engine.submit(waits)
    engine.submit(gone)
    fence.go.set()
    assert slow.reached.wait(10)
    engine.cancel(gone)
    assert heard_gone.wait().finish is FinishReason.CANCELLED
    assert heard_before.wait().tokens == expected([3], before.sampling)
    assert engine.statistics().preemptions == 1
    slow.go.set()
    assert heard.wait().tokens == expected(waits.prompt, waits.sampling)
    engine.stop()
    assert engine.statistics().free_pages == 20


def test_a_stop_without_patience_does_not_wait_for_a_request_that_waits_for_the_disk(tmp_path, slow):
    engine = Engine(HashModel(), engine_config(), files=files(tmp_path))
    waits, heard = request([*SYSTEM, 6])
    engine.submit(waits)
    assert slow.reached.wait(10)
    stopping = threading.Thread(target=engine.stop, kwargs={"drain": False})
    stopping.start()
    assert heard.wait().finish is FinishReason.ERROR
    slow.go.set()
    stopping.join(20)
    assert not stopping.is_alive()
    files(tmp_path).close()  # unlocked


def test_a_disk_that_takes_no_more_is_told_once_and_harms_nobody(tmp_path, caplog, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    chance = random.Random(3)
    monkeypatch.setattr("baltoro.engine.prefix_files.os.write", full)
    with Engine(HashModel(), engine_config(12), files=files(tmp_path)) as engine:
        for _ in range(5):
            assert ask(engine, [chance.randrange(fake.VOCAB) for _ in range(30)]) == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"prefix cache: {tmp_path / 'pages'} takes no more: No space left on device"
    ]
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["lock"]


KILLED = """
import sys
from pathlib import Path
from baltoro.engine.engine import Engine
from tests.engine.test_spill import *
with Engine(HashModel(), engine_config(12), files=files(Path(sys.argv[1]))) as engine:
    ask(engine, [*SYSTEM, 5])
    for index in range(10**6):
        ask(engine, [index % 50, index // 50 % 50, *range(20)], max_tokens=1)
        print(len(list(engine._supervisor.loop.spill.files.folder.glob("*.page"))), flush=True)
"""


def test_an_engine_killed_while_it_spills_starts_again_with_what_was_written(tmp_path, caplog):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) > 20:
            break
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    there = files(tmp_path)
    assert len(there) >= 20
    for path in there.folder.glob("*.page"):
        name = bytes.fromhex(path.stem)
        assert there.problem(np.frombuffer(path.read_bytes(), dtype=np.uint8), name) is None
    assert not list(there.folder.glob("*.new"))
    with Engine(HashModel(), engine_config(), files=there) as engine:
        assert ask(engine, [*SYSTEM, 6]) == 20
    assert not caplog.records
