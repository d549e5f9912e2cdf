"""The tools of a response: which of them the model is offered, and under which names.

Functions are, alone or in a namespace (as `NAMESPACE.NAME`). All other types run on OpenAI's machines or speak forms
that K2 was never taught: agents send them to every server and work without them, so they are left out, and the log
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from baltoro.chat.messages import Json, Tool
from baltoro.errors import RequestError
from baltoro.server.body import Strict, checked, only
from baltoro.server.openai import FunctionName
from baltoro.server.responses_items import joined


class _Function(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Json] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None  # until the model searches for tools: here it sees them at once
    output_schema: Json = None
    allowed_callers: Annotated[Json, only(["direct"])] = None
    is_async: Annotated[Json, only(False), Field(alias="async")] = None


class _Namespace(Strict):
    type: Literal["namespace"]
    name: FunctionName
    description: str | None = None
    tools: list[dict[str, Json]]


@dataclass(slots=True)
class Offered:
    tools: list[Tool] = field(default_factory=list[Tool])
    places: list[str] = field(default_factory=list[str])  # where the body declares each of them
    origins: dict[str, tuple[str | None, str]] = field(default_factory=dict[str, tuple[str | None, str]])
    left_out: list[str] = field(default_factory=list[str])  # types, with the tool's name where it has one


def offered(given: Sequence[dict[str, Json]]) -> Offered:
    found = Offered()
    for place, tool in enumerate(given):
        where = ("tools", place)
        if tool.get("type") == "namespace":
            space = checked(_Namespace, tool, *where)
            for inner, each in enumerate(space.tools):
                _offer(found, each, space, (*where, "tools", inner))
        else:
            _offer(found, tool, None, where)
    return found


def _offer(found: Offered, given: dict[str, Json], space: _Namespace | None, where: tuple[str | int, ...]) -> None:
    kind = given.get("type")
    if not isinstance(kind, str):
        checked(_Function, given, *where)  # says what is wrong
    if kind != "function":
        name = given.get("name")
        found.left_out.append(f"{kind!r:.60} {name!r:.60}" if isinstance(name, str) else f"{kind!r:.60}")
        return
    tool = checked(_Function, given, *where)
    name = joined(space.name if space else None, tool.name)
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where).removeprefix(".")
    if name in found.origins:
        raise RequestError(f"{place}.name declares '{name}' a second time", param=f"{place}.name", code="invalid_value")
    # As chats declare it: K2 was taught no other form.
    function: dict[str, Json] = {"name": name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    found.places.append(place)
    found.origins[name] = (space.name if space else None, tool.name)
    found.tools.append(
        Tool(
            name=name,
            parameters=tool.parameters or {},
            declaration={"type": "function", "function": function},
            strict=bool(tool.strict),
        )
    )
