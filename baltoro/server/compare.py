"""A recorded answer beside another one to the same request: tokens, text, calls, schemas, time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

from baltoro.chat.messages import Json
from baltoro.server.journal import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer; None: not known."""

    token_ids: Sequence[int] | None
    text: str | None
    calls: Sequence[Mapping[str, str]] | None  # name and arguments, as JSON text
    finish: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What two answers have in common; None: it cannot be said."""

    id: str
    same_prompt: bool | None  # the ids that the request became
    same_tokens: bool | None
    first_difference: int | None  # the first token that is another one, of the first answer that differs
    same_text: bool | None
    same_calls: bool | None  # names, and arguments as values
    valid_calls: tuple[int, int] | None  # whose arguments fit their schema: recorded, replayed
    num_calls: tuple[int, int] | None
    seconds: tuple[float, float]  # recorded, replayed
    error: str | None = None  # the answer was this instead

    @property
    def same(self) -> bool:
        seen = (self.same_prompt, self.same_tokens, self.same_text, self.same_calls)
        return self.error is None and False not in seen


def said(answer: Record) -> Said:
    """Of a record's answer. Text and calls are not known without content, and not whole of one that was given up."""
    whole = answer["finish"] is not None
    text, calls = (answer.get(name) if whole else None for name in ("text", "calls"))
    return Said(token_ids=answer["token_ids"], text=text, calls=calls, finish=answer["finish"])


def compare(
    record: Record,
    replayed: Sequence[Said],
    *,
    seconds: float,
    prompts: Sequence[Sequence[int]] | None = None,
    schemas: Mapping[str, Json] | None = None,
) -> Difference:
    """prompts: the ids that the request became this time; None: not known. schemas: arguments' by name of a tool."""
    recorded = [said(answer) for prompt in record["prompts"] for answer in prompt["answers"]]
    pairs = list(zip(recorded, replayed, strict=False))
    told = len(recorded) == len(replayed)
    ids = [(a, a.token_ids, b.token_ids) for a, b in pairs if a.token_ids is not None and b.token_ids is not None]
    # Of an answer that was given up only the beginning is known.
    places = [_first_difference(a, b[: len(a)] if before.finish is None else b) for before, a, b in ids]
    known = len(places) == len(pairs)
    recorded_prompts = [prompt["prompt_ids"] for prompt in record["prompts"]]
    return Difference(
        id=record["id"],
        same_prompt=None if prompts is None else recorded_prompts == [list(prompt) for prompt in prompts],
        same_tokens=told and all(place is None for place in places) if known else None,
        first_difference=next((place for place in places if place is not None), None),
        same_text=_all_same(((a.text or "", b.text or "") for a, b in pairs), told, _both(pairs, "text", "calls")),
        same_calls=_all_same(((_values(a), _values(b)) for a, b in pairs), told, _both(pairs, "calls")),
        valid_calls=_counts(pairs, schemas, valid=True) if schemas is not None and _both(pairs, "calls") else None,
        num_calls=_counts(pairs, None, valid=False) if _both(pairs, "calls") else None,
        seconds=(record["seconds"], seconds),
    )


def summary(found: Sequence[Difference]) -> dict[str, Json]:
    """All of them in numbers; what could not be compared is in no count."""
    answered = [each for each in found if each.error is None]

    def count(name: str) -> dict[str, int]:
        seen = [getattr(each, name) for each in answered if getattr(each, name) is not None]
        return {"same": sum(seen), "compared": len(seen)}

    def sums(name: str) -> list[int]:
        pairs = [getattr(each, name) for each in answered if getattr(each, name) is not None]
        return [sum(pair[side] for pair in pairs) for side in (0, 1)]

    return {
        "requests": len(found),
        "failed": len(found) - len(answered),
        "same": sum(each.same for each in found),
        "prompts": count("same_prompt"),
        "tokens": count("same_tokens"),
        "text": count("same_text"),
        "calls": count("same_calls"),
        "num_calls": dict(zip(("recorded", "replayed"), sums("num_calls"), strict=True)),
        "valid_calls": dict(zip(("recorded", "replayed"), sums("valid_calls"), strict=True)),
        "median_seconds": {
            name: round(median(each.seconds[side] for each in answered), 4) if answered else None
            for side, name in enumerate(("recorded", "replayed"))
        },
    }


def schemas(body: Mapping[str, Any]) -> dict[str, Json]:
    """Arguments' schemas by name of a tool, wherever a dialect keeps them."""
    found: dict[str, Json] = {}
    for tool in body.get("tools") or ():
        declared = cast("Mapping[str, Any]", tool.get("function", tool))
        schema = declared.get("parameters", declared.get("input_schema"))
        if "name" in declared and isinstance(schema, dict):
            found[declared["name"]] = cast(Json, schema)
    return found


def _first_difference(before: Sequence[int], after: Sequence[int]) -> int | None:
    for place, (one, other) in enumerate(zip(before, after, strict=False)):
        if one != other:
            return place
    return None if len(before) == len(after) else min(len(before), len(after))


def _both(pairs: Sequence[tuple[Said, Said]], *names: str) -> bool:
    """Whether every answer says one of these on both sides."""
    return all(any(getattr(each, name) is not None for name in names) for pair in pairs for each in pair)


def _all_same(pairs: Iterable[tuple[object, object]], told: bool, known: bool) -> bool | None:
    return told and all(one == other for one, other in pairs) if known else None


def _values(answer: Said) -> list[tuple[str, Json]]:
    return [(call["name"], _value(call["arguments"])) for call in answer.calls or ()]


def _value(arguments: str) -> Json:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _counts(pairs: Sequence[tuple[Said, Said]], schemas: Mapping[str, Json] | None, *, valid: bool) -> tuple[int, int]:
    before, after = (
        sum(not valid or _fits(call, schemas or {}) for pair in pairs for call in pair[side].calls or ())
        for side in (0, 1)
    )
    return before, after


def _fits(call: Mapping[str, str], schemas: Mapping[str, Json]) -> bool:
    from jsonschema import Draft202012Validator  # half a second that a server does not spend

    if call["name"] not in schemas:
        return False
    try:
        value = json.loads(call["arguments"])
    except ValueError:
        return False
    return Draft202012Validator(schemas[call["name"]]).is_valid(value)
