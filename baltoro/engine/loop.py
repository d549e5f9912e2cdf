"""The engine's steps, one behind the other, on one thread.

    sleep until an order, then: scheduler.next ──> pack ──> model ──> output: a token for every sink
          ^──────────────────── while someone is there ─────────────────────┘

What fails inside one request ends that request (engine/output.py); what fails inside a forward ends those in the
batch. The loop goes on in both cases.
"""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baltoro.engine.cache import Pages
from baltoro.engine.config import EngineConfig, max_context, page_bytes
from baltoro.engine.observe import Observer, StepRecord
from baltoro.engine.orders import Orders
from baltoro.engine.output import Output
from baltoro.engine.pack import pack
from baltoro.engine.prefix import PrefixTree
from baltoro.engine.prefix_files import PrefixFiles
from baltoro.engine.request import FinishReason, Step
from baltoro.engine.scheduler import Scheduler
from baltoro.engine.sequence import Chunk
from baltoro.engine.spill import Spill
from baltoro.errors import DeadlineError, EngineError
from baltoro.model.batch import Batch, LatentCache, Layout
from baltoro.model.transformer import Observed, Transformer
from baltoro.weights.trace import Writer

_log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3  # forwards that fail one after the other before the loop does


class Loop:
    """A cache, who owns its pages, and the steps that fill them. `run` is its thread's; the rest may be read by all."""

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig,
        orders: Orders,
        observer: Observer,
        *,
        trace: Writer | None,
        files: PrefixFiles | None,
    ) -> None:
        num_pages = config.cache_bytes // page_bytes(model.config, config)
        self._model = model
        self._orders = orders
        self._observer = observer
        self._trace = trace
        self._moe_layers = [layer for layer in range(model.config.num_hidden_layers) if model.config.is_moe(layer)]
        self._max_context = max_context(model.config, config)
        self._cache = LatentCache(
            model.config, num_pages=num_pages, page_tokens=config.page_tokens, dtype=config.cache_dtype
        )
        self.tree = PrefixTree(page_tokens=config.page_tokens) if config.prefix_cache else None
        self.spill = None if files is None else Spill(files, self._cache.latents, wake=orders.wake)
        self.pages = Pages(
            num_pages=num_pages, page_tokens=config.page_tokens, tree=self.tree,
            evicted=self.spill.save if self.spill else None,
        )  # fmt: skip
        self.scheduler = Scheduler(
            self.pages, max_running=config.max_running, prefill_tokens=config.prefill_tokens, spill=self.spill
        )
        self.output = Output(
            self.scheduler, orders, observer, vocab_size=model.config.vocab_size, max_context=self._max_context
        )
        self.step_began: float | None = None  # time.monotonic(); None: asleep
        self._failures_in_a_row = 0
        self.steps = self.failed_steps = 0

    def run(self) -> None:
        """Returns when the orders are at an end."""
        try:
            with torch.inference_mode():
                while self._take_orders():
                    chunks = self.scheduler.next()
                    self._orders.num_running = len(self.scheduler.running)
                    if chunks:
                        self._step([self._with_drafts(chunk) for chunk in chunks])
                    else:  # nothing can be computed before a read has finished
                        self.output.told()
                        self._orders.wait(lambda: not self.scheduler.waits_for_disk)
        finally:
            self.output.told()
            self.step_began = None

    def counts(self) -> dict[str, int]:
        """What it has done, by the names of `Statistics`."""
        return {
            "generated_tokens": self.output.generated,
            "prefilled_tokens": self.output.prefilled,
            "drafted_tokens": self.output.drafted,
            "foreseen_tokens": self.output.foreseen,
            "steps": self.steps,
            "failed_steps": self.failed_steps,
            "preemptions": self.scheduler.num_preemptions,
            "prefix_hits": self.scheduler.num_hits,
            "queried_tokens": self.scheduler.queried_tokens,
            "reused_tokens": self.scheduler.reused_tokens,
            "evicted_pages": self.pages.num_evicted,
            "spilled_bytes": self.spill.spilled_bytes if self.spill else 0,
            "restored_bytes": self.spill.restored_bytes if self.spill else 0,
        }

    def close(self, *, keep: bool) -> None:
        """keep: what the prefix tree knows is to be found on disk by the next one."""
        self.scheduler.clear()
        if self.spill is None:
            return
        if keep and self.tree:
            self.spill.save_all(self.tree)
        self.spill.close()

    def _fall_asleep(self) -> None:
        self.output.told()
        self.step_began = None

    def _take_orders(self) -> bool:
        """Sleep until there is something to do; False when the loop is over."""
        taken = self._orders.take(self._fall_asleep)
        if taken is None:
            return False
        self.step_began = time.monotonic()
        for sequence in taken.arrived:
            self.scheduler.add(sequence)
        for sequence in taken.cancelled:
            self.output.end(sequence, Step(None, FinishReason.CANCELLED))
        for sequence in taken.late:
            said = f"{sequence.generated} tokens were generated"
            late = DeadlineError(f"the request's time is over; {said}", hint="ask for less, or serve with more time")
            self.output.end(sequence, Step(None, FinishReason.ERROR, late))
        return True

    def _with_drafts(self, chunk: Chunk) -> Chunk:
        """The same with guesses behind it, where it decodes and pages are plenty: nobody is preempted for a guess."""
        sequence = chunk.sequence
        if sequence.drafter is None or not (chunk.is_last and chunk.is_generated):
            return chunk
        wishes = sequence.request.sampling.max_tokens - sequence.generated
        most = min(wishes, self._max_context - len(sequence.tokens)) - 1
        drafts = sequence.drafter.propose(sequence.tokens, most)
        spare = len(self.scheduler.running)
        if drafts and not self.pages.allocate(sequence.request, chunk.stop + len(drafts), spare=spare):
            return chunk
        return chunk._replace(drafts=drafts)

    def _step(self, chunks: list[Chunk]) -> None:
        scheduled = time.monotonic()
        batch = pack(chunks, self.pages)
        layout = Layout(batch, self._cache)
        packed = time.monotonic()
        for chunk in chunks:
            if chunk.sequence.began_s is None:
                self._observer.began(chunk.sequence, packed)
        self.output.told()  # now, when their readers may have the interpreter
        try:
            logits: NDArray[np.float32] = self._forward(batch, layout).cpu().numpy()
        except (
            Exception
        ) as error:  # out of memory, a broken shard, a bug in a kernel: these requests fail, others go on
            self._fail(chunks, error)
            return
        self._failures_in_a_row = 0
        self.steps += 1
        computed = time.monotonic()
        self.output.take(chunks, logits)
        assert self.step_began is not None
        self._observer.step(
            StepRecord(
                began_s=self.step_began,
                schedule_s=scheduled - self.step_began,
                pack_s=packed - scheduled,
                forward_s=computed - packed,
                sample_s=time.monotonic() - computed,
                sequences=len(chunks),
                tokens=len(batch.ids),
                logits=len(logits),
                waiting=self._orders.num_waiting,
                free_pages=self.pages.num_free,
            )
        )

    def _forward(self, batch: Batch, layout: Layout) -> Tensor:
        if self._trace is None:
            return self._model(batch, self._cache, layout=layout)
        observed = Observed()
        logits = self._model(batch, self._cache, observed, layout=layout)
        for layer, chosen in zip(self._moe_layers, observed.chosen, strict=True):
            self._trace.add(layer, chosen.cpu().numpy())
        return logits

    def _fail(self, chunks: list[Chunk], error: Exception) -> None:
        _log.exception("a step of %d sequences failed", len(chunks))
        self._failures_in_a_row += 1
        self.failed_steps += 1
        for chunk in chunks:
            reason = EngineError(f"the model failed: {error!r}", hint="the server's log has the traceback")
            self.output.end(chunk.sequence, Step(None, FinishReason.ERROR, reason))
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise EngineError(f"{self._failures_in_a_row} steps in a row failed, the last one with {error!r}")
