"""Asking the samples: every answer becomes a row as K2-Vendor-Verifier writes it to results.jsonl."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable

from baltoro.eval.budget import BudgetSpent
from baltoro.eval.document import at, listed, text_at
from baltoro.eval.endpoint import Endpoint, Reply
from baltoro.eval.verify.samples import Sample

Json = Any
Row = dict[str, Json]


async def ask_all(
    endpoint: Endpoint, samples: Sequence[Sample], tell: Callable[[], None] = lambda: None
) -> tuple[list[Row], BudgetSpent | None]:
    """Rows in the order of the samples, those that a spent budget left out missing. tell: after each of them."""
    spent: list[BudgetSpent] = []

    async def one(sample: Sample) -> Row | None:
        if spent:
            return None
        try:
            return row(sample, await endpoint.ask(sample.body, salt=["sample", sample.index]), endpoint)
        except BudgetSpent as error:
            spent.append(error)
            return None
        finally:
            tell()

    rows = await asyncio.gather(*map(one, samples))
    return [each for each in rows if each is not None], spent[0] if spent else None


def row(sample: Sample, reply: Reply, endpoint: Endpoint) -> Row:
    response = whole(reply, endpoint.model) if reply.status == 200 else {"error": reply.error}
    finish = at(response, "choices", 0, "finish_reason")
    made = listed(response, "choices", 0, "message", "tool_calls")
    valid: bool | None = None
    if finish == "tool_calls" and made:
        valid = all(is_valid(call, listed(sample.raw, "tools")) for call in made)
    return {
        "data_index": sample.index,
        "request": {**sample.body, "model": endpoint.model},
        "extra_body": endpoint.extra,
        "response": response,
        "status": "success" if reply.status == 200 else "failed",
        "finish_reason": finish,
        "tool_calls_valid": valid,
        "last_run_at": datetime.now(UTC).isoformat(),
        "duration_ms": int(1000 * reply.seconds),
        "hash": sample.digest(endpoint.model),
    }


def whole(reply: Reply, model: str) -> dict[str, Json]:
    """The document that a stream's events would have been; what came in one piece stays as it is."""
    if not isinstance(reply.body, list):
        return reply.body
    parts = [part for event in reply.events for part in listed(event, "choices") if not at(part, "index")]
    calls: dict[int, Json] = {}
    for piece in (each for part in parts for each in listed(part, "delta", "tool_calls")):
        call = calls.setdefault(at(piece, "index") or 0, {"id": None, "type": "function", "function": _NOTHING})
        function = call["function"]
        call["id"] = call["id"] or at(piece, "id")
        call["function"] = {
            "name": text_at(piece, "function", "name") or function["name"],
            "arguments": function["arguments"] + text_at(piece, "function", "arguments"),
        }
    text = "".join(text_at(part, "delta", "content") for part in parts)
    finish = [reason for part in parts if (reason := at(part, "finish_reason"))]
    message = {"role": "assistant", "content": text, "tool_calls": list(calls.values()) or None}
    return {
        "id": next((each for event in reply.events if (each := at(event, "id"))), None),
        "object": "chat.completion",
        "created": next((each for event in reply.events if (each := at(event, "created"))), None),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish[-1] if finish else "stop"}],
        "usage": reply.usage,
    }


_NOTHING = {"name": "", "arguments": ""}


def is_valid(call: Mapping[str, Json], tools: Sequence[Json]) -> bool:
    """As K2-Vendor-Verifier judges: a declared name, arguments that are JSON and follow the schema.

    Its edges too: a function without parameters, or with empty ones, has no schema that a call could satisfy.
    """
    try:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        schema = next((each["function"]["parameters"] for each in tools if each["function"]["name"] == name), None)
        if not schema:
            return False
        _validator(json.dumps(schema)).validate(json.loads(arguments) if isinstance(arguments, str) else arguments)
    except (KeyError, TypeError, ValueError, RecursionError, ValidationError, SchemaError, Unresolvable):
        return False
    return True


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Validator:
    """Without a look into the network for a $ref."""
    document = json.loads(schema)
    kind = validator_for(document)
    kind.check_schema(document)
    return kind(document, registry=REGISTRY)
