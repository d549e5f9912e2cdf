"""Many requests, one model, one thread: submit, cancel, stop, and what can be seen from outside.

callers' threads     submit, cancel, stop ──> orders (engine/orders.py)
                                                │
the engine's thread     engine/loop.py: orders -> scheduler -> pack -> model -> output -> sinks
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from baltoro.engine.config import EngineConfig, max_context, page_bytes
from baltoro.engine.loop import Loop
from baltoro.engine.orders import Orders
from baltoro.engine.output import tell
from baltoro.engine.prefix_files import PrefixFiles
from baltoro.engine.request import FinishReason, Request, Step
from baltoro.engine.sequence import Sequence
from baltoro.engine.statistics import Statistics
from baltoro.errors import ContextError, EngineError, RequestError
from baltoro.model.transformer import Transformer
from baltoro.weights.experts import ExpertStore
from baltoro.weights.trace import Writer

_log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3  # forwards that must fail one after the other before the engine calls itself unhealthy


class Engine:
    """Runs requests on a thread of its own until `stop`. Every method may be called from any thread."""

    def __init__(
        self, model: Transformer, config: EngineConfig, *, trace: Writer | None = None, files: PrefixFiles | None = None
    ) -> None:
        """trace: gets the experts that every forward chose
        files: pages of the prefix tree that are evicted, or there at the end, go there; they may come back
        Both, and the model's store, are closed when the thread ends.
        """
        if files is not None and not config.prefix_cache:
            raise EngineError("files for a prefix cache that is switched off", hint="EngineConfig.prefix_cache")
        self.max_context = max_context(model.config, config)
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._config = config
        self._trace = trace
        self._files = files
        self._orders = Orders()
        self._loop = Loop(model, config, self._orders, trace=trace, files=files)
        self._last_error = ""
        self._thread = threading.Thread(target=self._run, name="baltoro-engine", daemon=True)
        self._thread.start()

    # ── what callers do ──────────────────────────────────────────────────────────────────────────

    def submit(self, request: Request) -> None:
        """Queue it; its sink hears of every token on the engine's thread, and lastly of its end, exactly once."""
        self._check(request)
        self._orders.submit(Sequence.of(request, speculate=self._config.speculate))

    def cancel(self, request: Request) -> None:
        """End it before the next step, with CANCELLED; one that has ended already is left alone."""
        self._orders.cancel(request)

    def stop(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take nothing new, and return when the thread has ended.

        With `drain` the requests under way finish first, for `timeout_s` at most; without, or when that is over,
        they end with ERROR. Called by a sink, on the engine's own thread, it returns at once.
        """
        self._orders.close(abandon=not drain)
        if threading.current_thread() is self._thread:
            return
        self._thread.join(timeout_s if drain else None)
        if self._thread.is_alive():
            self.stop(drain=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(drain=error is None)

    # ── what can be seen ─────────────────────────────────────────────────────────────────────────

    @property
    def cache_token_bytes(self) -> int:
        """Of the latents of one token, over all layers."""
        return page_bytes(self._model.config, self._config) // self._config.page_tokens

    @property
    def model(self) -> Transformer:
        """To look at: only the engine's thread runs it."""
        return self._model

    @property
    def store(self) -> ExpertStore | None:
        """Where routed experts come from that are not all in memory."""
        return self._model.store

    @property
    def fault(self) -> str | None:
        """Why the engine does not answer; None while it does. Looks at the loop itself, not at a flag it left."""
        if not self._thread.is_alive():
            return f"the engine's thread has ended: {self._last_error or 'it was stopped'}"
        began = self._loop.step_began  # read once: the engine's thread changes it
        if began is not None and (lasted := time.monotonic() - began) > self._config.stuck_after_s:
            return f"the current step has lasted {lasted:.0f} s"
        if self._loop.failures_in_a_row >= FAILURES_IN_A_ROW:
            return f"{self._loop.failures_in_a_row} steps in a row failed: {self._loop.last_error}"
        return None

    @property
    def healthy(self) -> bool:
        return self.fault is None

    def statistics(self) -> Statistics:
        loop = self._loop
        return Statistics(
            running=len(loop.scheduler.running),
            waiting=len(loop.scheduler.waiting) + self._orders.num_arrived,
            free_pages=loop.pages.num_free,
            num_pages=loop.pages.num_pages,
            prefix_pages=loop.tree.num_pages if loop.tree else 0,
            generated_tokens=loop.output.generated,
            prefilled_tokens=loop.output.prefilled,
            steps=loop.steps,
            drafted_tokens=loop.output.drafted,
            foreseen_tokens=loop.output.foreseen,
            preemptions=loop.scheduler.num_preemptions,
            failed_steps=loop.failed_steps,
            prefix_hits=loop.scheduler.num_hits,
            reused_tokens=loop.scheduler.reused_tokens,
            evicted_pages=loop.pages.num_evicted,
            spilled_bytes=loop.spill.spilled_bytes if loop.spill else 0,
            restored_bytes=loop.spill.restored_bytes if loop.spill else 0,
        )

    def _check(self, request: Request) -> None:
        prompt, size = request.prompt, self.vocab_size
        if not prompt:
            raise RequestError("the prompt is empty, expected at least one token", param="prompt")
        if len(prompt) + 1 > self.max_context:
            raise ContextError(
                f"the prompt has {len(prompt)} tokens, expected at most {self.max_context - 1}",
                hint="shorten the conversation, or serve with a larger context",
                param="prompt",
                code="context_length_exceeded",
            )
        named = {"stop_token_ids": request.sampling.stop_token_ids, "logit_bias": request.sampling.logit_bias}
        for name, ids in {"prompt": prompt, **named}.items():
            if ids and (min(ids) < 0 or max(ids) >= size):
                strange = next(token for token in ids if not 0 <= token < size)
                raise RequestError(
                    f"{name} has token id {strange}, expected 0 to {size - 1}",
                    hint="the ids come from another tokenizer",
                    param=name,
                )
        if request.prompt_logprobs is not None and request.prompt_logprobs < 0:
            raise RequestError(
                f"prompt_logprobs is {request.prompt_logprobs}, expected at least 0", param="prompt_logprobs"
            )

    # ── the engine's thread ──────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        whole = False
        try:
            self._loop.run()
            whole = True
        except (
            BaseException
        ) as error:  # the outermost loop of this thread: a bug of ours must not leave callers waiting
            self._last_error = repr(error)
            _log.critical("the engine's loop failed", exc_info=True)
        left = self._orders.end()
        self._loop.scheduler.clear()  # first, so that who hears of the end finds its pages free
        for sequence in left:
            tell(sequence, Step(None, FinishReason.ERROR, EngineError("the engine has stopped")))
        self._loop.close(keep=whole)
        for each in (self._trace, self.store, self._files):
            if each is not None:
                each.close()
