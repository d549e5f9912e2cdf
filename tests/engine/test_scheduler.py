from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.engine.cache import Pages
from baltoro.engine.scheduler import Scheduler
from baltoro.engine.sequence import Sequence
from tests.engine import fake


def make(num_pages=8, page_tokens=4, max_running=3, prefill_tokens=6):
    pages = Pages(num_pages=num_pages, page_tokens=page_tokens)
    return Scheduler(pages, max_running=max_running, prefill_tokens=prefill_tokens)


def sequence(prompt_tokens, max_tokens=1):
    request, _ = fake.request([1] * prompt_tokens, max_tokens=max_tokens)
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


sizes = st.tuples(st.integers(1, 20), st.integers(1, 12))  # prompt, answer: 32 tokens at most, 8 pages of 4


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
    everyone = [sequence(prompt, answer) for _, (prompt, answer) in arrivals]
    age = {each: place for place, each in enumerate(everyone)}
    done = []
    started = set()
    work = sum(prompt + answer for _, (prompt, answer) in arrivals)
    step = 0
    while len(done) < len(everyone):
        for (when, _), each in zip(arrivals, everyone, strict=True):
            if when == step:
                scheduler.add(each)
        oldest = min((each for each in (*scheduler.running, *scheduler.waiting)), key=age.__getitem__, default=None)
        decoding = {each for each in scheduler.running if len(each.tokens) - each.cached == 1}
        chunks = scheduler.next()
        planned = [chunk.sequence for chunk in chunks]

        assert len(set(planned)) == len(planned)
        assert set(planned) <= set(scheduler.running)
        assert len(scheduler.running) <= max_running
        prefill = sum(chunk.stop - chunk.start for chunk in chunks if chunk.sequence not in decoding)
        assert prefill <= prefill_tokens
        assert decoding & set(scheduler.running) <= set(planned), "a prompt held up a decoding sequence"
        assert oldest is None or oldest in planned, "the oldest stood still"
        assert [*map(age.get, scheduler.running), *map(age.get, scheduler.waiting)] == sorted(
            age[each] for each in (*scheduler.running, *scheduler.waiting)
        ), "someone overtook"
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
