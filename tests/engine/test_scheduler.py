from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.engine.cache import Pages
from baltoro.engine.prefix import PrefixTree
from baltoro.engine.scheduler import Scheduler
from baltoro.engine.sequence import Sequence
from tests.engine import fake


def make(num_pages=8, page_tokens=4, max_running=3, prefill_tokens=6):
    pages = Pages(num_pages=num_pages, page_tokens=page_tokens)
    return Scheduler(pages, max_running=max_running, prefill_tokens=prefill_tokens)


def sequence(prompt_tokens, max_tokens=1, priority=0):
    request, _ = fake.request([1] * prompt_tokens, max_tokens=max_tokens, priority=priority)
    return Sequence(request, list(request.prompt), seed=0)


def run(scheduler, chunks):
    """What the engine does with a plan: every chunk is cached, every last one says a token, the done ones leave."""
    done = []
    for chunk in chunks:
        last = chunk.is_last
        chunk.sequence.cached = chunk.stop
        if last:
            chunk.sequence.tokens.append(2)
            if chunk.sequence.generated == chunk.sequence.request.sampling.max_tokens:
                scheduler.remove(chunk.sequence)
                done.append(chunk.sequence)
    return done


# prompt, answer, priority: 32 tokens at most, 8 pages of 4
sizes = st.tuples(st.integers(1, 20), st.integers(1, 12), st.sampled_from([0, 0, 0, 1, -3]))


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 15), sizes), min_size=1, max_size=12),
    max_running=st.integers(1, 5),
    prefill_tokens=st.integers(1, 30),
    num_pages=st.integers(8, 20),
)
@settings(max_examples=150, deadline=None)
def test_everyone_ends_in_the_order_of_right_within_the_budgets(arrivals, max_running, prefill_tokens, num_pages):
    scheduler = make(num_pages=num_pages, max_running=max_running, prefill_tokens=prefill_tokens)
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    everyone = [sequence(*size) for _, size in arrivals]
    place = {each: (each.request.priority, number) for number, each in enumerate(everyone)}
    done = []
    started = set()
    work = sum(prompt + answer for _, (prompt, answer, _) in arrivals)
    step = 0
    while len(done) < len(everyone):
        for (when, _), each in zip(arrivals, everyone, strict=True):
            if when == step:
                scheduler.add(each)
        decoding = {each for each in scheduler.running if each.generated and len(each.tokens) - each.cached == 1}
        before = [*scheduler.running]
        chunks = scheduler.next()
        planned = [chunk.sequence for chunk in chunks]

        assert len(set(planned)) == len(planned)
        assert set(planned) <= set(scheduler.running)
        assert len(scheduler.running) <= max_running
        prefill = sum(chunk.stop - chunk.start for chunk in chunks if chunk.sequence not in decoding)
        assert prefill <= prefill_tokens
        assert decoding & set(scheduler.running) <= set(planned), "a prompt held up a decoding sequence"
        assert not scheduler.running or scheduler.running[0] in planned, "the first of the running stood still"
        assert bool(planned) == bool(scheduler.running or scheduler.waiting)
        for group in (scheduler.running, list(scheduler.waiting)):
            assert group == sorted(group, key=place.__getitem__)
        came = [each for each in scheduler.running if each not in before]
        stopped = [each for each in before if each in scheduler.waiting]
        left = list(scheduler.waiting)
        assert not came or not left or max(map(place.get, came)) < min(map(place.get, left)), "someone overtook"
        assert not stopped or min(map(place.get, stopped)) > max(
            (place[each] for each in before if each in scheduler.running), default=(-9, 0)
        ), "another than the last was stopped"
        for chunk in chunks:
            assert chunk.start == chunk.sequence.cached < chunk.stop <= len(chunk.sequence.tokens)
            assert len(scheduler.pages.of(chunk.sequence.request)) * 4 >= chunk.stop
        owned = [page for each in everyone for page in scheduler.pages.of(each.request)]
        assert len(set(owned)) == len(owned) == num_pages - scheduler.pages.num_free
        assert all(not scheduler.pages.of(each.request) for each in scheduler.waiting)

        started |= set(planned)
        done += run(scheduler, chunks)
        step += 1
        # Alone and one token at a time, with everyone preempted after every token, would take less than this.
        assert step < 16 + work * work
    assert scheduler.next() == []
    assert scheduler.pages.num_free == num_pages


def test_decodes_run_beside_a_long_prompt_that_comes_in_chunks():
    scheduler = make(num_pages=20, prefill_tokens=6)
    short, long = sequence(2, max_tokens=10), sequence(14, max_tokens=1)
    scheduler.add(short)
    run(scheduler, scheduler.next())
    scheduler.add(long)
    for start, stop in [(0, 6), (6, 12), (12, 14)]:
        decode, prefill = scheduler.next()
        assert decode.sequence is short
        assert (decode.start, decode.stop) == (len(short.tokens) - 1, len(short.tokens))
        assert prefill[1:3] == (start, stop)
        run(scheduler, [decode, prefill])


def test_short_prompts_share_one_step():
    scheduler = make(num_pages=20, prefill_tokens=6)
    for _ in range(3):
        scheduler.add(sequence(2))
    assert [(chunk.start, chunk.stop) for chunk in scheduler.next()] == [(0, 2)] * 3


def test_the_youngest_gives_way_and_comes_back_with_all_it_said():
    scheduler = make(num_pages=4, page_tokens=2, max_running=2, prefill_tokens=8)
    old, young = sequence(3, max_tokens=5), sequence(1, max_tokens=5)
    scheduler.add(old)
    scheduler.add(young)
    chunks = scheduler.next()
    assert [chunk.sequence for chunk in chunks] == [old, young]
    while not scheduler.num_preemptions:
        run(scheduler, chunks)
        chunks = scheduler.next()
    assert [chunk.sequence for chunk in chunks] == [old]
    assert list(scheduler.waiting) == [young]
    assert young.generated > 0
    said = list(young.tokens)
    while scheduler.running[0] is old:
        run(scheduler, chunks)
        chunks = scheduler.next()
    # Its prompt as prompts attend, then what it said as answers do, in one go
    assert [(chunk.sequence, chunk.start, chunk.stop, chunk.is_generated) for chunk in chunks] == [(young, 0, 1, False)]
    assert not chunks[0].is_last
    run(scheduler, chunks)
    chunks = scheduler.next()
    assert [(chunk.sequence, chunk.start, chunk.stop, chunk.is_generated) for chunk in chunks] == [
        (young, 1, len(said), True)
    ]
    assert young.tokens == said


def test_one_that_leaves_the_queue_or_a_seat_makes_room():
    scheduler = make(max_running=1)
    a, b, c = sequence(2), sequence(2), sequence(2)
    for each in (a, b, c):
        scheduler.add(each)
    scheduler.next()
    scheduler.remove(b)
    scheduler.remove(a)
    assert [chunk.sequence for chunk in scheduler.next()] == [c]
    scheduler.clear()
    assert scheduler.next() == []
    assert scheduler.pages.num_free == scheduler.pages.num_pages


# ----------------------------------------------------------------------------------------- who gets prompt tokens


@given(
    running=st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0, 0, 1])), min_size=1, max_size=8),
    prefill_tokens=st.integers(2, 40),
)
@settings(max_examples=200, deadline=None)
def test_no_prompt_waits_longer_than_the_bound(running, prefill_tokens):
    """ceil(W / (prefill_tokens // 2)) steps, W: tokens of it, of better ones, and of equals that are no longer."""
    scheduler = make(num_pages=8 * 16, max_running=8, prefill_tokens=prefill_tokens)
    everyone = [sequence(tokens, priority=priority) for tokens, priority in running]
    first = min(everyone, key=lambda each: each.request.priority)
    bounds = {}
    for each, (tokens, priority) in zip(everyone, running, strict=True):
        before = sum(t for t, p in running if p < priority or (p == priority and t <= tokens))
        bounds[each] = -(-(tokens if each is first else before) // (prefill_tokens // 2))
        scheduler.add(each)
    step = 0
    while scheduler.running or scheduler.waiting:
        step += 1
        chunks = scheduler.next()
        assert sum(chunk.stop - chunk.start for chunk in chunks) == min(
            prefill_tokens, sum(len(each.tokens) - each.cached for each in scheduler.running)
        ), "a part of the budget was left"
        for done in run(scheduler, chunks):
            assert step <= bounds[done], (running, prefill_tokens)


def test_a_short_prompt_does_not_wait_for_long_ones():
    """Behind 28,000 tokens and 20,000 more, 100 tokens take one step."""
    scheduler = make(num_pages=20_000, max_running=32, prefill_tokens=2048)
    for tokens in (28_000, 20_000):
        scheduler.add(sequence(tokens))
    run(scheduler, scheduler.next())
    short = sequence(100)
    scheduler.add(short)
    chunks = {chunk.sequence: chunk.stop - chunk.start for chunk in scheduler.next()}
    assert chunks[short] == 100
    assert sorted(chunks.values()) == [100, 924, 1024]


def test_prompts_of_one_size_are_computed_one_behind_the_other():
    """Were all computed side by side, every one would come as late as the last."""
    scheduler = make(num_pages=200, max_running=4, prefill_tokens=10)
    everyone = [sequence(20) for _ in range(4)]
    for each in everyone:
        scheduler.add(each)
    done, step = {}, 0
    while len(done) < 4:
        step += 1
        done |= dict.fromkeys(run(scheduler, scheduler.next()), step)
    assert [done[each] for each in everyone] == [2, 4, 6, 8]


def test_a_better_one_goes_first_and_the_worst_and_youngest_gives_its_pages():
    scheduler = make(num_pages=6, page_tokens=2, max_running=4, prefill_tokens=30)
    usual, worse, worst, better = (sequence(2, 6, priority) for priority in (0, 5, 5, -1))
    for each in (usual, worse, worst):
        scheduler.add(each)
    run(scheduler, scheduler.next())
    scheduler.add(better)
    gone = []
    while scheduler.running or scheduler.waiting:
        before = list(scheduler.running)
        chunks = scheduler.next()
        gone += [each for each in before if each not in scheduler.running]
        run(scheduler, chunks)
    assert gone[:2] == [worst, worse]


def test_ten_thousand_may_wait_and_leave_in_any_order():
    """Each costs O(log n): by a list's `remove` this took 100,000,000 comparisons."""
    scheduler = make(num_pages=64, max_running=8, prefill_tokens=64)
    everyone = [sequence(1 + number % 7, 2, number % 3) for number in range(10_000)]
    for each in everyone:
        scheduler.add(each)
    run(scheduler, scheduler.next())
    for each in everyone[5::2] + everyone[4::-2]:
        if each in scheduler.waiting or each in scheduler.running:
            scheduler.remove(each)
    left = sum(each in scheduler.waiting for each in everyone)
    assert len(scheduler.waiting) == left < 5_010
    done = []
    while scheduler.running or scheduler.waiting:
        done += run(scheduler, scheduler.next())
    assert [each.request.priority for each in done[:100]] == [0] * 100
    assert scheduler.pages.num_free == 64


def test_prompts_that_begin_alike_and_came_together_are_computed_once():
    """The second is admitted before the first is computed, and takes over its pages when its turn comes."""
    pages = Pages(num_pages=64, page_tokens=4, tree=PrefixTree(page_tokens=4))
    scheduler = Scheduler(pages, max_running=8, prefill_tokens=32)
    alike = [sequence(32) for _ in range(5)]
    for each in alike:
        scheduler.add(each)
    computed = 0
    while scheduler.running or scheduler.waiting:
        for chunk in scheduler.next():
            computed += chunk.stop - chunk.start
            scheduler.computed(*chunk[:3])
            if chunk.is_last:
                scheduler.remove(chunk.sequence)
    assert computed == 32 + 4 * 4
    assert (scheduler.num_hits, scheduler.reused_tokens) == (4, 4 * 28)
    assert pages.num_free == 64
