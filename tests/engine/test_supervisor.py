"""An engine that fails is made anew, a bounded number of times; one that is stuck ends everyone and is dead."""

from __future__ import annotations

import threading
import time

import pytest

from baltoro.engine.engine import Engine
from baltoro.engine.request import FinishReason
from baltoro.errors import EngineError
from tests.engine.fake import HashModel, engine_config, expected, request
from tests.engine.test_engine import Fence, settle


def until(holds):
    for _ in range(4000):
        if holds():
            return
        time.sleep(0.005)
    raise AssertionError("it does not come true")


class Dying(HashModel):
    """Something in the loop raises, beyond what a forward may, for a prompt that begins with token 13."""

    def __call__(self, batch, cache, **more):
        if 13 in batch.ids[batch.positions == 0]:
            raise SystemExit("a bug of ours")
        return super().__call__(batch, cache, **more)


def supervised(model, **changes):
    return Engine(model, engine_config(**({"restart_after_s": 0.01} | changes)))


def ended_by(listener, said):
    error = listener.wait().steps[-1].error
    assert listener.finish is FinishReason.ERROR
    assert isinstance(error, EngineError)
    assert said in str(error)


def test_after_a_failure_everyone_has_heard_of_it_and_a_new_loop_answers():
    fence = Fence(3)
    with supervised(Dying(fence)) as engine:
        bystander, heard = request([1, 2], max_tokens=100)
        engine.submit(bystander)
        assert fence.reached.wait(20)
        poison, heard_poison = request([13])
        engine.submit(poison)
        fence.go.set()
        ended_by(heard, "a bug of ours")
        ended_by(heard_poison, "a bug of ours")
        assert heard.tokens == expected(bystander.prompt, bystander.sampling)[: len(heard.tokens)]
        until(lambda: engine.healthy)
        before = engine.statistics()
        assert before.restarts == 1
        assert before.generated_tokens == len(heard.tokens), "a restart forgets nothing that was counted"
        again, heard_again = request([1, 2])
        engine.submit(again)
        assert heard_again.wait().tokens == expected(again.prompt, again.sampling)
        settle(engine, running=0, waiting=0, free_pages=64)
        assert not engine.dead.is_set()


def test_while_it_is_made_anew_requests_are_refused_and_health_says_why():
    with supervised(Dying(), restart_after_s=60.0) as engine:
        poison, heard = request([13])
        engine.submit(poison)
        ended_by(heard, "a bug of ours")
        until(lambda: engine.statistics().restarts == 1)
        assert "a bug of ours" in engine.fault
        with pytest.raises(EngineError, match="started anew"):
            engine.submit(request([1])[0])
        # `stop` does not wait for the minute


def test_after_so_many_restarts_it_is_dead_and_stays_so():
    engine = supervised(Dying(), max_restarts=2)
    for number in range(3):
        assert not engine.dead.is_set()
        until(lambda: engine.healthy)
        poison, heard = request([13])
        engine.submit(poison)
        ended_by(heard, "a bug of ours")
        until(lambda number=number: engine.statistics().restarts == min(2, number + 1))
    assert engine.dead.wait(20)
    assert "after 2 restarts" in engine.fault
    with pytest.raises(EngineError, match="a bug of ours"):
        engine.submit(request([1])[0])
    engine.stop()
    assert "after 2 restarts" in engine.fault
    assert not engine.stuck


def test_a_model_that_fails_again_and_again_makes_a_new_loop():
    failing = threading.Event()
    failing.set()

    def before(batch):
        if failing.is_set():
            raise MemoryError("no room for activations")

    with supervised(HashModel(before)) as engine:
        for _ in range(3):
            req, heard = request([1])
            engine.submit(req)
            ended_by(heard, "no room for activations")
        until(lambda: engine.statistics().restarts == 1)
        failing.clear()
        until(lambda: engine.healthy)
        req, heard = request([1])
        engine.submit(req)
        assert heard.wait().tokens == expected(req.prompt, req.sampling)
        assert engine.statistics().failed_steps == 3


def test_a_step_that_does_not_end_ends_everyone_and_the_engine_is_dead():
    fence = Fence(2)
    engine = supervised(HashModel(fence), stuck_after_s=0.2, max_running=1)
    pairs = [request([1, number], max_tokens=20) for number in range(3)]
    for req, _ in pairs:
        engine.submit(req)
    assert fence.reached.wait(20)
    for _, listener in pairs:
        ended_by(listener, "stuck")
    assert engine.dead.wait(20)
    assert engine.stuck
    assert "only the process's exit" in engine.fault
    with pytest.raises(EngineError, match="stuck"):
        engine.submit(request([1])[0])
    engine.stop()  # does not wait for what never ends
    assert engine._supervisor.thread.is_alive()
    told = [len(listener.steps) for _, listener in pairs]
    fence.go.set()  # should it end after all, nobody hears of it
    engine._supervisor.thread.join(20)
    assert not engine._supervisor.thread.is_alive()
    assert told == [len(listener.steps) for _, listener in pairs]


def test_a_sink_that_raises_at_the_end_of_everyone_keeps_nobody_from_hearing():
    with supervised(Dying()) as engine:

        def broken(step):
            raise ValueError("the client went away")

        deaf, _ = request([13])
        deaf.sink = broken
        other, heard = request([13])
        with engine._orders:
            engine.submit(deaf)
            engine.submit(other)
        ended_by(heard, "a bug of ours")
        until(lambda: engine.healthy)
