from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
import torch

from baltoro.engine.config import EngineConfig, page_bytes
from baltoro.engine.engine import Engine
from baltoro.engine.request import FinishReason
from baltoro.errors import ContextError, EngineError, RequestError
from tests.engine import fake
from tests.engine.fake import HashModel, engine_config, expected, request


def settle(engine, **wanted):
    """Wait until the statistics say so: what callers hear of and what the loop counts are moments apart."""
    for _ in range(2000):
        statistics = engine.statistics()
        if all(getattr(statistics, name) == value for name, value in wanted.items()):
            return
        time.sleep(0.005)
    raise AssertionError(f"{statistics}, expected {wanted}")


def mixed_requests(count, seed=0):
    """Greedy and sampled, short and long, some with stop tokens."""
    chance = random.Random(seed)
    pairs = []
    for index in range(count):
        prompt = [chance.randrange(fake.VOCAB) for _ in range(chance.randint(1, 40))]
        pairs.append(
            request(
                prompt,
                max_tokens=chance.randint(1, 30),
                temperature=chance.choice([0.0, 0.7, 1.5]),
                top_p=chance.choice([1.0, 0.9]),
                top_k=chance.choice([0, 1, 10]),
                seed=index,
                min_p=chance.choice([0.0, 0.0, 0.1]),
                repetition_penalty=chance.choice([1.0, 1.0, 1.3]),
                frequency_penalty=chance.choice([0.0, 0.0, 0.5]),
                logit_bias=chance.choice([{}, {}, {7: 2.0}]),
                stop_token_ids=frozenset(chance.sample(range(fake.VOCAB), chance.choice([0, 2]))),
            )
        )
    return pairs


def finish_of(req, tokens):
    return FinishReason.STOP if tokens[-1] in req.sampling.stop_token_ids else FinishReason.LENGTH


def run_all(pairs, config, model=None):
    with Engine(model or HashModel(), config) as engine:
        for req, _ in pairs:
            engine.submit(req)
        for _, listener in pairs:
            listener.wait()
        settle(engine, running=0, waiting=0)
        return engine.statistics()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(engine_config(64, max_running=1), id="each alone"),
        pytest.param(engine_config(400, max_running=32), id="all at once"),
        pytest.param(engine_config(400, max_running=32, prefill_tokens=3), id="prompts in chunks of three"),
        pytest.param(engine_config(20, max_running=8, max_context=80), id="too few pages"),
        pytest.param(
            engine_config(20, max_running=8, max_context=80, prefill_tokens=1), id="too few pages, one by one"
        ),
    ],
)
def test_tokens_do_not_depend_on_batch_chunks_or_preemption(config):
    pairs = mixed_requests(30)
    statistics = run_all(pairs, config)
    for req, listener in pairs:
        tokens = expected(req.prompt, req.sampling)
        assert listener.tokens == tokens
        assert listener.finish == finish_of(req, tokens)
    assert statistics.free_pages == statistics.num_pages
    assert statistics.generated_tokens == sum(len(listener.tokens) for _, listener in pairs)
    assert (statistics.preemptions > 0) == (statistics.num_pages == 20), "this case tests nothing"
    prompts = sum(len(req.prompt) for req, _ in pairs)
    assert (
        statistics.prefilled_tokens == prompts if not statistics.preemptions else statistics.prefilled_tokens > prompts
    )


def test_a_step_packs_all_decodes_and_no_more_prompt_than_allowed():
    model = HashModel()
    run_all(mixed_requests(30), engine_config(400, max_running=4, prefill_tokens=5), model)
    for batch in model.batches:
        sizes = np.diff(batch.edges)
        assert len(sizes) <= 4
        assert len(batch.ids) <= 5 + 4
    assert max(len(batch.edges) - 1 for batch in model.batches) == 4


def test_a_prompt_takes_as_many_steps_as_chunks_and_asks_for_no_logits_between():
    model = HashModel()
    run_all([request([1] * 10, max_tokens=1)], engine_config(prefill_tokens=4), model)
    assert [(len(batch.ids), batch.logit_rows.tolist()) for batch in model.batches] == [(4, []), (4, []), (2, [1])]


def test_the_stop_token_is_reported_with_the_end():
    req, _ = request([3, 1, 4], max_tokens=50)
    tokens = expected([3, 1, 4], req.sampling)
    stop = tokens[4]
    req, listener = request([3, 1, 4], max_tokens=50, stop_token_ids=frozenset([stop]))
    run_all([(req, listener)], engine_config())
    assert listener.tokens == tokens[: tokens.index(stop) + 1]
    assert listener.steps[-1].token == stop
    assert listener.finish is FinishReason.STOP


def test_no_stop_token_comes_before_min_tokens():
    req, _ = request([3, 1, 4], max_tokens=50)
    stop = frozenset(expected([3, 1, 4], req.sampling)[:6])
    req, listener = request([3, 1, 4], max_tokens=50, stop_token_ids=stop, min_tokens=10)
    run_all([(req, listener)], engine_config())
    assert listener.tokens == expected([3, 1, 4], req.sampling)
    assert not stop & set(listener.tokens[:10])


def test_a_full_context_ends_with_length_and_one_token_more_is_refused():
    config = engine_config(max_context=16)
    fits, listener = request([5] * 15, max_tokens=10)
    longer, longer_listener = request([5] * 4, max_tokens=1000)
    run_all([(fits, listener), (longer, longer_listener)], config)
    assert listener.tokens == expected(fits.prompt, fits.sampling, max_context=16)
    assert len(listener.tokens) == 1
    assert len(longer_listener.tokens) == 12
    assert longer_listener.finish is FinishReason.LENGTH
    with Engine(HashModel(), config) as engine, pytest.raises(ContextError, match=r"16 tokens.*15") as caught:
        engine.submit(request([5] * 16)[0])
    assert caught.value.param == "prompt"


def test_a_context_as_large_as_the_cache_is_used_to_the_last_position():
    with Engine(HashModel(), engine_config(8)) as engine:
        assert engine.max_context == 32
        pairs = [request([i], max_tokens=1000, seed=i) for i in range(3)]
        for req, _ in pairs:
            engine.submit(req)
        for req, listener in pairs:
            assert listener.wait().tokens == expected(req.prompt, req.sampling, max_context=32)


@pytest.mark.parametrize(
    "prompt, wishes, match",
    [
        ([], {}, "empty"),
        ([1, 50], {}, "id 50"),
        ([-1], {}, "id -1"),
        ([1], {"stop_token_ids": frozenset([50])}, "stop_token_ids.* id 50"),
        ([1], {"logit_bias": {3: 1.0, 51: 1.0}}, "logit_bias.* id 51"),
    ],
)
def test_what_the_model_cannot_read_is_refused_at_submit(prompt, wishes, match):
    with Engine(HashModel(), engine_config()) as engine:
        with pytest.raises(RequestError, match=match):
            engine.submit(request(prompt, **wishes)[0])
        req, listener = request([1, 2])
        engine.submit(req)
        assert listener.wait().tokens == expected(req.prompt, req.sampling)


def test_one_request_cannot_run_twice_at_once():
    gate = threading.Event()
    with Engine(HashModel(lambda batch: gate.wait(10)), engine_config()) as engine:
        req, listener = request([1])
        engine.submit(req)
        with pytest.raises(RequestError, match="already"):
            engine.submit(req)
        gate.set()
        listener.wait()


class Fence:
    """A forward that stops at its n-th step until it is let go."""

    def __init__(self, step):
        self.step, self.steps = step, 0
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, batch):
        self.steps += 1
        if self.steps == self.step:
            self.reached.set()
            assert self.go.wait(20)


def test_cancel_frees_the_pages_and_leaves_the_others_alone():
    fence = Fence(3)
    with Engine(HashModel(fence), engine_config(64, max_running=2)) as engine:
        (running, heard_running), (kept, heard_kept), (waiting, heard_waiting) = (
            request([i], max_tokens=20) for i in range(3)
        )
        for req in (running, kept, waiting):
            engine.submit(req)
        assert fence.reached.wait(10)
        engine.cancel(running)
        engine.cancel(running)
        engine.cancel(waiting)
        fence.go.set()
        for heard in (heard_running, heard_waiting):
            assert heard.wait().finish is FinishReason.CANCELLED
        assert heard_running.tokens == expected(running.prompt, running.sampling)[: len(heard_running.tokens)]
        assert heard_waiting.tokens == []
        assert heard_kept.wait().tokens == expected(kept.prompt, kept.sampling)
        engine.cancel(kept)  # it is over
        settle(engine, running=0, waiting=0, free_pages=64)


def test_a_sink_may_cancel_and_submit():
    with Engine(HashModel(), engine_config()) as engine:
        second, heard = request([2])
        first, listener = request([1], max_tokens=1000)

        def sink(step):
            listener(step)
            if len(listener.steps) == 3:
                engine.cancel(first)
            if step.finish:
                engine.submit(second)

        first.sink = sink
        engine.submit(first)
        assert heard.wait().tokens == expected(second.prompt, second.sampling)
        assert len(listener.tokens) == 3
        assert listener.finish is FinishReason.CANCELLED


def test_a_sink_that_raises_loses_its_request_only():
    with Engine(HashModel(), engine_config()) as engine:
        calls = []

        def broken(step):
            calls.append(step)
            raise ValueError("the client went away")

        deaf, _ = request([1], max_tokens=50)
        deaf.sink = broken
        engine.submit(deaf)
        req, listener = request([2])
        engine.submit(req)
        assert listener.wait().tokens == expected(req.prompt, req.sampling)
        settle(engine, running=0, free_pages=64)
        assert len(calls) == 1
        assert engine.healthy


def test_a_failing_forward_ends_its_batch_and_the_engine_lives_on():
    failing = threading.Event()

    def before(batch):
        if failing.is_set() and 13 in batch.ids:
            raise MemoryError("no room for activations")

    with Engine(HashModel(before), engine_config(max_running=2, prefill_tokens=4)) as engine:
        failing.set()
        (a, heard_a), (b, heard_b), (c, heard_c) = request([13, 2]), request([4, 5]), request([6, 7])
        with engine._orders:  # so that one step sees all three
            for req in (a, b, c):
                engine.submit(req)
        for heard in (heard_a, heard_b):
            assert heard.wait().finish is FinishReason.ERROR
            assert isinstance(heard.steps[-1].error, EngineError)
            assert "no room for activations" in str(heard.steps[-1].error)
        assert heard_c.wait().tokens == expected(c.prompt, c.sampling)
        assert engine.healthy
        settle(engine, running=0, waiting=0, free_pages=64, failed_steps=1, restarts=0)


class Multiples:
    """A constraint: multiples of three, then, after `end` tokens, nothing at all."""

    def __init__(self, end=1000, fail_at=None):
        self.tokens, self.end, self.fail_at = [], end, fail_at

    def mask(self):
        if len(self.tokens) == 0:
            return None
        if len(self.tokens) >= self.end:
            return np.zeros(fake.VOCAB, dtype=bool)
        return np.arange(fake.VOCAB) % 3 == 0

    def advance(self, token):
        if len(self.tokens) == self.fail_at:
            raise KeyError("a hole in the grammar")
        self.tokens.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_masks_each_token_and_hears_of_each_even_when_preempted(temperature):
    pairs = [request([i], constraint=Multiples(), max_tokens=25, temperature=temperature, seed=i) for i in range(6)]
    statistics = run_all(pairs, engine_config(8, max_running=6))
    assert statistics.preemptions
    for req, listener in pairs:
        assert listener.finish is FinishReason.LENGTH
        assert listener.tokens == req.constraint.tokens
        assert all(token % 3 == 0 for token in listener.tokens[1:])
        alone, heard = request(
            req.prompt, constraint=Multiples(), max_tokens=25, temperature=temperature, seed=req.prompt[0]
        )
        run_all([(alone, heard)], engine_config())
        assert heard.tokens == listener.tokens


def test_a_dead_end_or_a_bug_in_a_constraint_ends_that_request_only():
    dead, heard_dead = request([1], constraint=Multiples(end=3))
    buggy, heard_buggy = request([2], constraint=Multiples(fail_at=2))
    fine, heard_fine = request([3])
    run_all([(dead, heard_dead), (buggy, heard_buggy), (fine, heard_fine)], engine_config())
    assert len(heard_dead.tokens) == 3
    assert "no token" in str(heard_dead.steps[-1].error)
    assert len(heard_buggy.tokens) == 2
    assert "a hole in the grammar" in str(heard_buggy.steps[-1].error)
    for heard in (heard_dead, heard_buggy):
        assert heard.finish is FinishReason.ERROR
        assert isinstance(heard.steps[-1].error, EngineError)
    assert heard_fine.tokens == expected(fine.prompt, fine.sampling)


def test_no_seed_means_a_fresh_one():
    pairs = [request([1, 2, 3], max_tokens=30, temperature=2.0) for _ in range(2)]
    run_all(pairs, engine_config())
    assert pairs[0][1].tokens != pairs[1][1].tokens  # equal once in about 10^40 runs


def test_stop_drains_what_is_there_and_takes_nothing_new():
    fence = Fence(2)
    engine = Engine(HashModel(fence), engine_config(max_running=2))
    pairs = [request([i]) for i in range(5)]
    for req, _ in pairs:
        engine.submit(req)
    assert fence.reached.wait(10)
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    while not engine._orders.closed:
        time.sleep(0.001)
    with pytest.raises(EngineError, match="stopped"):
        engine.submit(request([1])[0])
    fence.go.set()
    stopping.join(10)
    assert not stopping.is_alive()
    for req, listener in pairs:
        assert listener.tokens == expected(req.prompt, req.sampling)
    assert engine.statistics().free_pages == 64
    assert not engine.healthy
    engine.stop()  # again: nothing to do


@pytest.mark.parametrize("stop", [{"drain": False}, {"drain": True, "timeout_s": 0.05}])
def test_stop_without_patience_ends_everyone_with_an_error(stop):
    engine = Engine(HashModel(lambda batch: time.sleep(0.002)), engine_config(max_running=1, max_context=256))
    pairs = [request([i], max_tokens=200) for i in range(4)]
    for req, _ in pairs:
        engine.submit(req)
    while not pairs[0][1].steps:
        time.sleep(0.001)
    engine.stop(**stop)
    for req, listener in pairs:
        assert listener.finish is FinishReason.ERROR
        assert isinstance(listener.steps[-1].error, EngineError)
        assert listener.tokens == expected(req.prompt, req.sampling)[: len(listener.tokens)]
    assert engine.statistics().free_pages == 64


def test_a_sink_may_stop_the_engine():
    engine = Engine(HashModel(), engine_config())
    req, listener = request([1], max_tokens=5)

    def sink(step):
        engine.stop()
        listener(step)

    req.sink = sink
    engine.submit(req)
    assert len(listener.wait().tokens) == 5
    engine._supervisor.thread.join(10)
    assert not engine._supervisor.thread.is_alive()


def test_an_engine_left_by_an_exception_does_not_wait_for_its_requests():
    with pytest.raises(ZeroDivisionError), Engine(HashModel(lambda batch: time.sleep(0.01)), engine_config()) as engine:
        req, listener = request([1], max_tokens=200)
        engine.submit(req)
        raise ZeroDivisionError
    assert listener.finish is FinishReason.ERROR


def test_idleness_is_no_fault():
    with Engine(HashModel(), engine_config(stuck_after_s=0.05)) as engine:
        time.sleep(0.2)
        assert engine.healthy
        req, listener = request([1])
        engine.submit(req)
        assert listener.wait().finish is FinishReason.LENGTH


def test_an_idle_engine_sleeps():
    with Engine(HashModel(), engine_config()) as engine:
        req, listener = request([1])
        engine.submit(req)
        listener.wait()
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.05


def test_the_engine_leaves_torch_as_it_found_it():
    def globals_of_torch():
        return torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.random.get_rng_state()

    before = globals_of_torch()
    inference = []
    pairs = mixed_requests(5)
    run_all(pairs, engine_config(), HashModel(lambda batch: inference.append(torch.is_inference_mode_enabled())))
    after = globals_of_torch()
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])
    assert inference
    assert all(inference)


def test_two_hundred_requests_from_many_threads_with_cancels():
    pairs = mixed_requests(200, seed=1)
    with Engine(HashModel(), engine_config(40, max_running=12, prefill_tokens=16, max_context=100)) as engine:

        def client(mine):
            chance = random.Random(mine)
            for req, listener in pairs[mine::8]:
                engine.submit(req)
                if chance.random() < 0.2:
                    time.sleep(chance.random() * 0.01)
                    engine.cancel(req)
                if chance.random() < 0.3:
                    listener.wait()

        clients = [threading.Thread(target=client, args=(mine,)) for mine in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(20)
        for req, listener in pairs:
            listener.wait()
            truth = expected(req.prompt, req.sampling)
            if listener.finish is FinishReason.CANCELLED:
                assert listener.tokens == truth[: len(listener.tokens)]
            else:
                assert (listener.tokens, listener.finish) == (truth, finish_of(req, truth))
        settle(engine, running=0, waiting=0, free_pages=40)
        assert engine.statistics().preemptions > 0
        assert engine.healthy


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"max_context": 1001, "cache_bytes": 10**6}, "at most the model's 1000"),
        ({"max_context": 257}, "holds 256"),
        ({"cache_bytes": 10}, "at least 64"),
        ({"max_running": 0}, "max_running is 0"),
        ({"prefill_tokens": -1}, "prefill_tokens is -1"),
    ],
)
def test_an_engine_that_could_not_serve_is_refused(changes, match):
    with pytest.raises(EngineError, match=match):
        Engine(HashModel(), engine_config(64, **changes))


def test_the_cache_has_kimi_k2s_70272_bytes_a_token():
    class K2:
        num_hidden_layers, kv_lora_rank, qk_rope_head_dim = 61, 512, 64

    assert page_bytes(K2(), EngineConfig(cache_bytes=1)) == 64 * 70_272
