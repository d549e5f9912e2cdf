"""Many requests, one model, one thread: submit, cancel, the step, the loop around it.

    callers' threads     submit, cancel, stop ──> orders
                                                    │
    the engine's thread     sleep until an order, then: scheduler.next ──> pack ──> model ──> choose ──> sink
                                  ^──────────────────── while someone is there ─────────────────────────┘

A token is reported as soon as it is chosen, a stop token too: `Step(token, STOP)` carries it, and it
counts as generated. What fails inside one request (its constraint, its logits, its sink) ends that
request; what fails inside a forward ends those in the batch. The engine goes on in both cases.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.engine import logprobs, sampler
from baltoro.engine.cache import Pages
from baltoro.engine.penalties import Penalties
from baltoro.engine.prefix import PrefixTree
from baltoro.engine.prefix_files import PrefixFiles
from baltoro.engine.request import FinishReason, Request, Step
from baltoro.engine.scheduler import Chunk, Scheduler, Sequence
from baltoro.engine.speculative import Drafter
from baltoro.engine.spill import Spill
from baltoro.errors import ContextError, EngineError, RequestError
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.transformer import Observed, Transformer
from baltoro.weights.experts import ExpertStore
from baltoro.weights.trace import Writer

_log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3  # forwards that must fail one after the other before the engine calls itself unhealthy


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine may spend. Only `cache_dtype` can change the text that comes out."""

    cache_bytes: int  # latent cache; Kimi K2 in bf16 costs 70,272 bytes a token
    cache_dtype: torch.dtype = torch.bfloat16
    page_tokens: int = 64  # positions in a page; a sequence wastes half a page on average
    max_running: int = 32  # sequences decoded together
    prefill_tokens: int = 2048  # prompt tokens taken into one step; bounds how long a decoding sequence waits
    prefix_cache: bool = True  # prompts that begin alike share pages, and what others computed is used again
    max_context: int | None = None  # prompt and answer, tokens; None: what the model and the cache allow
    speculate: bool = True  # guess what comes next where grammar or text tell; what is said stays the same
    stuck_after_s: float = 600.0  # a step that lasts longer makes the engine unhealthy

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "page_tokens", "max_running", "prefill_tokens", "max_context", "stuck_after_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise EngineError(f"EngineConfig.{name} is {value}, expected a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The engine at one moment, and what it has done since it started."""

    running: int  # requests holding pages
    waiting: int  # requests submitted or preempted
    free_pages: int  # that can be had, those of the prefix tree that nobody holds included
    num_pages: int
    prefix_pages: int  # in the prefix tree
    generated_tokens: int
    prefilled_tokens: int  # prompt tokens computed; those computed again after a preemption count again
    steps: int
    drafted_tokens: int  # proposed before the model was asked
    foreseen_tokens: int  # and said by it: each spared a step
    preemptions: int
    failed_steps: int
    prefix_hits: int  # admissions that found the beginning of their prompt
    reused_tokens: int  # that they did not compute; those found again after a preemption count again
    evicted_pages: int  # of the prefix tree
    spilled_bytes: int  # of them, written to disk
    restored_bytes: int  # and read from there


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
        num_pages = config.cache_bytes // page_bytes(model.config, config)
        self.max_context = _max_context(model.config, config, num_pages)
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._config = config
        self._trace = trace
        self._moe_layers = [layer for layer in range(model.config.num_hidden_layers) if model.config.is_moe(layer)]
        self._cache = LatentCache(
            model.config, num_pages=num_pages, page_tokens=config.page_tokens, dtype=config.cache_dtype
        )
        self._orders = threading.Condition()  # guards the five further below
        self._tree = PrefixTree(page_tokens=config.page_tokens) if config.prefix_cache else None
        self._spill = None if files is None else Spill(files, self._cache.latents, wake=self._wake)
        self._pages = Pages(
            num_pages=num_pages, page_tokens=config.page_tokens, tree=self._tree,
            evicted=self._spill.save if self._spill else None,
        )  # fmt: skip
        self._scheduler = Scheduler(
            self._pages, max_running=config.max_running, prefill_tokens=config.prefill_tokens, spill=self._spill
        )
        self._sampler = sampler.Sampler(self.vocab_size)

        self._live: dict[Request, Sequence] = {}
        self._arrived: list[Sequence] = []
        self._cancelled: list[Request] = []
        self._closed = False  # nothing new is taken
        self._abandoned = False  # and what is under way ends at once

        self._step_began: float | None = None  # time.monotonic(); None: asleep
        self._failures_in_a_row = 0
        self._last_error = ""  # its text: the exception itself would keep the activations of its frames alive
        self._steps = self._generated = self._prefilled = self._failed_steps = self._drafted = self._foreseen = 0
        self._thread = threading.Thread(target=self._run, name="baltoro-engine", daemon=True)
        self._thread.start()

    # ── what callers do ──────────────────────────────────────────────────────────────────────────

    def submit(self, request: Request) -> None:
        """Queue it; its sink hears of every token on the engine's thread, and lastly of its end, exactly once."""
        self._check(request)
        seed = request.sampling.seed
        sequence = Sequence(
            request,
            list(request.prompt),
            secrets.randbits(64) if seed is None else seed,
            Penalties.of(request.sampling, request.prompt),
        )
        if self._config.speculate:
            sequence.drafter = Drafter(request.constraint)
        with self._orders:
            if self._closed:
                raise EngineError("the engine has stopped", hint="restart the server")
            if request in self._live:
                raise RequestError(f"request {request.id} is already running", hint="make a new Request for each run")
            self._live[request] = sequence
            self._arrived.append(sequence)
            self._orders.notify()

    def cancel(self, request: Request) -> None:
        """End it before the next step, with CANCELLED; one that has ended already is left alone."""
        with self._orders:
            self._cancelled.append(request)
            self._orders.notify()

    def stop(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take nothing new, and return when the thread has ended.

        With `drain` the requests under way finish first, for `timeout_s` at most; without, or when that is over,
        they end with ERROR. Called by a sink, on the engine's own thread, it returns at once.
        """
        with self._orders:
            self._closed = True
            self._abandoned |= not drain
            self._orders.notify()
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
        began = self._step_began  # read once: the engine's thread changes it
        if began is not None and (lasted := time.monotonic() - began) > self._config.stuck_after_s:
            return f"the current step has lasted {lasted:.0f} s"
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            return f"{self._failures_in_a_row} steps in a row failed: {self._last_error}"
        return None

    @property
    def healthy(self) -> bool:
        return self.fault is None

    def statistics(self) -> Statistics:
        return Statistics(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._arrived),
            free_pages=self._pages.num_free,
            num_pages=self._pages.num_pages,
            prefix_pages=self._tree.num_pages if self._tree else 0,
            generated_tokens=self._generated,
            prefilled_tokens=self._prefilled,
            steps=self._steps,
            drafted_tokens=self._drafted,
            foreseen_tokens=self._foreseen,
            preemptions=self._scheduler.num_preemptions,
            failed_steps=self._failed_steps,
            prefix_hits=self._scheduler.num_hits,
            reused_tokens=self._scheduler.reused_tokens,
            evicted_pages=self._pages.num_evicted,
            spilled_bytes=self._spill.spilled_bytes if self._spill else 0,
            restored_bytes=self._spill.restored_bytes if self._spill else 0,
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
            with torch.inference_mode():
                while self._take_orders():
                    if chunks := self._scheduler.next():
                        self._step([self._with_drafts(chunk) for chunk in chunks])
                    else:
                        self._await_disk()
            whole = True
        except (
            BaseException
        ) as error:  # the outermost loop of this thread: a bug of ours must not leave callers waiting
            self._last_error = repr(error)
            _log.critical("the engine's loop failed", exc_info=True)
        with self._orders:
            self._closed = True
            left = list(self._live.values())
            self._live.clear()
            self._arrived.clear()
        self._scheduler.clear()
        for sequence in left:
            self._report(sequence, Step(None, FinishReason.ERROR, EngineError("the engine has stopped")))
        if whole and self._spill and self._tree:
            self._spill.save_all(self._tree)
        for each in (self._trace, self.store, self._spill):
            if each is not None:
                each.close()

    def _wake(self) -> None:
        """Something was read from disk; on the thread that read it."""
        with self._orders:
            self._orders.notify()

    def _await_disk(self) -> None:
        """Sleep while nothing can be computed before a read has finished, unless there is an order."""
        with self._orders:
            self._orders.wait_for(
                lambda: self._arrived or self._cancelled or self._abandoned or not self._scheduler.waits_for_disk
            )

    def _take_orders(self) -> bool:
        """Sleep until there is something to do; False when the loop is over."""
        with self._orders:
            while not (self._live or self._closed):
                self._step_began = None
                self._cancelled.clear()
                self._orders.wait()
            self._step_began = time.monotonic()
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
            for sequence in arrived:
                self._scheduler.add(sequence)
            ended = [self._live[request] for request in dict.fromkeys(cancelled) if request in self._live]
            over = self._abandoned or (self._closed and not self._live)
        for sequence in ended:
            self._end(sequence, Step(None, FinishReason.CANCELLED))
        return not over

    def _with_drafts(self, chunk: Chunk) -> Chunk:
        """The same with guesses behind it, where it decodes and pages are plenty: nobody is preempted for a guess."""
        sequence = chunk.sequence
        if sequence.drafter is None or not (chunk.is_last and chunk.is_generated):
            return chunk
        wishes = sequence.request.sampling.max_tokens - sequence.generated
        most = min(wishes, self.max_context - len(sequence.tokens)) - 1
        drafts = sequence.drafter.propose(sequence.tokens, most)
        spare = len(self._scheduler.running)
        if drafts and not self._pages.allocate(sequence.request, chunk.stop + len(drafts), spare=spare):
            return chunk
        return chunk._replace(drafts=drafts)

    def _step(self, chunks: list[Chunk]) -> None:
        batch = self._pack(chunks)
        try:
            logits: NDArray[np.float32] = self._forward(batch).cpu().numpy()
        except (
            Exception
        ) as error:  # out of memory, a broken shard, a bug in a kernel: these requests fail, others go on
            self._fail(chunks, error)
            return
        self._failures_in_a_row = 0
        self._steps += 1
        row = 0
        for chunk in chunks:
            sequence, start, stop, drafts = chunk
            self._scheduler.computed(sequence, start, stop)
            listens = True
            if scored := len(logprobs.prompt_rows(chunk)):
                listens = self._tell_prompt(sequence, logits[row : row + scored])
                row += scored
            if chunk.is_last:
                if listens:
                    self._listen(sequence, drafts, logits[row : row + 1 + len(drafts)])
                row += 1 + len(drafts)
            if stop - start > 1 or not chunk.is_generated:
                self._prefilled += stop - start

    def _listen(self, sequence: Sequence, drafts: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        """logits: behind its last token and behind each draft. It says as many tokens as its drafts have foreseen.

        Each is chosen as if there were no drafts: from the logits behind the token before it, by its own draw.
        """
        begun = sequence.cached
        for index, row in enumerate(logits):
            if not self._speak(sequence, row) or index == len(drafts) or sequence.tokens[-1] != drafts[index]:
                break
            sequence.cached += 1  # the draft's latents are those of the token that came
            self._foreseen += 1
        if drafts and sequence.drafter is not None:
            self._drafted += len(drafts)
            sequence.drafter.learn(len(drafts), sequence.cached - begun)

    def _forward(self, batch: Batch) -> Tensor:
        if self._trace is None:
            return self._model(batch, self._cache)
        observed = Observed()
        logits = self._model(batch, self._cache, observed)
        for layer, chosen in zip(self._moe_layers, observed.chosen, strict=True):
            self._trace.add(layer, chosen.cpu().numpy())
        return logits

    def _pack(self, chunks: list[Chunk]) -> Batch:
        ids: list[int] = []
        positions: list[int] = []
        edges = [0]
        logit_rows: list[int] = []
        for chunk in chunks:
            ids += chunk.sequence.tokens[chunk.start : chunk.stop]
            logit_rows += (edges[-1] + position - chunk.start for position in logprobs.prompt_rows(chunk))
            if chunk.is_last:
                logit_rows += range(len(ids) - 1, len(ids) + len(chunk.drafts))
            ids += chunk.drafts
            positions += range(chunk.start, chunk.stop + len(chunk.drafts))
            edges.append(len(ids))
        return Batch(
            ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            edges=tuple(edges),
            pages=tuple(self._pages.of(chunk.sequence.request) for chunk in chunks),
            logit_rows=None if len(logit_rows) == len(ids) else torch.tensor(logit_rows, dtype=torch.int64),
            generated=tuple(chunk.is_generated for chunk in chunks),
        )

    def _tell_prompt(self, sequence: Sequence, logits: NDArray[np.float32]) -> bool:
        """Report how likely its prompt's next tokens were; False when that ended it."""
        request, first = sequence.request, sequence.scored + 1
        sequence.scored += len(logits)
        assert request.prompt_logprobs is not None
        try:
            tokens = request.prompt[first : first + len(logits)]
            scores = [logprobs.score(*row, request.prompt_logprobs) for row in zip(logits, tokens, strict=True)]
        except EngineError as error:
            self._end(sequence, Step(None, FinishReason.ERROR, error))
            return False
        if not self._report(sequence, Step(None, prompt=tuple(scores))):
            self._forget(sequence)
            return False
        return True

    def _speak(self, sequence: Sequence, logits: NDArray[np.float32]) -> bool:
        """Choose its next token and report it; False when it has ended."""
        sampling, constraint = sequence.request.sampling, sequence.request.constraint
        try:
            mask = None if constraint is None else constraint.mask()
            draw = sampler.uniform(sequence.seed, sequence.generated) if sampling.temperature else 0.0
            avoid = sampling.stop_token_ids if sequence.generated < sampling.min_tokens else ()
            token = self._sampler.choose(
                logits, sampling, mask=mask, draw=draw, penalties=sequence.penalties, avoid=avoid
            )
            if constraint is not None:
                constraint.advance(token)
            scored = None if sampling.logprobs is None else logprobs.score(logits, token, sampling.logprobs)
        except Exception as error:  # a constraint is another's code; its bug ends its own request
            if not isinstance(error, EngineError):
                _log.exception("request %d: its constraint failed", sequence.request.id)
                error = EngineError(f"the constraint failed: {error!r}")
            self._end(sequence, Step(None, FinishReason.ERROR, error))
            return False
        sequence.tokens.append(token)
        if sequence.penalties is not None:
            sequence.penalties.advance(token)
        self._generated += 1
        if token in sampling.stop_token_ids:
            self._end(sequence, Step(token, FinishReason.STOP, scored=scored))
        elif sequence.generated >= sampling.max_tokens or len(sequence.tokens) >= self.max_context:
            self._end(sequence, Step(token, FinishReason.LENGTH, scored=scored))
        elif not self._report(sequence, Step(token, scored=scored)):
            self._forget(sequence)
        else:
            return True
        return False

    def _fail(self, chunks: list[Chunk], error: Exception) -> None:
        _log.exception("a step of %d sequences failed", len(chunks))
        self._last_error = repr(error)
        self._failures_in_a_row += 1
        self._failed_steps += 1
        for chunk in chunks:
            reason = EngineError(f"the model failed: {error!r}", hint="the server's log has the traceback")
            self._end(chunk.sequence, Step(None, FinishReason.ERROR, reason))

    def _end(self, sequence: Sequence, step: Step) -> None:
        self._forget(sequence)  # first, so that who hears of the end finds its pages free
        self._report(sequence, step)

    def _forget(self, sequence: Sequence) -> None:
        with self._orders:
            del self._live[sequence.request]
        self._scheduler.remove(sequence)

    def _report(self, sequence: Sequence, step: Step) -> bool:
        """False when its sink raised: nobody listens any more, so the request goes."""
        try:
            sequence.request.sink(replace(step, cached_tokens=sequence.reused or 0))
        except Exception:  # a sink is another's code; its bug ends its own request
            _log.exception("request %d: its sink failed", sequence.request.id)
            return False
        return True


def page_bytes(model: ModelConfig, config: EngineConfig) -> int:
    """Bytes of one page, over all layers."""
    return config.page_tokens * counts.cache_bytes_per_token(model, value_bytes=config.cache_dtype.itemsize)


def _max_context(model: ModelConfig, config: EngineConfig, num_pages: int) -> int:
    """A sequence must fit the cache alone, or it could never be admitted."""
    fits = num_pages * config.page_tokens
    wanted = config.max_context
    if fits < 2:
        raise EngineError(
            f"cache_bytes is {config.cache_bytes}, expected at least {page_bytes(model, config)} for one page"
        )
    if wanted is None:
        return min(fits, model.max_position_embeddings)
    if wanted > model.max_position_embeddings:
        raise EngineError(
            f"max_context is {wanted}, expected at most the model's {model.max_position_embeddings} positions"
        )
    if wanted > fits:
        needed = -(-wanted // config.page_tokens) * page_bytes(model, config)
        raise EngineError(
            f"a context of {wanted} tokens does not fit the cache, which holds {fits}",
            hint=f"give at least {needed} cache_bytes, or a smaller max_context",
        )
    return wanted
