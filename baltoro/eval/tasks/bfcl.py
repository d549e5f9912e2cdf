"""The single-turn categories of the Berkeley Function Calling Leaderboard, read from its own files.

A directory holds `BFCL_v4_CATEGORY.json`, or the same gzipped, one question a line, and `possible_answer/` beside them
(https://github.com/ShishirPatil/gorilla, Apache-2.0; `pip download bfcl-eval`). Nothing of it is ever trained on:
train/synthesis/decontaminate.py keeps it out. Functions keep their names; types become those of JSON schema.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from baltoro.chat.messages import ChatRequest, Message, Tool
from baltoro.errors import RecipeError
from baltoro.eval.possible import Possible
from baltoro.eval.score import Example, Truth

CALLING = (
    "simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_multiple", "live_parallel",
    "live_parallel_multiple",
)  # fmt: skip
WORDS = ("irrelevance", "live_irrelevance")  # no function fits: any call is wrong
KINDS = (*CALLING, *WORDS)

_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "int": "integer",
    "str": "string",
    "bool": "boolean",
    "list": "array",
}


def examples(directory: Path, per_kind: int, kinds: Sequence[str] = KINDS) -> list[Example]:
    """The first `per_kind` questions of every category."""
    return [example for kind in kinds for example in _category(directory, kind)[:per_kind]]


def _category(directory: Path, kind: str) -> list[Example]:
    questions = list(_rows(directory, f"BFCL_v4_{kind}.json"))
    if kind in WORDS:
        return [_example(row, kind, None) for row in questions]
    answers = {row["id"]: row["ground_truth"] for row in _rows(directory / "possible_answer", f"BFCL_v4_{kind}.json")}
    without = [row["id"] for row in questions if row["id"] not in answers]
    if without:
        raise RecipeError(
            f"{directory}: {len(without)} questions of {kind} have no possible answer, {without[0]} for one",
            hint="questions and possible_answer/ come from different versions",
        )
    return [_example(row, kind, answers[row["id"]]) for row in questions]


def _rows(directory: Path, name: str) -> Iterator[dict[str, Any]]:
    plain, packed = directory / name, directory / f"{name}.gz"
    if not plain.is_file() and not packed.is_file():
        raise RecipeError(
            f"{plain} is not there, and {packed.name} neither",
            hint="`--data DIR` is the folder of BFCL's question files, with possible_answer/ in it",
        )
    text = plain.read_text("utf-8") if plain.is_file() else gzip.decompress(packed.read_bytes()).decode()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            where = f"{directory / name}, line {number}"
            raise RecipeError(f"{where}: {error}", hint="expected one JSON object a line") from error
        yield row


def _example(row: Mapping[str, Any], kind: str, truth: Sequence[Mapping[str, Any]] | None) -> Example:
    tools = tuple(tool(function) for function in cast("list[Mapping[str, Any]]", row["function"]))
    messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in row["question"][0])
    possible = tuple(Possible(name, arguments) for call in truth or () for name, arguments in call.items())
    return Example(
        id=row["id"], kind=kind, request=ChatRequest(messages=messages, tools=tools, temperature=0.0),
        truth=Truth(possible=possible, any_text=truth is None),
    )  # fmt: skip


def tool(function: Mapping[str, Any]) -> Tool:
    """A function of BFCL as a client declares it."""
    parameters = schema(function["parameters"])
    declared = {"name": function["name"], "description": function["description"], "parameters": parameters}
    return Tool(name=function["name"], parameters=parameters, declaration={"type": "function", "function": declared})


def schema(found: Mapping[str, Any]) -> dict[str, Any]:
    """Types of JSON schema for Python's; `any` and types that only say so in words become no type at all."""
    made: dict[str, Any] = {}
    for key, value in found.items():
        if key == "type":
            name = _TYPES.get(str(value).lower(), str(value).lower())
            if name in ("string", "integer", "number", "boolean", "array", "object", "null"):
                made["type"] = name
        elif key == "properties":
            made["properties"] = {name: schema(inner) for name, inner in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
            made[key] = schema(cast("Mapping[str, Any]", value))
        elif key not in ("optional", "format") and not (key == "required" and not isinstance(value, list)):
            made[key] = value
    if "enum" in made and not any(_is(made.get("type"), member) for member in made["enum"]):
        del made["enum"]  # '1' to '9' of an integer: nothing could satisfy both
    return made


def _is(name: str | None, member: object) -> bool:
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    return name not in kinds or isinstance(member, kinds[name])
