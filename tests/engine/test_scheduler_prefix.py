"""The scheduler with prefix tree and disk, in any order of arrivals, steps, cancels and reads that finish.

The reference remembers what each page holds, as the tuple of all ids up to its last position: a chunk may only run
over pages that hold its own sequence's beginning.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baltoro.engine.cache import Pages
from baltoro.engine.prefix import PrefixTree
from baltoro.engine.scheduler import Scheduler
from baltoro.engine.sequence import Sequence
from baltoro.engine.spill import Restore
from tests.engine import fake

PAGE = 2


class Disk:
    """Knows every prefix; how much of it comes, and when, the test says."""

    def __init__(self):
        self.jobs = {}

    def restore(self, prompt, shared, pages, tokens):
        count = tokens // PAGE - len(shared)
        if not count or len(prompt) % 3:  # not of everyone
            return None
        job = Restore([bytes(32)] * count, tuple(pages[len(shared) : len(shared) + count]))
        self.jobs[job] = (prompt, len(shared))
        return job


def decodes(sequence):
    return len(sequence.tokens) - 1 == sequence.cached >= len(sequence.request.prompt)


class Order(RuleBasedStateMachine):
    @initialize(
        num_pages=st.integers(8, 14), max_running=st.integers(1, 4), prefill_tokens=st.integers(1, 12),
        disk=st.booleans(),
    )  # fmt: skip
    def begin(self, num_pages, max_running, prefill_tokens, disk):
        self.disk = Disk() if disk else None
        pages = Pages(num_pages=num_pages, page_tokens=PAGE, tree=PrefixTree(page_tokens=PAGE))
        self.scheduler = Scheduler(pages, max_running=max_running, prefill_tokens=prefill_tokens, spill=self.disk)
        self.place = {}  # sequence -> its priority, and when it came
        self.arrivals = 0
        self.holds = {}  # page -> ids up to its last written position
        self.next_token = 100

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=10), answer=st.integers(1, 6),
        priority=st.sampled_from([0, 0, 0, -1, 2]),
    )  # fmt: skip
    def submit(self, prompt, answer, priority):
        request, _ = fake.request(prompt, max_tokens=answer, priority=priority)
        sequence = Sequence(request, list(prompt), seed=0)
        self.place[sequence] = (priority, self.arrivals)
        self.arrivals += 1
        self.scheduler.add(sequence)

    @precondition(lambda self: self.place)
    @rule(data=st.data())
    def cancel(self, data):
        self.leave(data.draw(st.sampled_from(list(self.place))))

    def leave(self, sequence):
        self.scheduler.remove(sequence)
        del self.place[sequence]
        assert not self.scheduler.pages.of(sequence.request)

    @precondition(lambda self: self.disk and self.disk.jobs)
    @rule(data=st.data())
    def read(self, data):
        """A read ends, whole or not, cancelled or not."""
        job = data.draw(st.sampled_from(list(self.disk.jobs)))
        prompt, first = self.disk.jobs.pop(job)
        for index in range(data.draw(st.integers(0, len(job.names)))):
            if not job._cancelled:
                self.holds[job.pages[index]] = tuple(prompt[: (first + index + 1) * PAGE])
                job.restored += 1
        job.finished = True

    @rule(count=st.integers(1, 6))
    def step(self, count):
        for _ in range(count):
            self.run()

    def run(self):
        scheduler = self.scheduler
        decoding = {each for each in scheduler.running if each.restore is None and decodes(each)}
        chunks = scheduler.next()
        planned = [chunk.sequence for chunk in chunks]
        assert len(set(planned)) == len(planned)
        assert set(planned) <= set(scheduler.running)
        assert not any(each.restore for each in planned), "it runs before its pages have come"
        prefill = sum(chunk.stop - chunk.start for chunk in chunks if chunk.sequence not in decoding)
        assert prefill <= scheduler.prefill_tokens
        assert decoding & set(scheduler.running) <= set(planned)
        first = next((each for each in scheduler.running if not each.restore), None)
        assert first is None or first in planned, "the first of the running stood still"
        assert bool(chunks) or scheduler.waits_for_disk or not self.place, "the engine would never wake up"
        for chunk in chunks:
            self.compute(*chunk[:3])
        for chunk in chunks:
            if chunk.is_last:
                self.next_token += 1
                chunk.sequence.tokens.append(self.next_token)
                if chunk.sequence.generated == chunk.sequence.request.sampling.max_tokens:
                    self.leave(chunk.sequence)

    def compute(self, sequence, start, stop):
        table = self.scheduler.pages.of(sequence.request)
        assert start == sequence.cached < stop <= len(sequence.tokens)
        assert len(table) * PAGE >= stop
        for place in range(start // PAGE):
            assert self.holds[table[place]] == tuple(sequence.tokens[: (place + 1) * PAGE]), "another's latents"
        if start % PAGE:
            assert self.holds[table[start // PAGE]] == tuple(sequence.tokens[:start])
        for place in range(start // PAGE, -(-stop // PAGE)):
            others = [each for each in self.scheduler.running if each is not sequence]
            assert not any(table[place] in self.scheduler.pages.of(each.request) for each in others), "shared"
            self.holds[table[place]] = tuple(sequence.tokens[: min(stop, (place + 1) * PAGE)])
        self.scheduler.computed(sequence, start, stop)

    @invariant()
    def all_stand_in_order_and_seats_are_counted(self):
        for group in (self.scheduler.running, self.scheduler.waiting):
            order = [self.place[each] for each in group]
            assert order == sorted(order)
        assert len(self.scheduler.running) + len(self.scheduler.waiting) == len(self.place)
        assert len(self.scheduler.running) <= self.scheduler.max_running

    @invariant()
    def no_page_is_lost(self):
        pages, tree = self.scheduler.pages, self.scheduler.pages.tree
        busy = {page for each in self.scheduler.running for page in pages.of(each.request)}
        assert len(busy) + pages.num_free == pages.num_pages
        assert all(not pages.of(each.request) for each in self.scheduler.waiting)
        assert not busy & {node.page for node in tree.idle()}
        if self.disk:
            for job in self.disk.jobs:
                owners = [each for each in self.scheduler.running if each.restore is job]
                assert job._cancelled != bool(owners), "a read goes on to pages that nobody keeps for it"
                assert not owners or set(job.pages) <= set(pages.of(owners[0].request))

    def teardown(self):
        if not hasattr(self, "place"):
            return
        for _ in range(3000):
            if not self.place:
                break
            for job in list(self.disk.jobs if self.disk else ()):
                del self.disk.jobs[job]
                job.finished = True
            self.run()
        assert not self.place, "not everyone ends"
        assert self.scheduler.next() == []
        assert self.scheduler.pages.num_free == self.scheduler.pages.num_pages


TestOrder = Order.TestCase
TestOrder.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
