"""A deterministic world behind tools: tables of records, operations that read and change them, results, faults.

    call ─ known? ─ JSON? ─ schema? ─ fault? ─ operation on a table ─> result        state: table -> key -> record

A result is JSON text as tools return it, and an outcome: done, partial (some of it happened, and the result says what
did not) or refused (nothing happened, and the result says why). What the world becomes depends on the calls alone, and
on the seed where faults are wanted; so the state after an episode can be compared with the state that is right.
Source: the tool simulator of Kimi K2's report, section 3.1.1, in its verifiable part.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, cast

from jsonschema import Draft202012Validator

from baltoro.chat.messages import Tool, ToolCall

Record = dict[str, Any]
State = dict[str, dict[str, Record]]  # table -> key -> record
Outcome = Literal["done", "partial", "refused"]
Verb = Literal["create", "get", "list", "update", "delete", "transfer"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What one tool does to one table.

    key:    the parameter that names the record; of `list` "" ; of `transfer` the one that loses
    fields: parameter -> field of the record. create, update: what is written; list: what must be equal;
            transfer: {amount's parameter: field that is moved}
    other:  of `transfer` the parameter that names the record that gains
    """

    tool: Tool
    verb: Verb
    table: str
    key: str = ""
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    other: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often the world fails by itself. A call that failed so does what it should when it is made again."""

    unavailable: float = 0.0  # share of calls that are refused, nothing having happened
    partial: float = 0.0  # share of calls of which a part is done, where parts exist: fields, entries of a list


@dataclass(frozen=True, slots=True)
class Result:
    content: str  # JSON
    outcome: Outcome


class Simulator:
    """One episode's world. `state` is the caller's to look at, never to change."""

    def __init__(
        self, state: State, operations: Sequence[Operation], *, faults: Faults | None = None, seed: int | str = 0
    ) -> None:
        self.state = copy.deepcopy(state)
        self._operations = {operation.tool.name: operation for operation in operations}
        self._faults = faults or Faults()
        self._seed = seed
        self._failed = ""  # the call that failed last by the world's own fault
        self.num_calls = 0

    def call(self, call: ToolCall) -> Result:
        """Never raises for what a model may say."""
        self.num_calls += 1
        operation = self._operations.get(call.name)
        if operation is None:
            return _refused(f"unknown function {call.name}")
        try:
            arguments: Any = json.loads(call.arguments) if isinstance(call.arguments, str) else dict(call.arguments)
        except (json.JSONDecodeError, RecursionError):
            return _refused("arguments are not valid JSON")
        if (complaint := _complaint(operation.tool, arguments)) is not None:
            return _refused(complaint)
        draw = self._fault(f"{call.name} {json.dumps(arguments, sort_keys=True)}")
        if draw == "unavailable":
            return _refused("service unavailable")
        return _VERBS[operation.verb](
            self.state.setdefault(operation.table, {}), operation, arguments, draw == "partial"
        )

    def _fault(self, called: str) -> Literal["unavailable", "partial", ""]:
        if called == self._failed:
            self._failed = ""
            return ""
        number = Random(f"{self._seed}/{self.num_calls}").random()
        self._failed = called
        if number < self._faults.unavailable:
            return "unavailable"
        if number < self._faults.unavailable + self._faults.partial:
            return "partial"
        self._failed = ""
        return ""


def _complaint(tool: Tool, arguments: Any) -> str | None:
    """What is wrong with the arguments, as an interface would say it; None: nothing."""
    if not isinstance(arguments, dict):
        return "arguments are not an object"
    known = tool.parameters.get("properties", {})
    for name in cast("dict[str, Any]", arguments):
        if name not in known:
            return f"unknown parameter {name}"
    errors = sorted(Draft202012Validator(dict(tool.parameters)).iter_errors(arguments), key=lambda e: list(e.path))  # type: ignore[reportUnknownMemberType]
    if not errors:
        return None
    where = ".".join(map(str, errors[0].path))
    return f"invalid {where}" if where else errors[0].message


def _create(table: dict[str, Record], operation: Operation, arguments: Record, partial: bool) -> Result:
    """A record is made whole or not at all."""
    key = str(arguments[operation.key])
    if key in table:
        return _refused(f"{key} already exists")
    table[key] = _written(operation, arguments)
    return _done({"status": "created", operation.key: arguments[operation.key]})


def _get(table: dict[str, Record], operation: Operation, arguments: Record, partial: bool) -> Result:
    record = table.get(str(arguments[operation.key]))
    return _not_found(arguments[operation.key]) if record is None else _done(record)


def _list(table: dict[str, Record], operation: Operation, arguments: Record, partial: bool) -> Result:
    wanted = _written(operation, arguments)
    keys = [key for key, record in table.items() if wanted.items() <= record.items()]
    if partial and len(keys) > 1:
        shown = keys[: len(keys) // 2]
        return Result(_json({"results": shown, "more": len(keys) - len(shown)}), "partial")
    return _done({"results": keys})


def _update(table: dict[str, Record], operation: Operation, arguments: Record, partial: bool) -> Result:
    record = table.get(str(arguments[operation.key]))
    if record is None:
        return _not_found(arguments[operation.key])
    changes = _written(operation, arguments)
    if not changes:
        return _refused("nothing to change")
    if partial and len(changes) > 1:
        first = next(iter(changes))
        record[first] = changes.pop(first)
        return Result(_json({"updated": [first], "failed": list(changes)}), "partial")
    record.update(changes)
    return _done({"status": "updated"})


def _delete(table: dict[str, Record], operation: Operation, arguments: Record, partial: bool) -> Result:
    key = str(arguments[operation.key])
    if key not in table:
        return _not_found(key)
    del table[key]
    return _done({"status": "deleted"})


def _transfer(table: dict[str, Record], operation: Operation, arguments: Record, partial: bool) -> Result:
    """Both records change, or none."""
    source, target = str(arguments[operation.key]), str(arguments[operation.other])
    ((parameter, moved),) = operation.fields.items()
    amount = arguments[parameter]
    for name in (source, target):
        if name not in table:
            return _not_found(name)
    if source == target:
        return _refused(f"{source} cannot give to itself")
    if amount <= 0:
        return _refused(f"invalid {parameter}")
    if table[source][moved] < amount:
        return _refused(f"not enough {moved}")
    table[source][moved] -= amount
    table[target][moved] += amount
    return _done({"status": "moved", source: table[source][moved], target: table[target][moved]})


_VERBS: Mapping[Verb, Callable[[dict[str, Record], Operation, Record, bool], Result]] = {
    "create": _create, "get": _get, "list": _list, "update": _update, "delete": _delete, "transfer": _transfer,
}  # fmt: skip


def _written(operation: Operation, arguments: Record) -> Record:
    return {column: arguments[name] for name, column in operation.fields.items() if name in arguments}


def _done(value: Any) -> Result:
    return Result(_json(value), "done")


def _refused(reason: str) -> Result:
    return Result(_json({"error": reason}), "refused")


def _not_found(key: Any) -> Result:
    return _refused(f"{key} not found")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
