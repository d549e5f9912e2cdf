"""Seal-Tools, ToolAlpaca and API-Bank in one form; where an item cannot be used, the reason stands in its place."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

from baltoro.train.synthesis.numerals import in_words

Declaration = dict[str, Any]
_SCHEMA_TYPES = ("string", "integer", "number", "boolean", "array", "object")
_TYPES = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object",
    **{name: name for name in _SCHEMA_TYPES},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conversation:
    source: str
    tools: list[Declaration]
    messages: list[dict[str, Any]]

    def row(self) -> dict[str, Any]:
        return {"source": self.source, "tools": self.tools, "messages": self.messages}


Items = Iterator[Conversation | str]


def _declared(name: str, description: str, properties: Mapping[str, Any], required: Sequence[str]) -> Declaration:
    schema = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def said(value: Any, text: str) -> bool:
    """Whether a value can be read in a text: strings by their letters and digits, numbers in figures or words."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        figures = {float(found) for found in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))}
        spoken = isinstance(value, int) and 0 <= value < 1000 and re.search(rf"\b{in_words(value)}\b", text.lower())
        return abs(float(value)) in figures or bool(spoken)
    if isinstance(value, list):
        return all(said(item, text) for item in cast("list[Any]", value))
    if isinstance(value, Mapping):
        return all(said(item, text) for item in cast("Mapping[str, Any]", value).values())
    plain = _letters(str(value))
    return bool(plain) and f" {plain} " in f" {_letters(text)} "


def _letters(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _typed(value: Any, kind: str) -> Any:
    """Numbers and truth values that a set wrote as text; a ValueError where it is none."""
    if isinstance(value, str):
        if kind == "integer":
            return int(value)
        if kind == "number":
            return float(value) if "." in value else int(value)
        if kind == "boolean":
            return {"true": True, "false": False}[value.lower()]
    return value


def _single(
    source: str,
    request: str,
    calls: Sequence[tuple[str, Mapping[str, Any]]],
    known: Mapping[str, Declaration],
    r: Random,
) -> Conversation | str:
    """One request and its calls, with up to four other functions declared beside them."""
    made: list[dict[str, Any]] = []
    for index, (name, given) in enumerate(calls):
        if name not in known:
            return "unknown function"
        schema = known[name]["function"]["parameters"]
        if not set(schema["required"]) <= given.keys() <= schema["properties"].keys():
            return "arguments unlike the declaration"
        try:
            arguments = {
                k: _typed(given[k], schema["properties"][k]["type"]) for k in schema["properties"] if k in given
            }
        except (ValueError, KeyError):
            return "arguments unlike the declaration"
        if not _fits(arguments, schema["properties"]):
            return "arguments unlike the declaration"
        if not said(arguments, request):
            return "argument not in the request"
        text = json.dumps(arguments, ensure_ascii=False)
        made.append({"id": f"functions.{name}:{index}", "name": name, "arguments": text})
    if not made:
        return "no call"
    names = {name for name, _ in calls}
    others = r.sample(sorted(known.keys() - names), min(r.choice((0, 0, 1, 2, 3, 4)), len(known) - len(names)))
    tools = [known[name] for name in r.sample([*sorted(names), *others], len(names) + len(others))]
    answer = {"role": "assistant", "content": None, "tool_calls": made}
    return Conversation(source, tools, [{"role": "user", "content": request}, answer])


def _fits(arguments: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    kinds: dict[str, Any] = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
        "object": dict,
    }
    return all(
        isinstance(value, kinds[properties[key]["type"]])
        and not (isinstance(value, bool) and properties[key]["type"] != "boolean")
        for key, value in arguments.items()
    )


def seal_tools(directory: Path, r: Random) -> Items:
    known: dict[str, Declaration] = {}
    for row in _lines(directory / "tool.jsonl.gz"):
        properties = {
            name: {"type": _TYPES[p["type"]], "description": p["description"]} for name, p in row["parameters"].items()
        }
        known[row["api_name"]] = _declared(row["api_name"], row["api_description"], properties, row["required"])
    for file in [*sorted(directory.glob("*_domain.jsonl.gz")), directory / "dev.jsonl.gz"]:
        for row in _lines(file):
            calls = [(call["api"], call["parameters"]) for call in row["calling"]]
            yield _single("seal-tools", row["query"], calls, known, r)


def toolalpaca(directory: Path, r: Random) -> Items:
    for service in json.loads((directory / "eval_simulated.json").read_text("utf-8")):
        found = re.findall(r"Name: (\w+)\n\s*Description: (.+)\n\s*Input: (\{.*\})", service.get("Functions", ""))
        known: dict[str, Declaration] = {}
        for name, description, fields in found:
            try:
                described: Mapping[str, str] = json.loads(fields)
            except json.JSONDecodeError:
                continue
            properties: dict[str, Any] = {}
            for key, text in described.items():
                kind = re.search(r"\b(String|Integer|Number|Float|Boolean|Array|Object)\b", text)
                named = kind[1].lower() if kind else "string"
                properties[key] = {
                    "type": _TYPES[named],
                    "description": re.sub(r"^(Required|Optional)\. (\w+\. )?", "", text),
                }
            required = [key for key, text in described.items() if text.startswith("Required")]
            known[name] = _declared(name, description, properties, required)
        for request, actions in zip(service["Instructions"], service.get("Golden_Answers", ()), strict=False):
            try:
                calls = [
                    (a["Action"], {k: v for k, v in json.loads(a["Action_Input"]).items() if v != ""}) for a in actions
                ]
            except (json.JSONDecodeError, AttributeError):
                yield "arguments that are no JSON"
                continue
            yield _single("toolalpaca", request, calls, known, r)


def api_bank(directory: Path, r: Random) -> Items:
    known: dict[str, Declaration] = {}
    with (directory / "data" / "all_apis.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            description = re.search(r'description = "(.*)"', row["api_info"])
            fields = re.search(r"input_parameters = (\{.*?\n\})", row["api_info"], re.DOTALL)
            if description and fields:
                given: Any = ast.literal_eval(fields[1])
                if not isinstance(given, dict):  # the file has a set where a comma stands for a colon
                    continue
                properties = {
                    key: {
                        "type": _TYPES.get(field["type"].split("(")[0], "string"),
                        "description": field.get("description", ""),
                    }
                    for key, field in cast("dict[str, dict[str, str]]", given).items()
                }
                known[row["类名"]] = _declared(row["类名"], description[1], properties, [])
    for file in sorted((directory / "lv1-lv2-samples" / "level-1-given-desc").glob("*.jsonl")):
        yield _dialogue(list(_lines(file)), known, r)


def _dialogue(turns: list[dict[str, Any]], known: Mapping[str, Declaration], r: Random) -> Conversation | str:
    """Up to the first call that nobody could make; the last turn is the assistant's."""
    messages: list[dict[str, Any]] = []
    used: list[str] = []
    text = ""
    for turn in turns:
        if turn["role"] == "API":
            name, arguments = turn["api_name"], turn["param_dict"]
            fits = name in known and arguments.keys() <= known[name]["function"]["parameters"]["properties"].keys()
            if (
                not fits
                or not _fits(arguments, known[name]["function"]["parameters"]["properties"])
                or not said(arguments, text)
            ):
                break
            call = {
                "id": f"functions.{name}:{len(used)}",
                "name": name,
                "arguments": json.dumps(arguments, ensure_ascii=False),
            }
            used.append(name)
            spoken = messages.pop()["content"] if messages and messages[-1]["role"] == "assistant" else None
            output = json.dumps(turn["result"]["output"], ensure_ascii=False)
            messages.append({"role": "assistant", "content": spoken, "tool_calls": [call]})
            messages.append({"role": "tool", "content": output, "tool_call_id": call["id"]})
            text += " " + output
            continue
        role = "user" if turn["role"] == "User" else "assistant"
        text += " " + turn["text"]
        if messages and messages[-1]["role"] == role and not messages[-1].get("tool_calls"):
            messages[-1]["content"] += " " + turn["text"]
        else:
            messages.append({"role": role, "content": turn["text"]})
    while messages and (messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls")):
        del messages[-1]
    if not any(message.get("tool_calls") for message in messages):
        return "argument not in the conversation"
    names = sorted({call["name"] for message in messages for call in message.get("tool_calls", ())})
    others = r.sample(sorted(known.keys() - set(names)), r.choice((0, 1, 2)))
    return Conversation("api-bank", [known[name] for name in [*names, *others]], messages)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")
    yield from (json.loads(line) for line in text.splitlines() if line.strip())


SOURCES: Mapping[str, Callable[[Path, Random], Items]] = {
    "seal-tools": seal_tools, "toolalpaca": toolalpaca, "api-bank": api_bank,
}  # fmt: skip
