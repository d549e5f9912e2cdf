"""A server that is running, from two looks at its counters (`GET /stats`). No model is loaded."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from baltoro.doctor.text import size
from baltoro.errors import BaltoroError

TIMEOUT_S = 10.0
MUCH = 0.5  # of the time
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUse:
    """Of the expert store, between two looks."""

    slots: int
    budget_bytes: int
    hits: int
    misses: int
    hit_rate: float | None  # None: no expert was used
    bytes_read: int
    read_gbps: float
    bytes_per_token: float | None  # None: no token was computed
    waited_share: float  # of the time between the looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a server did between two looks."""

    model: str
    seconds: float
    tokens_per_s: float  # chosen, of all requests together
    prompt_tokens_per_s: float
    steps_per_s: float
    tokens_per_step: float | None
    running: int  # at the second look
    waiting: int
    free_pages: int
    num_pages: int
    preemptions: int
    failed_steps: int
    store: StoreUse | None


def watch(url: str, seconds: float, key: str | None = None) -> Activity:
    """key: of a server that asks for one."""
    first = fetch(url, key)
    time.sleep(seconds)
    return between(url, first, fetch(url, key))


def fetch(url: str, key: str | None = None) -> Document:
    """What /stats of the server at `url` says; with /v1 behind it is the same server."""
    address = url.rstrip("/").removesuffix("/v1") + "/stats"
    if not address.startswith(("http://", "https://")):
        raise BaltoroError(f"{url!r} is no address of a server", hint="as http://127.0.0.1:8000")
    request = urllib.request.Request(address)
    if key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            document = json.load(answer)
    except urllib.error.HTTPError as error:
        hint = "is it `baltoro serve`, of this version?"
        if error.code == 401:
            hint = "it asks for a key, and the one in BALTORO_API_KEY goes along"
        raise BaltoroError(f"{address} answers {error.code}", hint=hint) from error
    except (OSError, ValueError) as error:
        raise BaltoroError(f"{address} does not answer: {error}", hint="is `baltoro serve` running there?") from error
    if not isinstance(document, dict) or not isinstance(cast("Document", document).get("engine"), dict):
        raise BaltoroError(f"{address} says nothing of an engine", hint="it must be `baltoro serve`, of this version")
    return cast("Document", document)


def between(url: str, first: Document, second: Document) -> Activity:
    """From the counters of two looks."""
    try:
        seconds = second["clock_s"] - first["clock_s"]
        began, ended = first["engine"], second["engine"]
        if upstreams := ended.get("upstreams"):
            names = ", ".join(each["url"] for each in upstreams)
            raise BaltoroError(f"{url} computes nothing itself", hint=f"its upstreams do: {names}")
        if seconds <= 0 or ended["steps"] < began["steps"]:
            raise BaltoroError(f"{url} was started anew between two looks", hint="once more")
        steps, generated, prefilled, preemptions, failed = (
            ended[name] - began[name]
            for name in ("steps", "generated_tokens", "prefilled_tokens", "preemptions", "failed_steps")
        )
        store = None
        if second["store"] is not None:
            store = _store(first["store"], second["store"], seconds, generated + prefilled)
        return Activity(
            model=second["model"],
            seconds=seconds,
            tokens_per_s=generated / seconds,
            prompt_tokens_per_s=prefilled / seconds,
            steps_per_s=steps / seconds,
            tokens_per_step=generated / steps if steps else None,
            running=ended["running"],
            waiting=ended["waiting"],
            free_pages=ended["free_pages"],
            num_pages=ended["num_pages"],
            preemptions=preemptions,
            failed_steps=failed,
            store=store,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BaltoroError(f"{url}/stats is of another version: {error!r}", hint="update the older one") from error


def _store(first: Document, second: Document, seconds: float, tokens: int) -> StoreUse:
    hits, misses, nbytes = (second[name] - first[name] for name in ("hits", "misses", "bytes_read"))
    return StoreUse(
        slots=second["slots"],
        budget_bytes=second["budget_bytes"],
        hits=hits,
        misses=misses,
        hit_rate=hits / (hits + misses) if hits + misses else None,
        bytes_read=nbytes,
        read_gbps=nbytes / seconds / 1e9,
        bytes_per_token=nbytes / tokens if tokens else None,
        waited_share=min(1.0, (second["waited_s"] - first["waited_s"]) / seconds),
    )


def lines(activity: Activity) -> Iterator[str]:
    """For people: what was counted, then what it means."""
    yield f"{activity.model} over {activity.seconds:.1f} s: {activity.tokens_per_s:.2f} tokens/s"
    step = f", {activity.tokens_per_step:.1f} tokens each" if activity.tokens_per_step is not None else ""
    yield f"engine    {activity.steps_per_s:.2f} steps/s{step}; {activity.prompt_tokens_per_s:.1f} prompt tokens/s"
    yield (
        f"requests  {activity.running} running, {activity.waiting} waiting; "
        f"{activity.free_pages:,} of {activity.num_pages:,} cache pages free"
    )
    store = activity.store
    if store is None:
        yield "experts   all in memory"
    else:
        rate = "none used" if store.hit_rate is None else f"hit rate {store.hit_rate:.0%}, {store.misses:,} misses"
        each = "" if store.bytes_per_token is None else f", {size(store.bytes_per_token)} a token"
        yield (
            f"experts   {store.slots:,} in {size(store.budget_bytes)}; {rate}; {store.read_gbps:.2f} GB/s read{each}; "
            f"{store.waited_share:.0%} of the time waited for the disk"
        )
    yield ""
    yield from meaning(activity)


def meaning(activity: Activity) -> list[str]:
    """Each with the number that it follows from."""
    if not activity.steps_per_s and not activity.running:
        return ["it was idle: send requests while doctor looks"]
    found: list[str] = []
    store = activity.store
    if not activity.steps_per_s:
        found.append(
            f"no step ended in {activity.seconds:.1f} s: look for longer, --seconds {4 * activity.seconds:.0f}"
        )
    if store is not None and store.waited_share >= MUCH:
        found.append(
            f"the disk binds: {store.waited_share:.0%} of the time nothing could be multiplied; what more "
            "--expert-memory would give: `baltoro doctor MODEL`"
        )
    elif store is not None:
        found.append(
            f"the disk does not bind: {store.waited_share:.0%} of the time is waited for it; memory or arithmetic: "
            "`baltoro doctor MODEL`"
        )
    if activity.preemptions:
        found.append(
            f"{activity.preemptions} requests lost their cache pages and computed their prompts again: a smaller "
            "--max-running"
        )
    if activity.waiting and not activity.preemptions:
        free = activity.free_pages / max(1, activity.num_pages)
        found.append(
            f"{activity.waiting} requests wait behind {activity.running}: "
            + ("more --max-running" if free > MUCH else f"{free:.0%} of the cache is free")
        )
    if activity.failed_steps:
        found.append(f"{activity.failed_steps} steps failed: the server's log says why")
    return found or ["no request waited, nothing came from disk: memory or arithmetic, see `baltoro doctor MODEL`"]
