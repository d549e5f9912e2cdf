"""Ids of calls: foreign ones in a history change nothing, new ones are unique and may be answered.

K2 was trained on functions.NAME:IDX alone, counted over the whole conversation; K2-Vendor-Verifier asks whoever serves
it to rename all others before the prompt is rendered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from baltoro.eval.document import at
from baltoro.eval.endpoint import Endpoint
from baltoro.eval.verify.check import CLOCK, WEATHER, Check, asking, calls, found, said, text, unanswered

Json = Any
SUITE = "ids"
_FOREIGN = {"OpenAI's": ("call_8Zk2aQ", "call_x91LmB"), "Anthropic's": ("toolu_01Ab", "toolu_02Cd"),
            "K2's, misspelt": ("serach:0", "get_time:1")}  # fmt: skip


def _history(first: str, second: str, *, swapped: bool = False) -> dict[str, Json]:
    """Two calls in one turn and their results; `swapped`: results come in the other order."""
    made = [
        {"id": first, "type": "function",
         "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "unit": "celsius"}'}},
        {"id": second, "type": "function", "function": {"name": "get_time", "arguments": '{"hours_from_utc": 1}'}},
    ]  # fmt: skip
    results = [
        {"role": "tool", "tool_call_id": first, "content": '{"celsius": 3}'},
        {"role": "tool", "tool_call_id": second, "content": '{"time": "09:30"}'},
    ]
    return {
        "messages": [
            *asking("How is the weather in Oslo, and what time is it there?"),
            {"role": "assistant", "content": "", "tool_calls": made},
            *(results[::-1] if swapped else results),
        ],
        "tools": [WEATHER, CLOCK], "temperature": 0, "seed": 3, "max_tokens": 40,
    }  # fmt: skip


async def suite(endpoint: Endpoint) -> Sequence[Check]:
    results = await asyncio.gather(
        *(_foreign(endpoint, name, ids) for name, ids in _FOREIGN.items()), _order(endpoint), _round_trip(endpoint)
    )
    return [check for checks in results for check in checks]


async def _foreign(endpoint: Endpoint, name: str, ids: tuple[str, str]) -> list[Check]:
    """The prompt has as many tokens, and at temperature 0 the answer is the same."""
    name = f"{name} in the history"
    ours = _history("functions.get_weather:0", "functions.get_time:1")
    canonical, again, foreign = await asyncio.gather(
        endpoint.ask(ours, salt=["ids", 0]), endpoint.ask(ours, salt=["ids", 1]),
        endpoint.ask(_history(*ids), salt="ids"),
    )  # fmt: skip
    for reply in (canonical, again, foreign):
        if reply.status != 200:
            return [unanswered(SUITE, name, reply)]
    counts = [at(reply.usage, "prompt_tokens") for reply in (foreign, canonical)]
    if counts[0] != counts[1]:
        return [found(SUITE, name, False, f"the prompt has {counts[0]} tokens, with K2's own ids {counts[1]}")]
    if said(canonical) != said(again):
        detail = "the same request has two answers at temperature 0"
        return [Check(suite=SUITE, name=name, verdict="unknown", detail=detail)]
    same = said(foreign) == said(canonical)
    return [found(SUITE, name, same, f"{said(foreign)!r}, with K2's own ids {said(canonical)!r}")]


async def _order(endpoint: Endpoint) -> list[Check]:
    reply = await endpoint.ask(_history("call_a", "call_b", swapped=True), salt="ids")
    name = "results in another order than calls"
    return [found(SUITE, name, True, "") if reply.status == 200 else unanswered(SUITE, name, reply)]


async def _round_trip(endpoint: Endpoint) -> list[Check]:
    """A call as the endpoint made it, and its result, go back to it."""
    asked: Mapping[str, Json] = {
        "messages": asking("How is the weather in Rome, in celsius?"), "tools": [WEATHER, CLOCK],
        "tool_choice": "required", "temperature": 0, "seed": 3, "max_tokens": 300,
    }  # fmt: skip
    name = "new ids come back"
    reply = await endpoint.ask(asked, salt="ids")
    if reply.status != 200:
        return [unanswered(SUITE, name, reply)]
    made = calls(reply)
    if not made or said(reply)[2] == "length":
        return [Check(suite=SUITE, name=name, verdict="unknown", detail="no whole call to send back")]
    ids = [at(call, "id") for call in made]
    if not all(ids) or len(set(ids)) != len(ids):
        return [found(SUITE, name, False, f"ids {ids}")]
    results = [{"role": "tool", "tool_call_id": each, "content": '{"celsius": 21}'} for each in ids]
    turn = {"role": "assistant", "content": text(reply), "tool_calls": made}
    back = {**asked, "messages": [*asked["messages"], turn, *results], "max_tokens": 40}
    answer = await endpoint.ask({name: each for name, each in back.items() if name != "tool_choice"}, salt="ids")
    return [found(SUITE, name, True, "") if answer.status == 200 else unanswered(SUITE, name, answer)]
