"""Parameters are honoured or refused: max_tokens, stop, n, seed, logprobs, tool_choice, parallel_tool_calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from baltoro.eval.document import at, listed, text_at
from baltoro.eval.endpoint import Endpoint, Reply
from baltoro.eval.verify.check import CLOCK, WEATHER, Check, asking, calls, found, said, text, unanswered

Json = Any
SUITE = "parameters"
_STORY = {"messages": asking("Tell me about the sea in a few sentences."), "temperature": 0, "seed": 11}
_TOOLS = {"messages": asking("How is the weather in Oslo, in celsius, and what time is it in UTC+1?"),
          "tools": [WEATHER, CLOCK], "temperature": 0, "seed": 11, "max_tokens": 300}  # fmt: skip


async def suite(endpoint: Endpoint) -> Sequence[Check]:
    cases: list[Callable[[Endpoint], Awaitable[list[Check]]]] = [
        _max_tokens, _stop, _n, _seed, _logprobs, _none, _required, _named, _serial,
    ]  # fmt: skip
    results = await asyncio.gather(*(case(endpoint) for case in cases))
    return [check for checks in results for check in checks]


async def _ask(endpoint: Endpoint, body: Mapping[str, Json], salt: Json = 0) -> Reply:
    return await endpoint.ask(body, salt=["parameters", salt])


async def _max_tokens(endpoint: Endpoint) -> list[Check]:
    name = "max_tokens"
    reply = await _ask(endpoint, {**_STORY, "max_tokens": 4})
    if reply.status != 200:
        return [unanswered(SUITE, name, reply)]
    finish, told = said(reply)[2], at(reply.usage, "completion_tokens")
    if finish == "stop" and isinstance(told, int) and told <= 4:
        return [Check(suite=SUITE, name=name, verdict="unknown", detail=f"the answer has {told} tokens by itself")]
    return [found(SUITE, name, finish == "length" and told == 4, f"finish_reason {finish}, {told} tokens, asked for 4")]


async def _stop(endpoint: Endpoint) -> list[Check]:
    """Four characters out of the middle of an answer ends the same answer before it."""
    name = "stop"
    plain = await _ask(endpoint, {**_STORY, "max_tokens": 60})
    if plain.status != 200:
        return [unanswered(SUITE, name, plain)]
    said_whole = text(plain)
    if len(said_whole) < 8:
        return [Check(suite=SUITE, name=name, verdict="unknown", detail=f"the answer is too short: {said_whole!r}")]
    word = said_whole[len(said_whole) // 2 :][:4]
    cut = await _ask(endpoint, {**_STORY, "max_tokens": 60, "stop": [word]})
    if cut.status != 200:
        return [unanswered(SUITE, name, cut)]
    expected = said_whole.split(word)[0]
    good = text(cut) == expected and said(cut)[2] == "stop"
    if not good and word not in text(cut) and text(cut)[:8] != expected[:8]:
        return [Check(suite=SUITE, name=name, verdict="unknown", detail="the same request has two answers")]
    return [found(SUITE, name, good, f"{text(cut)!r} ({said(cut)[2]}), expected {expected!r} before {word!r}")]


async def _n(endpoint: Endpoint) -> list[Check]:
    reply = await _ask(endpoint, {**_STORY, "temperature": 1, "n": 2, "max_tokens": 20})
    if reply.status != 200:
        return [unanswered(SUITE, "n", reply)]
    indices = [at(choice, "index") for choice in listed(reply.body, "choices")]
    return [found(SUITE, "n", indices == [0, 1], f"choices {indices}, asked for two")]


async def _seed(endpoint: Endpoint) -> list[Check]:
    body = {**_STORY, "temperature": 1, "max_tokens": 30}
    once, again, other = await asyncio.gather(
        _ask(endpoint, body, 1), _ask(endpoint, body, 2), _ask(endpoint, {**body, "seed": 12}, 3)
    )
    for reply in (once, again, other):
        if reply.status != 200:
            return [unanswered(SUITE, "seed", reply)]
    checks = [found(SUITE, "seed repeats", said(once) == said(again), f"{text(once)!r} and {text(again)!r}")]
    if said(once) == said(other):
        detail = "two seeds gave one answer, which a model that is very sure may do"
        return [*checks, Check(suite=SUITE, name="other seeds differ", verdict="unknown", detail=detail)]
    return [*checks, found(SUITE, "other seeds differ", True, "")]


async def _logprobs(endpoint: Endpoint) -> list[Check]:
    """One entry a token, none above 0, and at temperature 0 the token is the likeliest of its alternatives."""
    name = "logprobs"
    reply = await _ask(endpoint, {**_STORY, "max_tokens": 12, "logprobs": True, "top_logprobs": 3})
    if reply.status != 200:
        return [unanswered(SUITE, name, reply)]
    entries = listed(reply.body, "choices", 0, "logprobs", "content")
    if not entries:
        return [found(SUITE, name, not text(reply), "none came")]
    wrong = ""
    for entry in entries:
        beside = listed(entry, "top_logprobs")
        own = at(entry, "logprob")
        if not isinstance(own, int | float) or own > 1e-6:
            wrong = f"a log-probability of {own}"
        elif len(beside) != 3:
            wrong = f"{len(beside)} alternatives, asked for 3"
        elif own < max([at(each, "logprob") for each in beside if not _control(each)], default=own) - 1e-3:
            wrong = f"{at(entry, 'token')!r} was chosen at temperature 0 and is not the likeliest"
    total = at(reply.usage, "completion_tokens")
    if (
        not wrong and isinstance(total, int) and not total - 1 <= len(entries) <= total
    ):  # the end's token may be left out
        wrong = f"{len(entries)} entries for {total} tokens"
    return [found(SUITE, name, not wrong, wrong)]


def _control(entry: Json) -> bool:
    """A control token may be the likeliest and yet be forbidden here: log-probabilities are the model's own."""
    return text_at(entry, "token").startswith(("<|", "["))


async def _none(endpoint: Endpoint) -> list[Check]:
    reply = await _ask(endpoint, {**_TOOLS, "tool_choice": "none", "max_tokens": 60})
    name = "tool_choice none"
    if reply.status != 200:
        return [unanswered(SUITE, name, reply)]
    good = not calls(reply) and said(reply)[2] != "tool_calls" and "<|tool_call" not in text(reply)
    return [found(SUITE, name, good, f"{said(reply)!r}")]


async def _required(endpoint: Endpoint) -> list[Check]:
    reply = await _ask(endpoint, {**_TOOLS, "tool_choice": "required"})
    return [_called("tool_choice required", reply, ("get_weather", "get_time"))]


async def _named(endpoint: Endpoint) -> list[Check]:
    """OpenAI ends such an answer with stop, others with tool_calls."""
    choice = {"type": "function", "function": {"name": "get_time"}}
    reply = await _ask(endpoint, {**_TOOLS, "tool_choice": choice})
    return [_called("tool_choice named", reply, ("get_time",))]


async def _serial(endpoint: Endpoint) -> list[Check]:
    name = "parallel_tool_calls false"
    reply = await _ask(endpoint, {**_TOOLS, "tool_choice": "required", "parallel_tool_calls": False})
    if reply.status != 200:
        return [unanswered(SUITE, name, reply)]
    return [found(SUITE, name, len(calls(reply)) <= 1, f"{len(calls(reply))} calls")]


def _called(name: str, reply: Reply, allowed: Sequence[str]) -> Check:
    if reply.status != 200:
        return unanswered(SUITE, name, reply)
    _, made, finish = said(reply)
    if finish == "length" and made:
        return Check(suite=SUITE, name=name, verdict="unknown", detail="max_tokens cut the call")
    wrong = "" if made else "no call"
    for function, arguments in made:
        if function not in allowed:
            wrong = f"a call of {function}"
        try:
            json.loads(arguments)
        except ValueError:
            wrong = f"arguments {arguments!r}"
    return found(SUITE, name, not wrong and finish in ("tool_calls", "stop"), wrong or f"finish_reason {finish}")
