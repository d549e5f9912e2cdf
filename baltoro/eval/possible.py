"""Calls compared with the answers that are allowed: for each parameter a list of values, "" where it may be left out.

The rules are those of the Berkeley Function Calling Leaderboard (its blog, "AST evaluation"): the right functions, as
many calls as are expected in any order, no parameter that the function lacks, all that it requires, values of the
declared type. Strings are equal without case, blanks and the marks ,./-_*^ and with either quotes; a whole number
will do where a fraction is declared; lists are equal item by item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from baltoro.chat.messages import Tool, ToolCall

OPTIONAL = ""  # among the allowed values: the parameter may be left out

_MARKS = re.compile(r"[ ,./\-_*^]")


class Possible(NamedTuple):
    """One expected call."""

    name: str
    arguments: Mapping[str, Sequence[Any]]  # parameter -> allowed values


def matches(expected: Sequence[Possible], found: Sequence[ToolCall], tools: Sequence[Tool]) -> bool:
    """Whether the calls can be paired with the expected ones, each with another."""
    if len(expected) != len(found):
        return False
    schemas = {tool.name: tool.parameters for tool in tools}
    fits = [[fault(possible, call, schemas) == "" for call in found] for possible in expected]
    return _paired(fits, 0, frozenset())


def _paired(fits: Sequence[Sequence[bool]], row: int, taken: frozenset[int]) -> bool:
    if row == len(fits):
        return True
    return any(
        fit and column not in taken and _paired(fits, row + 1, taken | {column}) for column, fit in enumerate(fits[row])
    )


def fault(possible: Possible, call: ToolCall, schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """Why the call is not the expected one; nothing if it is."""
    if call.name != possible.name:
        return f"function {call.name}, expected {possible.name}"
    try:
        given: Any = json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    except json.JSONDecodeError:
        return "arguments that are no JSON"
    if not isinstance(given, Mapping):
        return "arguments that are no object"
    arguments = cast("Mapping[str, Any]", given)
    schema = schemas.get(call.name, {})
    properties: Mapping[str, Any] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in arguments:
            return f"{name} is missing"
    for name, value in arguments.items():
        if name not in properties or name not in possible.arguments:
            return f"{name} is not expected"
        if not _allowed(value, properties[name], possible.arguments[name]):
            return f"{name} is {value!r}, expected one of {list(possible.arguments[name])!r}"
    for name, allowed in possible.arguments.items():
        if name not in arguments and allowed and OPTIONAL not in allowed:  # no value at all: left out
            return f"{name} is missing"
    return ""


def _allowed(value: Any, schema: Mapping[str, Any], allowed: Sequence[Any]) -> bool:
    """`allowed` may hold values of another type than the schema's; then the very same value is right."""
    if any(type(value) is type(other) and value == other for other in allowed):
        return True
    if not _typed(value, schema):
        return False
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        return any(
            isinstance(other, Mapping) and _fields(fields, cast("Mapping[str, Any]", other)) for other in allowed
        )
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in cast("list[Any]", value)):
        items = cast("list[Mapping[str, Any]]", value)
        lists = [cast("list[Any]", other) for other in allowed if isinstance(other, list)]
        return any(
            len(other) == len(items) and all(_fields(item, wanted) for item, wanted in zip(items, other, strict=True))
            for other in lists
        )
    return any(_same(value, other) for other in allowed if not (other == OPTIONAL and value != OPTIONAL))


def _fields(value: Any, wanted: Any) -> bool:
    """An object whose fields have lists of allowed values."""
    if not isinstance(value, Mapping) or not isinstance(wanted, Mapping):
        return _same(value, wanted)
    fields, lists = cast("Mapping[str, Any]", value), cast("Mapping[str, Any]", wanted)
    if not fields.keys() <= lists.keys():
        return False
    for name, allowed in lists.items():
        choices = cast("list[Any]", allowed) if isinstance(allowed, list) else [allowed]
        if name not in fields:
            if OPTIONAL not in choices:
                return False
        elif not any(_fields(fields[name], choice) for choice in choices):
            return False
    return True


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, str) and isinstance(other, str):
        return plain(value) == plain(other)
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, int | float) and isinstance(other, int | float):
        return value == other
    if isinstance(value, list) and isinstance(other, list):
        left, right = cast("list[Any]", value), cast("list[Any]", other)
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        a, b = cast("Mapping[str, Any]", value), cast("Mapping[str, Any]", other)
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return value is None and other is None


def plain(text: str) -> str:
    """As strings are compared."""
    return _MARKS.sub("", text).lower().replace("'", '"')


def _typed(value: Any, schema: Mapping[str, Any]) -> bool:
    match schema.get("type"):
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            items: Mapping[str, Any] = schema.get("items") or {}
            return isinstance(value, list) and all(_typed(item, items) for item in cast("list[Any]", value))
        case "object":
            return isinstance(value, Mapping)
        case _:
            return True
