"""Who runs in the next step.

    waiting ──admit──> running: (restore ──>) prefill ──> decode ──> gone
       ^                  │          │          │            │
       └────preempt───────┴──────────┴──────────┴────────────┘    pages given back, tokens kept

Order. Everyone has a place: the lower `Request.priority` first, among equals who came first. Places are admitted, grow
and get prompt tokens in this order, and when a growing sequence finds no free page the last of the running gives its
pages back and waits again, at its own place; it later prefills its prompt and decodes all it has said so far once
more, several tokens in one step. A running one is stopped for a page only, never because a better one has come. The
first of the running always moves on, and whoever stands before all others gets the next seat; so every request ends,
unless better ones keep coming.

Decode. One step takes one token of every decoding sequence beside at most `prefill_tokens` tokens of prompts, so a
sequence that speaks waits, from token to token, for one step of `prefill_tokens + max_running * (1 + guesses)` rows.

Prefill. Of these tokens the first prompt gets half, rounded up; the rest goes, priority by priority, to the shortest
one, by what it had to compute when it was admitted, and to the first among equals. Prompts of one
size are so computed one behind the other, and a short prompt does not wait for a long one: let W be the tokens left of
a prompt and of all others admitted that come before it by priority or are no longer. Then it asks for its
first token in the step `ceil(W / (prefill_tokens // 2))` after its admission or earlier, if none of these comes later.
(A prompt that is to be scored, or comes back after a preemption, takes bounded chunks, and may need more steps.)

Sharing. Requests are admitted with pages for their whole prompt: what the prefix tree knows of it is not computed
again, neither what it learns while they wait for their turn; while what the disk knows is read, others go on. At least
one token is always computed, for its logits.
"""

from __future__ import annotations

from bisect import insort

from baltoro.engine.cache import Pages
from baltoro.engine.sequence import Chunk, Sequence
from baltoro.engine.spill import Spill
from baltoro.engine.waiting import Waiting

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
        self.waiting = Waiting()
        self.running: list[Sequence] = []  # in order
        self.num_preemptions = 0
        self.num_hits = 0  # admissions that found a prefix
        self.queried_tokens = 0  # of the prompts that were looked up
        self.reused_tokens = 0
        self._arrivals = 0

    def add(self, sequence: Sequence) -> None:
        sequence.order = (sequence.request.priority, self._arrivals)
        self._arrivals += 1
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It ended, wherever it stood."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        self._leave_pages(sequence)
        self.running.remove(sequence)

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
        place = 0
        while place < len(self.running):  # preemption shortens the list from its end while we walk
            sequence = self.running[place]
            if not self._is_restoring(sequence) and not self._is_prefilling(sequence) and self._grow(sequence):
                chunks.append(Chunk(sequence, sequence.cached, len(sequence.tokens)))
            place += 1
        while self._admit():
            pass
        decoding = {chunk.sequence for chunk in chunks}
        prefilling = [each for each in self.running if each.restore is None and each not in decoding]
        for sequence, count in self._shares(prefilling):
            chunks.append(Chunk(sequence, sequence.cached, sequence.cached + count))
        return chunks

    def _is_prefilling(self, sequence: Sequence) -> bool:
        return sequence.cached < max(len(sequence.request.prompt), len(sequence.tokens) - 1)

    def _shares(self, prefilling: list[Sequence]) -> list[tuple[Sequence, int]]:
        """How many tokens each of them gets in this step, see the top of this file; none where that is 0."""
        if not prefilling:
            return []
        for sequence in prefilling:
            self._learn(sequence)
        first, budget = prefilling[0], self.prefill_tokens
        shares = {first: min(self._most(first), budget - budget // 2)}
        budget -= shares[first]
        scored = first.request.prompt_logprobs is not None
        for sequence in sorted(prefilling, key=lambda each: (each.request.priority, each.work)):
            if sequence is not first and sequence.request.prompt_logprobs is not None:
                if scored:  # one such chunk a step: logits of two would take twice the memory
                    continue
                scored = True
            given = shares.get(sequence, 0)
            count = min(self._most(sequence) - given, budget)
            budget -= count
            if count:
                shares[sequence] = given + count
        return list(shares.items())

    def _left(self, sequence: Sequence) -> int:
        """Tokens to be computed before it says its next one."""
        return len(sequence.tokens) - sequence.cached

    def _most(self, sequence: Sequence) -> int:
        """What it can take in one step: a chunk is all of its prompt, or all generated."""
        prompt = len(sequence.request.prompt) - sequence.cached
        if prompt <= 0:
            return min(self._left(sequence), REPLAYED)
        return prompt if sequence.request.prompt_logprobs is None else min(prompt, SCORED_TOKENS)

    def _grow(self, sequence: Sequence) -> bool:
        """A page for its newest token, from the last one if need be; False when it was the last one itself."""
        while not self.pages.allocate(sequence.request, len(sequence.tokens)):
            last = self.running.pop()
            self._leave_pages(last)
            last.cached = 0
            self.waiting.add(last)
            self.num_preemptions += 1
            if last is sequence:
                return False
        return True

    def _admit(self) -> bool:
        """Move the first of the queue to the running ones, if a seat and its pages are free.

        One more page for everyone running stays free, or the newcomer would soon be preempted by their growth.
        """
        sequence = self.waiting.first()
        if sequence is None or len(self.running) >= self.max_running:
            return False
        request, tokens = sequence.request, len(sequence.tokens)
        most = self._reusable(sequence)
        shared = self.pages.match(request, most)
        if not self.pages.can_admit(tokens, shared, reserve=len(self.running)):
            return False
        self.pages.share(request, shared)
        self.pages.allocate(request, tokens)
        sequence.cached = len(shared) * self.pages.page_tokens
        insort(self.running, self.waiting.pop(), key=lambda each: each.order)
        self.queried_tokens += len(request.prompt)
        if self.spill is not None:
            sequence.restore = self.spill.restore(request.prompt, shared, self.pages.of(request), most)
        if not sequence.restore:
            self._found(sequence)
        return True

    def _reusable(self, sequence: Sequence) -> int:
        """Tokens of its prompt that need not be computed for it, if they are known."""
        if sequence.request.prompt_logprobs is not None:
            return 0  # all logits are wanted
        return min(len(sequence.request.prompt), len(sequence.tokens) - 1)  # one is computed, for its logits

    def _learn(self, sequence: Sequence) -> None:
        """Take over what the tree has learnt of its prompt since it was admitted."""
        known = self.pages.take_over(sequence.request, self._reusable(sequence)) * self.pages.page_tokens
        if known <= sequence.cached:
            return
        found, sequence.cached = known - sequence.cached, known
        self.num_hits += found == known  # nothing was known of it before
        self.reused_tokens += found
        if sequence.reused == known - found:  # it has computed nothing by itself yet
            sequence.reused = known

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
        sequence.work = self._left(sequence)
        self.num_hits += sequence.cached > 0
        self.reused_tokens += sequence.cached

    def _leave_pages(self, sequence: Sequence) -> None:
        if sequence.restore is not None:
            sequence.restore.cancel()  # before another may have them
            sequence.restore = None
        self.pages.free(sequence.request)
