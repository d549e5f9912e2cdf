"""Errands in a small world: requests one after the other, each of which a tool can serve, and what is right at the end.

The requests are in the generator's own simple English, with words of one split. Some name a record that is not there;
then it is right to say so. Every session has its own random stream, named by seed, split and number.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from baltoro.chat.messages import Tool, ToolCall
from baltoro.train.synthesis import values
from baltoro.train.synthesis.declarations import declare
from baltoro.train.synthesis.simulator import Operation, Record, Simulator, State
from baltoro.train.synthesis.split import Split
from baltoro.train.synthesis.words import Lexicon, lexicon

ABSENT = 0.12  # share of requests that name a record which is not there

_ASKED = {
    "get": ("What is the {f} of the {n} {k}?", "Get the {n} {k}. What is its {f}?", "Tell me the {f} of the {n} {k}."),
    "update": ("Set the {f} of the {n} {k} to {v}.", "Please update the {n} {k} with {f} {v}.",
               "Update the {n} {k}. The {f} should be {v}."),
    "delete": ("Delete the {n} {k}.", "Please delete the {n} {k}.", "I want to delete the {n} {k}."),
    "create": ("Create a {n} with {p} {k} and {f} {v}.", "Please create the {n} {k} with {f} {v}.",
               "Create the {n} {k}. The {f} is {v}."),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Errand:
    request: str
    call: ToolCall  # what serves it, where nothing fails
    mentions: tuple[str, ...]  # what the assistant must then say


@dataclass(frozen=True, slots=True)
class Session:
    state: State  # at the start
    operations: tuple[Operation, ...]
    errands: tuple[Errand, ...]
    wanted: State  # at the end

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(operation.tool for operation in self.operations)


def make_session(seed: int, number: int, split: Split = "train") -> Session:
    """The same arguments give the same session."""
    r, words = Random(f"{seed}/{split}/session/{number}"), lexicon(split)
    noun, parameter = words.singular(r), r.choice(("name", "id", "title"))
    field = next(word for word in iter(lambda: words.singular(r), "") if word not in (noun, parameter))
    number_field = r.random() < 0.5
    keys = list(dict.fromkeys(_key(r, words) for _ in range(r.randint(3, 5))))
    absent = next(key for key in iter(lambda: _key(r, words), "") if key not in keys)
    state: State = {noun: {key: {field: _value(r, words, number_field)} for key in keys[1:]}}
    fresh = keys[0]  # to be created
    verbs = r.sample(sorted(_ASKED), r.choice((1, 2, 2, 3)))
    operations = tuple(_operation(r, verb, noun, parameter, field, number_field) for verb in verbs)
    truth = Simulator(state, operations)
    errands: list[Errand] = []
    for _ in range(r.choice((1, 1, 2, 2, 3))):
        operation = r.choice(operations)
        if operation.verb == "create":
            key = fresh
        else:
            key = absent if r.random() < ABSENT else r.choice(keys[1:])
        arguments: Record = {parameter: key}
        if operation.verb in ("create", "update"):
            arguments[field] = _value(r, words, number_field)
        name = operation.tool.name
        call = ToolCall(
            id=f"functions.{name}:{len(errands)}", name=name, arguments=json.dumps(arguments, ensure_ascii=False)
        )
        request = r.choice(_ASKED[operation.verb]).format(n=noun, k=key, f=field, p=parameter, v=arguments.get(field))
        errands.append(Errand(request, call, _mentions(json.loads(truth.call(call).content), field)))
    return Session(state, operations, tuple(errands), truth.state)


def _mentions(result: dict[str, Any], field: str) -> tuple[str, ...]:
    """The value that was asked for, or why it cannot be had; a thing that is done may be told in any words."""
    if "error" in result:
        return (result["error"].rpartition(" ")[2] if "exists" in result["error"] else "not found",)
    return (str(result[field]),) if field in result else ()


def _key(r: Random, words: Lexicon) -> str:
    return str(r.choice((values.person, values.place, values.proper))(r, words).json)


def _value(r: Random, words: Lexicon, number: bool) -> Any:
    return r.randint(2, 900) if number else words.noun(r)


def _operation(r: Random, verb: str, noun: str, parameter: str, field: str, number: bool) -> Operation:
    properties: dict[str, Any] = {parameter: {"type": "string", "description": f"{parameter} of the {noun}"}}
    fields: dict[str, str] = {}
    if verb in ("create", "update"):
        fields[field] = field
        properties[field] = {"type": "integer" if number else "string"}
    spelled_noun = noun.replace(" ", "_")
    tool = declare(
        r, f"{verb}_{spelled_noun}", f"{verb.capitalize()} a {noun}", properties, list(properties), sort=False
    )
    assert verb in ("create", "get", "update", "delete")
    return Operation(tool, verb, noun, parameter, fields)
