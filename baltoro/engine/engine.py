"""Many requests, one model, one thread: submit, cancel, stop, and what can be seen from outside.

callers' threads     submit, cancel, stop ──> orders (engine/orders.py)
                                                │
the engine's thread     engine/loop.py: orders -> scheduler -> pack -> model -> output -> sinks
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from baltoro.engine.config import EngineConfig, max_context, page_bytes
from baltoro.engine.loop import Loop
from baltoro.engine.observe import Observer
from baltoro.engine.orders import Orders
from baltoro.engine.prefix_files import PrefixFiles
from baltoro.engine.request import Request
from baltoro.engine.sequence import Sequence
from baltoro.engine.statistics import COUNTERS, Statistics
from baltoro.engine.supervisor import Supervisor
from baltoro.engine.timeline import Timeline
from baltoro.errors import EngineError, RequestError
from baltoro.model.transformer import Transformer
from baltoro.weights.experts import ExpertStore
from baltoro.weights.trace import Writer


class Engine:
    """Runs requests on a thread of its own until `stop`. Every method may be called from any thread."""

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig,
        *,
        trace: Writer | None = None,
        files: PrefixFiles | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """trace: gets the experts that every forward chose
        files: pages of the prefix tree that are evicted, or there at the end, go there; they may come back
        timeline: gets every step and request, for Perfetto
        All of them, and the model's store, are closed when the thread ends.
        """
        if files is not None and not config.prefix_cache:
            raise EngineError("files for a prefix cache that is switched off", hint="EngineConfig.prefix_cache")
        self.max_context = max_context(model.config, config)
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._config = config
        self._trace = trace
        self._files = files
        self._orders = Orders(config.max_waiting)
        self._observer = Observer(timeline)
        self._supervisor = Supervisor(
            lambda: Loop(model, config, self._orders, self._observer, trace=trace, files=files),
            self._orders,
            self._observer,
            max_restarts=config.max_restarts,
            restart_after_s=config.restart_after_s,
            stuck_after_s=config.stuck_after_s,
            close=self._close,
        )

    # ── what callers do ──────────────────────────────────────────────────────────────────────────

    def submit(self, request: Request) -> None:
        """Queue it; its sink hears of every token on the engine's thread, and lastly of its end, exactly once."""
        self._check(request)
        self._orders.submit(Sequence.of(request, speculate=self._config.speculate))

    def submit_all(self, requests: Iterable[Request]) -> None:
        """As `submit`, and no step runs before all of them are queued: an idle engine then takes the same steps each
        time, and even weights whose sums depend on the rows beside them give the same bits."""
        sequences = list[Sequence]()
        for request in requests:
            self._check(request)
            sequences.append(Sequence.of(request, speculate=self._config.speculate))
        with self._orders:
            for sequence in sequences:
                self._orders.submit(sequence)

    def forget_prefixes(self) -> None:
        """For who has changed the weights: whatever was computed with the old ones is not used again.

        Weights may be changed, and this called, while nothing is under way.
        """
        with self._orders:  # nothing is submitted meanwhile, and a thread that has nothing to do waits here
            if self._orders.num_live:
                raise EngineError(
                    f"{self._orders.num_live} requests are under way", hint="change weights when all have ended"
                )
            if self._files is not None:
                raise EngineError("prefixes on disk were computed with the old weights", hint="leave the files out")
            if self._supervisor.loop is not None:
                self._supervisor.loop.pages.forget()

    def cancel(self, request: Request) -> None:
        """End it before the next step, with CANCELLED; one that has ended already is left alone."""
        self._orders.cancel(request)

    def stop(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take nothing new, and return when the thread has ended.

        With `drain` the requests under way finish first, for `timeout_s` at most; without, or when that is over,
        they end with ERROR. Called by a sink, on the engine's own thread, it returns at once; so it does when a step is
        stuck, which nothing can end.
        """
        self._orders.close(abandon=not drain)
        if threading.current_thread() is self._supervisor.thread:
            return
        if not self._supervisor.join(timeout_s if drain else None):
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
        """Why the engine does not answer; None while it does."""
        if self._supervisor.fault is not None:
            return self._supervisor.fault
        if not self._supervisor.thread.is_alive():
            return "the engine's thread has ended: it was stopped"
        return None

    @property
    def dead(self) -> threading.Event:
        """Set when it has given up: it will never answer again, and its process should leave."""
        return self._supervisor.dead

    @property
    def stuck(self) -> bool:
        """Whether it is dead in a step that does not end: neither will its thread, nor will Python by itself."""
        return self._supervisor.stuck

    @property
    def healthy(self) -> bool:
        return self.fault is None

    def statistics(self) -> Statistics:
        loop, counts = self._supervisor.loop, self._supervisor.retired.copy()
        if loop is not None:
            counts.update(loop.counts())
        return Statistics(
            running=len(loop.scheduler.running) if loop else 0,
            waiting=self._orders.num_waiting,
            free_pages=loop.pages.num_free if loop else 0,
            num_pages=loop.pages.num_pages if loop else 0,
            prefix_pages=loop.tree.num_pages if loop and loop.tree else 0,
            restarts=self._supervisor.num_restarts,
            **{name: counts[name] for name in COUNTERS},
        )

    def observed(self) -> dict[str, Any]:
        """Of steps and requests since it started, for JSON: ends, seconds by phase, the last step, histograms."""
        return self._observer.read()

    def _check(self, request: Request) -> None:
        prompt, size = request.prompt, self.vocab_size
        request.check_length(self.max_context)
        named = {"stop_token_ids": request.sampling.stop_token_ids, "logit_bias": request.sampling.logit_bias}
        for name, ids in {"prompt": prompt, **named}.items():
            if ids and (min(ids) < 0 or max(ids) >= size):
                strange = next(token for token in ids if not 0 <= token < size)
                raise RequestError(
                    f"{name} has token id {strange}, expected 0 to {size - 1}",
                    hint="the ids come from another tokenizer",
                    param=name,
                )
        if request.constraint is not None and request.sampling.tempered_logprobs:
            raise RequestError(
                "tempered_logprobs beside a constraint, expected nothing but the temperature to change what is drawn",
                param="tempered_logprobs",
            )
        if request.prompt_logprobs is not None and request.prompt_logprobs < 0:
            raise RequestError(
                f"prompt_logprobs is {request.prompt_logprobs}, expected at least 0", param="prompt_logprobs"
            )

    def _close(self) -> None:
        for each in (self._trace, self.store, self._files, self._observer.timeline):
            if each is not None:
                each.close()
