"""Does the endpoint read K2's prompts? Counted by K2's own template and vocabulary, and compared by what follows them.

tokens: `usage.prompt_tokens` is what template and vocabulary make of a conversation; so is what Moonshot's
/v1/tokenizers/estimate-token-count says, where there is one.
template: the prompt is the same token by token. Where an endpoint tells its prompt's ids (`return_token_ids`), they are
compared; else the log-probabilities of the first token, which chats and completions of the same ids share. How far
apart these are is measured by the same completion again (noise) and one whose prompt has a newline more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

from baltoro.chat.call_ids import canonicalize
from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.eval.document import at, listed
from baltoro.eval.endpoint import COMPLETIONS, Endpoint, Reply
from baltoro.eval.verify.check import CLOCK, WEATHER, Check, Suite, asking, found, unanswered
from baltoro.server import openai

Json = Any
_CALL = {"id": "functions.get_weather:0", "type": "function",
         "function": {"name": "get_weather", "arguments": '{"city": "Zürich", "unit": "celsius"}'}}  # fmt: skip
CONVERSATIONS: Mapping[str, Mapping[str, Json]] = {
    "a question": {"messages": asking("Who are you?")},
    "a system prompt": {"messages": [{"role": "system", "content": "Be brief."}, *asking("Hi")]},
    "several turns": {"messages": [*asking("Hi"), {"role": "assistant", "content": "Hello."}, *asking("Again")]},
    "other scripts": {"messages": asking("你好，世界！ Привет 🙂\n\n\tdef f(x): return x**2")},
    "tools": {"messages": asking("Weather in Rome?"), "tools": [WEATHER, CLOCK]},
    "a call and its result": {
        "messages": [
            *asking("Weather in Zürich?"),
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "functions.get_weather:0", "content": '{"celsius": 9}'},
        ],
        "tools": [WEATHER],
    },
}


def prompt_ids(body: Mapping[str, Json], tokenizer: Tokenizer) -> list[int]:
    request = openai.chat_request(openai.ChatBody.model_validate({"model": "any", **body}))
    messages, _ = canonicalize(request.messages)
    return render(messages, request.tools).ids(tokenizer)


def tokens(tokenizer: Tokenizer) -> Suite:
    async def suite(endpoint: Endpoint) -> Sequence[Check]:
        results = await asyncio.gather(*(_count(endpoint, n, b, tokenizer) for n, b in CONVERSATIONS.items()))
        return [check for checks in results for check in checks]

    return suite


def template(tokenizer: Tokenizer) -> Suite:
    async def suite(endpoint: Endpoint) -> Sequence[Check]:
        return await asyncio.gather(*(_faithful(endpoint, n, b, tokenizer) for n, b in CONVERSATIONS.items()))

    return suite


async def _count(endpoint: Endpoint, name: str, body: Mapping[str, Json], tokenizer: Tokenizer) -> list[Check]:
    expected = len(prompt_ids(body, tokenizer))
    reply = await endpoint.ask({**body, "max_tokens": 1, "temperature": 0}, salt="tokens")
    if reply.status != 200:
        return [unanswered("tokens", name, reply)]
    told, answer, total = (at(reply.usage, f"{name}_tokens") for name in ("prompt", "completion", "total"))
    checks = [found("tokens", name, told == expected, f"{told} tokens told, {expected} by template and vocabulary")]
    sums = isinstance(told, int) and isinstance(answer, int) and told + answer == total
    checks.append(found("tokens", f"{name}: total", sums, f"{told} and {answer} tokens, {total} in all"))
    status, document = await endpoint.get("/v1/tokenizers/estimate-token-count", {"model": endpoint.model, **body})
    if status == 200:
        estimate = at(document, "data", "total_tokens")
        detail = f"{estimate} tokens estimated, {expected} by template and vocabulary"
        checks.append(found("tokens", f"{name}: estimate-token-count", estimate == expected, detail))
    return checks


async def _faithful(endpoint: Endpoint, name: str, body: Mapping[str, Json], tokenizer: Tokenizer) -> Check:
    expected = prompt_ids(body, tokenizer)
    told = await endpoint.ask({**body, "max_tokens": 1, "temperature": 0, "return_token_ids": True}, salt="template")
    if told.status == 200 and (ids := listed(told.body, "prompt_token_ids")):
        return found("template", name, ids == expected, _first_difference(ids, expected))
    likely = {"max_tokens": 1, "temperature": 0}
    broken = [*expected[:-1], *tokenizer.encode("\n"), expected[-1]]
    by_chat, *by_ids = await asyncio.gather(
        endpoint.ask({**body, **likely, "logprobs": True, "top_logprobs": 5}, salt="template"),
        *(
            endpoint.ask({"prompt": ids, **likely, "logprobs": 5}, path=COMPLETIONS, salt=["template", place])
            for place, ids in enumerate((expected, expected, broken))
        ),
    )
    for reply in (by_chat, *by_ids):
        if reply.status != 200:
            detail = f"it tells neither its prompt's ids nor log-probabilities of given ids: {reply.error[:200]}"
            return Check(suite="template", name=name, verdict="unknown", detail=detail)
    chat, found_by_ids = _of_chat(by_chat), [_of_completion(reply) for reply in by_ids]
    same, again, other = found_by_ids
    if not (chat and same and again and other):
        return Check(suite="template", name=name, verdict="unknown", detail="no log-probabilities came")
    noise, newline, far = _distance(again, same), _distance(other, same), _distance(chat, same)
    if newline < 8 * noise or newline < 1e-4:
        detail = f"one newline more moves this model by {newline:.1e} nats, the same prompt again by {noise:.1e}"
        return Check(suite="template", name=name, verdict="unknown", detail=detail)
    detail = f"the first token's log-probabilities are {far:.2g} nats apart; one newline more makes {newline:.2g}"
    return found("template", name, far <= max(2 * noise, newline / 4), detail)


def _of_chat(reply: Reply) -> list[float] | None:
    beside = listed(reply.body, "choices", 0, "logprobs", "content", 0, "top_logprobs")
    return [at(each, "logprob") for each in beside] or None


def _of_completion(reply: Reply) -> list[float] | None:
    beside = at(reply.body, "choices", 0, "logprobs", "top_logprobs", 0)
    return list(cast("dict[str, float]", beside).values()) if beside else None


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest difference at the same rank: texts of tokens are written in many ways, numbers are not."""
    pairs = zip(sorted(one, reverse=True), sorted(other, reverse=True), strict=False)
    return max((abs(a - b) for a, b in pairs), default=float("inf"))


def _first_difference(ids: Sequence[int], expected: Sequence[int]) -> str:
    place = next((i for i, pair in enumerate(zip(ids, expected, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"{len(ids)} tokens, {len(expected)} expected"
    return f"token {place} is {ids[place]}, expected {expected[place]}"
