"""What an operator bounds: the queue and the time of a request. And whom priority lets go first."""

from __future__ import annotations

import threading
import time

import pytest

from baltoro.engine.config import EngineConfig
from baltoro.engine.engine import Engine
from baltoro.engine.request import FinishReason
from baltoro.engine.statistics import LONGEST_WAIT_S, Pace
from baltoro.errors import DeadlineError, EngineError, QueueFull
from tests.engine.fake import HashModel, engine_config, expected, request
from tests.engine.test_engine import Fence, settle


def test_a_full_queue_refuses_the_next_and_says_when_to_come_again():
    fence = Fence(1)
    with Engine(HashModel(fence), engine_config(max_running=1, max_waiting=3)) as engine:
        first, heard = request([1])
        engine.submit(first)
        assert fence.reached.wait(20)
        waiting = [request([2, number]) for number in range(3)]
        for req, _ in waiting:
            engine.submit(req)
        refused, unheard = request([3])
        with pytest.raises(QueueFull, match="3 requests wait already") as caught:
            engine.submit(refused)
        assert caught.value.retry_after_s == LONGEST_WAIT_S, "nobody has ended yet"
        fence.go.set()
        for _, listener in [(first, heard), *waiting]:
            listener.wait()
        assert unheard.steps == []
        engine.submit(refused)  # there is room again
        assert unheard.wait().tokens == expected(refused.prompt, refused.sampling)


def test_the_pace_is_that_of_the_last_minute(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    for _ in range(20):
        now[0] += 0.5
        pace.ended()
    assert pace.seconds_for(20) == 10
    assert pace.seconds_for(1) == 1
    now[0] += 50
    assert pace.seconds_for(1) == 3  # 20 in 60 s
    now[0] += 61
    assert pace.seconds_for(1) == LONGEST_WAIT_S
    for _ in range(5000):
        now[0] += 0.001
        pace.ended()
    assert pace.seconds_for(10_000) == 10  # more than are remembered


def is_late(listener):
    error = listener.steps[-1].error
    return listener.finish is FinishReason.ERROR and isinstance(error, DeadlineError)


def test_a_deadline_that_passes_while_it_waits_ends_it_alone():
    fence = Fence(1)
    with Engine(HashModel(fence), engine_config(max_running=1)) as engine:
        (first, heard), (late, heard_late), (last, heard_last) = (
            request([1]), request([2], deadline=time.monotonic() + 0.01), request([3], deadline=time.monotonic() + 600),
        )  # fmt: skip
        for req in (first, late, last):
            engine.submit(req)
        assert fence.reached.wait(20)
        while time.monotonic() < late.deadline:
            time.sleep(0.001)
        fence.go.set()
        assert is_late(heard_late.wait())
        assert heard_late.tokens == []
        for req, listener in ((first, heard), (last, heard_last)):
            assert listener.wait().tokens == expected(req.prompt, req.sampling)
        settle(engine, running=0, waiting=0, free_pages=64)


def test_a_deadline_that_passes_while_it_speaks_leaves_what_was_said():
    fence = Fence(5)
    with Engine(HashModel(fence), engine_config()) as engine:
        req, listener = request([1, 2], max_tokens=100, deadline=time.monotonic() + 0.5)
        engine.submit(req)
        assert fence.reached.wait(20)
        while time.monotonic() < req.deadline:
            time.sleep(0.001)
        fence.go.set()
        assert is_late(listener.wait())
        assert listener.tokens == expected(req.prompt, req.sampling)[: len(listener.tokens)]
        assert str(len(listener.tokens)) in str(listener.steps[-1].error)
        settle(engine, running=0, free_pages=64)


def test_a_deadline_passed_before_the_beginning_computes_nothing():
    model = HashModel()
    with Engine(model, engine_config()) as engine:
        req, listener = request([1], deadline=time.monotonic() - 1)
        engine.submit(req)
        assert is_late(listener.wait())
        assert model.batches == []


def test_a_better_request_overtakes_those_that_wait():
    ends = []
    fence = Fence(1)
    with Engine(HashModel(fence), engine_config(max_running=1)) as engine:
        pairs = [request([number], priority=priority) for number, priority in enumerate([0, 1, 1, -2, 0])]
        for number, (req, listener) in enumerate(pairs):

            def sink(step, number=number, listener=listener):
                if step.finish:
                    ends.append(number)
                listener(step)

            req.sink = sink
            engine.submit(req)
            if number == 0:
                assert fence.reached.wait(20)
        fence.go.set()
        for req, listener in pairs:
            assert listener.wait().tokens == expected(req.prompt, req.sampling)
    assert ends == [0, 3, 4, 1, 2]


def test_ten_thousand_requests_are_queued_and_a_storm_of_cancels_leaves_the_others():
    fence = Fence(1)
    with Engine(HashModel(fence), engine_config(200, max_running=16)) as engine:
        pairs = [request([number % 50, number % 7], max_tokens=2, seed=number) for number in range(10_000)]
        for req, _ in pairs:
            engine.submit(req)
        assert fence.reached.wait(20)
        assert 9_984 <= engine.statistics().waiting < 10_000
        kept = pairs[::50]
        gone = [pair for number, pair in enumerate(pairs) if number % 50]
        storms = [
            threading.Thread(target=lambda mine=mine: [engine.cancel(req) for req, _ in gone[mine::4]])
            for mine in range(4)
        ]  # fmt: skip
        for each in storms:
            each.start()
        for each in storms:
            each.join()
        fence.go.set()
        for req, listener in kept:
            assert listener.wait(60).tokens == expected(req.prompt, req.sampling)
        for _, listener in gone:
            assert listener.wait(60).finish in (FinishReason.CANCELLED, FinishReason.LENGTH)
        settle(engine, running=0, waiting=0, free_pages=200)


@pytest.mark.parametrize("value", [0, -1])
def test_a_queue_of_no_length_is_refused(value):
    with pytest.raises(EngineError, match="max_waiting"):
        EngineConfig(cache_bytes=1, max_waiting=value)
