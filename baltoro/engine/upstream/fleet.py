"""All upstreams of one model: who is well, who is asked, and who is asked instead.

An ask whose upstream fails before it has said a token goes to another one, `TRIES` times in all. Behind the first
token it ends with an error: what has brought one engine down is not carried to the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import httpx2

from baltoro.engine.request import SamplingParams
from baltoro.engine.upstream.connection import Busy, Identity, Lost, Patience, Refused, Upstream
from baltoro.engine.upstream.dialect import Ask, Heard
from baltoro.engine.upstream.draft import Draft
from baltoro.engine.upstream.routing import Router
from baltoro.errors import EngineError

_log = logging.getLogger(__name__)

TRIES = 3
FIRST_WAIT_S = 0.25  # before a try after which nobody was left; doubled from try to try

Tell = Callable[[Draft, Heard], bool]  # reports a token; False: it is refused, and with it all behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamStatistics:
    url: str
    engine: str | None  # vllm, sglang, llama-server; None while it has never answered
    fault: str | None  # why nothing is sent there; None while it is well
    running: int
    requests: int
    generated_tokens: int  # those that were void included
    failures: int


class Fleet:
    """Belongs to the event loop that runs it; what only looks may be called from any thread."""

    def __init__(
        self, urls: Sequence[str], *, client: httpx2.AsyncClient, patience: Patience, vocab_size: int, tell: Tell
    ) -> None:
        self.retries = self.corrections = 0
        self._upstreams = [Upstream(url, client, patience, vocab_size) for url in urls]
        self._patience, self._tell = patience, tell
        self._router = Router()
        self._changed = asyncio.Event()  # an upstream came back
        self._watches: list[asyncio.Task[None]] = []

    # ── looks ────────────────────────────────────────────────────────────────────────────────────

    @property
    def well(self) -> list[Identity]:
        return [each.identity for each in self._upstreams if each.identity is not None and each.fault is None]

    def faults(self) -> str:
        return "; ".join(f"{each.url}: {each.fault or 'busy'}" for each in self._upstreams)

    def check(self, sampling: SamplingParams) -> None:
        """Raise RequestError for a wish that an upstream cannot fulfil: any of them may get it."""
        for each in self._upstreams:
            if each.identity is not None:
                each.identity.dialect.check(sampling)

    def statistics(self) -> tuple[UpstreamStatistics, ...]:
        return tuple(
            UpstreamStatistics(
                url=each.url,
                engine=each.identity.dialect.name if each.identity else None,
                fault=each.fault,
                running=each.running,
                requests=each.requests,
                generated_tokens=each.generated,
                failures=each.failures,
            )
            for each in self._upstreams
        )

    # ── health ───────────────────────────────────────────────────────────────────────────────────

    async def connect(self) -> None:
        """Look at each once, and from now on."""
        await asyncio.gather(*(each.look() for each in self._upstreams))
        self._watches = [asyncio.create_task(self._watch(*each)) for each in enumerate(self._upstreams)]

    def need_context(self, tokens: int) -> None:
        """An upstream with less gets nothing."""
        for each in self._upstreams:
            each.least_context = tokens

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    async def _watch(self, place: int, upstream: Upstream) -> None:
        """Look at an upstream now and then, and at once when it has failed."""
        wait_s = self._patience.probe_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await upstream.suspect.wait()
            except TimeoutError:
                pass
            upstream.suspect.clear()
            before = upstream.fault
            if await upstream.look():
                _log.warning("upstream %s is back", upstream.url)
                self._router.forget(place)
                self._changed.set()
            if upstream.fault is not None and upstream.fault != before:
                _log.warning("upstream %s: %s", upstream.url, upstream.fault)
            well = upstream.fault is None
            wait_s = self._patience.probe_s if well else min(self._patience.probe_s, max(0.5, wait_s / 2))

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    async def ask(self, draft: Draft, ask: Ask, writer: int | None) -> int:
        """Hear what some upstream says to `ask`; the one that did."""
        tried: set[int] = set()
        reasons: list[str] = []
        for attempt in range(TRIES):
            place = await self._choose(ask, writer, tried, FIRST_WAIT_S * 2**attempt)
            if place is None:
                continue
            upstream, before = self._upstreams[place], len(draft.tokens)
            self.retries += bool(reasons)
            try:
                try:
                    await self._listen(upstream, draft, ask)
                except Refused as error:
                    if len(draft.tokens) > before or not draft.unhinted():
                        raise EngineError(f"{upstream.url} refuses the request: {error}") from error
                    _log.warning("%s cannot use a structure, every token is looked at here: %s", upstream.url, error)
                    await self._listen(upstream, draft, replace(ask, structure=None))
                return place
            except Refused as error:
                raise EngineError(f"{upstream.url} refuses the request: {error}") from error
            except Busy as error:
                upstream.busy(error.wait_s)
                reasons.append(f"{upstream.url}: {error}")
            except Lost as error:
                upstream.failed(str(error))
                _log.warning("upstream %s: %s", upstream.url, error)
                reasons.append(f"{upstream.url}: {error}")
                if len(draft.tokens) > before:
                    raise EngineError(
                        f"{upstream.url} failed after {len(draft.tokens)} tokens: {error}",
                        hint="send the request again",
                    ) from error
            tried.add(place)
            writer = None
        raise EngineError(f"no upstream answered: {'; '.join(reasons) or self.faults()}", hint="send it again later")

    async def _choose(self, ask: Ask, writer: int | None, tried: set[int], wait_s: float) -> int | None:
        """Who is to be asked. Waits for one that comes back, where nobody can be; None if none does."""
        deadline = time.monotonic() + wait_s
        while True:
            usable = {place for place, each in enumerate(self._upstreams) if each.usable} - tried
            if writer in usable:
                return writer
            place = self._router.choose(ask.prompt, [each.running for each in self._upstreams], usable)
            if place is not None:
                return place
            tried.clear()  # better one that has failed than none
            self._changed.clear()
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                break
        usable = {place for place, each in enumerate(self._upstreams) if each.usable}
        return self._router.choose(ask.prompt, [each.running for each in self._upstreams], usable)

    async def _listen(self, upstream: Upstream, draft: Draft, ask: Ask) -> None:
        """Report what it says until it has ended, or says what must not be. Raises Lost, Busy or Refused."""
        upstream.running += 1
        upstream.requests += 1
        before = len(draft.tokens)
        try:
            async with aclosing(upstream.stream(ask)) as chunks:
                async for chunk in chunks:
                    if chunk.missed:
                        draft.missed()
                        return
                    for heard in chunk.heard:
                        if not self._tell(draft, heard):
                            if ask.allowed is not None:
                                raise Lost(f"it said token {heard.token}, which was not among the allowed ones")
                            self.corrections += 1
                            return
                        if draft.over is not None:
                            return
        finally:
            upstream.running -= 1
        if len(draft.tokens) == before:
            raise Lost("it ended without a token")
