"""The engine's verbs over running vLLM, SGLang or llama-server: token ids out, token ids back.

callers' threads     submit, cancel, stop ──> one event loop on a thread of its own
                                                │  a task for every request:
upstream/draft.py       what to ask for next, and whether what comes back may stand
upstream/fleet.py       who is well, who is asked, who instead
upstream/connection.py  one sequence, read as it comes
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from baltoro.engine.request import FinishReason, Request, Step
from baltoro.engine.upstream.connection import Patience
from baltoro.engine.upstream.dialect import Heard
from baltoro.engine.upstream.draft import Draft
from baltoro.engine.upstream.fleet import Fleet, UpstreamStatistics
from baltoro.errors import BaltoroError, EngineError, RequestError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteStatistics:
    """All upstreams at one moment, and what they have done since the start."""

    running: int
    generated_tokens: int  # as reported
    corrections: int  # tokens that a constraint refused, and that were drawn again
    retries: int  # asks that went to another upstream
    upstreams: tuple[UpstreamStatistics, ...]


class _Deaf(Exception):
    """A sink raised: nobody listens any more."""


class RemoteEngine:
    """Sends requests to upstreams that serve one and the same model, until `stop`."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        vocab_size: int,
        max_context: int,
        key: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Every upstream is asked for a token. One at least has to answer; the others may come later.

        max_context: the most that is served; lowered to what the upstreams that answer allow. key: sent as bearer token
        """
        addresses = [_address(url) for url in urls]
        if not addresses or len(set(addresses)) < len(addresses):
            raise EngineError(f"upstreams are {', '.join(urls) or 'none'}, expected one at least, and each once")
        self.vocab_size = vocab_size
        self.store = None  # experts are elsewhere
        patience = patience or Patience()
        self._live: dict[Request, asyncio.Task[None]] = {}
        self._generated = 0
        self._dead = threading.Event()
        self._orders = threading.Condition()  # guards the three below
        self._known: set[Request] = set()  # submitted and not ended
        self._closed = False  # nothing new is taken
        self._abandoned = False  # and what is under way ends at once
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()  # closed, and nothing is under way
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(None, connect=patience.connect_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),  # an idle one may just be closing
            trust_env=False,  # no proxy stands before a cluster's own engines, and no key from .netrc is meant for them
        )
        self._fleet = Fleet(addresses, client=self._client, patience=patience, vocab_size=vocab_size, tell=self._tell)
        self._thread = threading.Thread(target=self._run, name="baltoro-remote", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._fleet.connect(), self._loop).result()
            if not (well := self._fleet.well):
                raise EngineError(f"no upstream answers: {self._fleet.faults()}", hint="start one, or correct its URL")
        except BaseException:
            self.stop(drain=False)
            raise
        self.max_context = min(max_context, *(each.max_context for each in well))
        self._fleet.need_context(self.max_context)

    # ── what callers do ──────────────────────────────────────────────────────────────────────────

    @property
    def dead(self) -> threading.Event:
        """Never set here: upstreams come back. Who started one itself sets it when that has ended."""
        return self._dead

    @property
    def stuck(self) -> bool:
        """No step runs here."""
        return False

    def observed(self) -> dict[str, Any]:
        """Nothing: steps are the upstreams'."""
        return {}

    def submit(self, request: Request) -> None:
        """Send it; its sink hears of every token on the loop's thread, and lastly of its end, exactly once."""
        self._check(request)
        with self._orders:
            if self._closed:
                raise EngineError("the engine has stopped", hint="restart the server")
            if request in self._known:
                raise RequestError(f"request {request.id} is already running", hint="make a new Request for each run")
            self._known.add(request)
            self._loop.call_soon_threadsafe(self._begin, request)

    def cancel(self, request: Request) -> None:
        """End it with CANCELLED and close its connection; one that has ended already is left alone."""
        with self._orders:
            if request in self._known:
                self._loop.call_soon_threadsafe(self._cancel, request)

    def stop(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take nothing new, and return when the thread has ended; see Engine.stop."""
        ours = threading.current_thread() is self._thread
        with self._orders:
            self._closed = True
            if drain and not ours:
                self._orders.wait_for(lambda: not self._known, timeout_s)
            self._abandoned |= not drain or bool(self._known and not ours)
            if self._thread.is_alive():
                with suppress(RuntimeError):  # it has just ended
                    self._loop.call_soon_threadsafe(self._wind_up)
        if not ours:
            self._thread.join()

    @property
    def fault(self) -> str | None:
        """Why nobody answers; None while one upstream does."""
        if not self._thread.is_alive():
            return "the engine has stopped"
        return None if self._fleet.well else f"no upstream: {self._fleet.faults()}"

    @property
    def healthy(self) -> bool:
        return self.fault is None

    def statistics(self) -> RemoteStatistics:
        return RemoteStatistics(
            running=len(self._known),
            generated_tokens=self._generated,
            corrections=self._fleet.corrections,
            retries=self._fleet.retries,
            upstreams=self._fleet.statistics(),
        )

    def _check(self, request: Request) -> None:
        prompt = request.prompt
        if request.priority or request.deadline is not None:
            raise RequestError(
                "priorities and deadlines are for a model that runs here, not behind --upstream", param="priority"
            )
        request.check_length(self.max_context)
        for name, ids in (("prompt", prompt), ("logit_bias", request.sampling.logit_bias)):
            if bad := next((token for token in ids if not 0 <= token < self.vocab_size), None):
                raise RequestError(f"{name} has id {bad}, expected 0 to {self.vocab_size - 1}", param=name)
        if request.prompt_logprobs is not None:
            raise RequestError("log-probabilities of a prompt are not to be had from an upstream", param="logprobs")
        if request.sampling.tempered_logprobs:
            raise RequestError("tempered log-probabilities are not to be had from an upstream", param="logprobs")
        self._fleet.check(request.sampling)

    # ── the loop's thread ────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._over.wait()
        await self._fleet.close()
        await self._client.aclose()

    def _begin(self, request: Request) -> None:
        task = self._loop.create_task(self._write(request))
        self._live[request] = task
        task.add_done_callback(lambda done: self._ended(request, done))
        if self._abandoned:
            task.cancel()

    def _cancel(self, request: Request) -> None:
        if request in self._live:
            self._live[request].cancel()

    def _ended(self, request: Request, task: asyncio.Task[None]) -> None:
        """Report an end that was not reported with its last token."""
        del self._live[request]
        with self._orders:
            self._known.discard(request)
            self._orders.notify_all()
        last: Step | None = None
        if task.cancelled():
            stopped = Step(None, FinishReason.ERROR, EngineError("the engine has stopped"))
            last = stopped if self._abandoned else Step(None, FinishReason.CANCELLED)
        elif (error := task.exception()) is not None and not isinstance(error, _Deaf):
            if not isinstance(error, BaltoroError):
                _log.error("request %d failed", request.id, exc_info=error)
                error = EngineError(f"the request failed: {error!r}", hint="the server's log has the traceback")
            last = Step(None, FinishReason.ERROR, error)
        if last is not None:
            try:
                request.tell(last)
            except Exception:  # a sink is another's code
                _log.exception("request %d: its sink failed", request.id)
        if self._closed:
            self._wind_up()

    def _wind_up(self) -> None:
        if self._abandoned:
            for task in list(self._live.values()):
                task.cancel()
        if self._closed and not self._live:
            self._over.set()

    # ── one request ──────────────────────────────────────────────────────────────────────────────

    async def _write(self, request: Request) -> None:
        draft = Draft(request, vocab_size=self.vocab_size, max_context=self.max_context)
        writer: int | None = None  # who holds this sequence in its cache
        while draft.over is None:
            asked = draft.next()
            if isinstance(asked, int):
                self._tell(draft, Heard(asked))
            else:
                writer = await self._fleet.ask(draft, asked, writer)

    def _tell(self, draft: Draft, heard: Heard) -> bool:
        """Report a token; False: it is refused."""
        step = draft.hear(heard)
        if step is None:
            return False
        self._generated += 1
        try:
            draft.request.tell(step)
        except Exception as error:  # a sink is another's code; its bug ends its own request
            _log.exception("request %d: its sink failed", draft.request.id)
            raise _Deaf from error
        return True


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets or a port that are none
        known = False
    if not known:
        raise EngineError(f"upstream {url!r} is no address", hint="as http://10.0.0.7:8000")
    return url.rstrip("/").removesuffix("/v1")
