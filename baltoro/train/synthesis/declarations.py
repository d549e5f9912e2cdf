"""A function as clients declare it: JSON schema in one of the key orders and with one of the habits they have."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, cast

from baltoro.chat.messages import Tool


def spelled(label: str, style: str) -> str:
    """A label as an identifier: start date -> start_date, startDate, StartDate."""
    parts = label.split()
    if style == "snake":
        return "_".join(parts)
    rest = "".join(part[:1].upper() + part[1:] for part in parts[1:])
    return (parts[0] if style == "camel" else parts[0][:1].upper() + parts[0][1:]) + rest


def declare(
    r: Random, name: str, description: str | None, properties: Mapping[str, Any], required: list[str], sort: bool
) -> Tool:
    """`sort`: keys in alphabetical order everywhere, as the reference tokenizer's wrapper does."""
    schema: dict[str, Any] = {"type": "object", "properties": dict(properties)}
    if required or r.random() < 0.5:
        schema["required"] = required
    if r.random() < 0.08:
        schema["additionalProperties"] = False
    if r.random() < 0.3 and required:
        schema = {"type": "object", "required": required, **schema}
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    function["parameters"] = schema
    if r.random() < 0.05:
        function["strict"] = True
    declaration: dict[str, Any] = {"type": "function", "function": function}
    return Tool(name=name, parameters=schema, declaration=_sorted(declaration) if sort else declaration)


def _sorted(value: Any) -> Any:
    """Keys in alphabetical order, all the way down."""
    if not isinstance(value, dict):
        return value
    mapping = cast("dict[str, Any]", value)
    return {key: _sorted(mapping[key]) for key in sorted(mapping)}
