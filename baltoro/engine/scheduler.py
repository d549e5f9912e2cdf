"""Who runs in the next step.

    waiting ──admit──> running: (restore ──>) prefill ──> decode ──> gone
       ^                  │          │          │            │
       └────preempt───────┴──────────┴──────────┴────────────┘    pages given back, tokens kept

One step takes one token of every decoding sequence, then up to `prefill_tokens` of prompts, oldest
first: a long prompt never holds up those already speaking for longer than one chunk. Requests are
admitted in the order of arrival, with pages for their whole prompt: what the prefix tree knows of it
is shared and not computed again, and while what the disk knows is read, others go on. At least one
token is always computed, for its logits. When a growing sequence finds no free page, the youngest
gives its pages back and waits at the head of the queue; it later prefills its prompt and decodes all
it has said so far once more, several tokens in one step. So everyone running is older than everyone
waiting, the oldest always moves on, and every request ends.
"""

from __future__ import annotations

from collections import deque

from baltoro.engine.cache import Pages
from baltoro.engine.sequence import Chunk, Sequence
from baltoro.engine.spill import Spill

REPLAYED = 64  # generated tokens of one sequence in a step: each attends by itself, and has a list of all before it
SCORED_TOKENS = 256  # of a prompt whose log-probabilities are wanted, in one step: K2's logits of these take 168 MB


class Scheduler:
    """Orders the sequences of one engine. Used by the engine's thread alone."""

    def __init__(self, pages: Pages, *, max_running: int, prefill_tokens: int, spill: Spill | None = None) -> None:
        """spill: knows more prefixes than the pages hold."""
        self.pages = pages
        self.spill = spill
        self.max_running = max_running
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.num_preemptions = 0
        self.num_hits = 0  # admissions that found a prefix
        self.reused_tokens = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It ended, wherever it stood."""
        self._leave_pages(sequence)
        (self.running if sequence in self.running else self.waiting).remove(sequence)

    def clear(self) -> None:
        """Everyone ended at once."""
        for sequence in self.running:
            self._leave_pages(sequence)
        self.running.clear()
        self.waiting.clear()

    @property
    def waits_for_disk(self) -> bool:
        """Whether nothing can be computed before a read has finished."""
        return bool(self.running) and all(each.restore and not each.restore.finished for each in self.running)

    def computed(self, sequence: Sequence, start: int, stop: int) -> None:
        """The latents of tokens start:stop lie in its pages now."""
        sequence.cached = stop
        if start < len(sequence.request.prompt):
            self.pages.publish(sequence.request, stop)

    def next(self) -> list[Chunk]:
        """The chunks of one step, decodes first; empty only when nobody is there, or all wait for the disk."""
        chunks: list[Chunk] = []
        prefilling: list[Sequence] = []
        place = 0
        while place < len(self.running):  # preemption shortens the list from its end while we walk
            sequence = self.running[place]
            if self._is_restoring(sequence):
                pass
            elif sequence.cached < max(len(sequence.request.prompt), len(sequence.tokens) - 1):
                prefilling.append(sequence)
            elif self._grow(sequence):
                chunks.append(Chunk(sequence, sequence.cached, len(sequence.tokens)))
            place += 1

        budget = self.prefill_tokens
        for sequence in prefilling:
            if budget and self.pages.of(sequence.request):  # one that owns nothing was preempted just now
                budget -= self._prefill(sequence, budget, chunks)
        while budget and self._admit():
            if not self.running[-1].restore:
                budget -= self._prefill(self.running[-1], budget, chunks)
        return chunks

    def _prefill(self, sequence: Sequence, budget: int, chunks: list[Chunk]) -> int:
        """Add its next chunk; returns what of the budget that takes."""
        scores = sequence.request.prompt_logprobs is not None
        left = len(sequence.request.prompt) - sequence.cached
        most = left if left > 0 else min(len(sequence.tokens) - sequence.cached, REPLAYED)
        count = min(SCORED_TOKENS if scores else budget, budget, most)
        chunks.append(Chunk(sequence, sequence.cached, sequence.cached + count))
        return budget if scores else count  # one such chunk a step: logits of two would take twice the memory

    def _grow(self, sequence: Sequence) -> bool:
        """A page for its newest token, from the youngest if need be; False when it was the youngest itself."""
        while not self.pages.allocate(sequence.request, len(sequence.tokens)):
            youngest = self.running.pop()
            self._leave_pages(youngest)
            youngest.cached = 0
            self.waiting.appendleft(youngest)
            self.num_preemptions += 1
            if youngest is sequence:
                return False
        return True

    def _admit(self) -> bool:
        """Move the head of the queue to the running ones, if a place and its pages are free.

        One more page for everyone running stays free, or the newcomer would soon be preempted by their growth.
        """
        if not self.waiting or len(self.running) >= self.max_running:
            return False
        sequence = self.waiting[0]
        request, tokens = sequence.request, len(sequence.tokens)
        most = min(len(request.prompt), tokens - 1)  # one is computed, for its logits
        if request.prompt_logprobs is not None:
            most = 0  # and here all are
        shared = self.pages.match(request, most)
        if not self.pages.can_admit(tokens, shared, reserve=len(self.running)):
            return False
        self.pages.share(request, shared)
        self.pages.allocate(request, tokens)
        sequence.cached = len(shared) * self.pages.page_tokens
        self.running.append(self.waiting.popleft())
        if self.spill is not None:
            sequence.restore = self.spill.restore(request.prompt, shared, self.pages.of(request), most)
        if not sequence.restore:
            self._found(sequence)
        return True

    def _is_restoring(self, sequence: Sequence) -> bool:
        """Whether it still waits for the disk. What has come for one that does not any more is given to the tree."""
        restore = sequence.restore
        if restore is None or not restore.finished:
            return restore is not None
        sequence.restore = None
        self.computed(sequence, sequence.cached, sequence.cached + restore.restored * self.pages.page_tokens)
        self._found(sequence)
        return False

    def _found(self, sequence: Sequence) -> None:
        """It begins to run, with `cached` tokens that it need not compute."""
        if sequence.reused is None:  # those that it finds after a preemption were its own, perhaps
            sequence.reused = sequence.cached
        self.num_hits += sequence.cached > 0
        self.reused_tokens += sequence.cached

    def _leave_pages(self, sequence: Sequence) -> None:
        if sequence.restore is not None:
            sequence.restore.cancel()  # before another may have them
            sequence.restore = None
        self.pages.free(sequence.request)
