"""BFCL's single turns (Apache-2.0) and ACEBench's normal and special ones (MIT), as requests with tools.

Functions have names that every endpoint takes: what OpenAI does not allow in a name becomes `_`. BFCL is judged by
eval/possible.py. ACEBench's calls are right where functions and values are those expected, whatever their order; of
special questions, whose requests lack something or fit no function, right is a text that says so, without a call: the
original wants certain words of a text, which are part of its own prompt and not of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from baltoro.chat.messages import ToolCall
from baltoro.chat.parser import Folded
from baltoro.eval.code import Runner
from baltoro.eval.score import Example, Score, judge
from baltoro.eval.task import Item, Said, Task, rows, verdict
from baltoro.eval.tasks import bfcl

Json = Any
ACE_NORMAL = ("atom_bool", "atom_enum", "atom_list", "atom_number", "atom_object_deep", "atom_object_short",
              "single_turn_single_function", "single_turn_parallel_function", "similar_api", "preference")  # fmt: skip
ACE_SPECIAL = ("error_param", "incomplete", "irrelevant")


def allowed_name(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name, flags=re.ASCII)[:64]


def _bfcl(folder: Path) -> list[Item]:
    return [
        Item(
            id=example.id, kind=example.kind, truth=example,
            body={
                "messages": [{"role": turn.role, "content": turn.content} for turn in example.request.messages],
                "tools": [_declared(tool.declaration) for tool in example.request.tools],
            },
        )
        for example in bfcl.examples(folder, 1_000_000)
    ]  # fmt: skip


def _declared(declaration: Mapping[str, Json]) -> dict[str, Json]:
    function = cast("Mapping[str, Json]", declaration["function"])
    return {"type": "function", "function": {**function, "name": allowed_name(function["name"])}}


def _score_bfcl(item: Item, said: Said, _: Runner) -> Score:
    example: Example = item.truth
    names = {allowed_name(tool.name): tool.name for tool in example.request.tools}
    calls = tuple(
        ToolCall(id=call.id, name=names.get(call.name, call.name), arguments=call.arguments) for call in said.calls
    )
    return judge(example, Folded(content=said.text, calls=calls, incomplete=()))


def _ace(folder: Path) -> list[Item]:
    items: list[Item] = []
    for kind in (*(f"normal_{each}" for each in ACE_NORMAL), *(f"special_{each}" for each in ACE_SPECIAL)):
        truths = {row["id"]: row["ground_truth"] for row in rows(folder / "possible_answer" / f"data_{kind}.json")}
        for row in rows(folder / f"data_{kind}.json"):
            tools = [_declared({"function": {**f, "parameters": bfcl.schema(f.get("parameters") or {})}})
                     for f in row["function"]]  # fmt: skip
            body = {"messages": _turns(row), "tools": tools}
            items.append(Item(id=row["id"], kind=kind, body=body, truth=truths[row["id"]]))
    return items


def _turns(row: Mapping[str, Json]) -> list[Json]:
    """`user: ...` and `system: ...` at the heads of lines; time and the user's profile come before."""
    about = [str(row[name]) for name in ("time", "profile") if row.get(name)]
    turns: list[Json] = [{"role": "system", "content": "\n".join(about)}] if about else []
    pieces = re.split(r"^(user|system):\s*", row["question"], flags=re.MULTILINE)
    if len(pieces) == 1:
        return [*turns, {"role": "user", "content": row["question"].strip()}]
    for role, text in zip(pieces[1::2], pieces[2::2], strict=True):
        turns.append({"role": "user" if role == "user" else "assistant", "content": text.strip()})
    return turns


def _score_ace(item: Item, said: Said, _: Runner) -> Score:
    if item.kind.startswith("special_"):
        return verdict(
            item, f"called {said.calls[0].name}" if said.calls else "" if said.text.strip() else "said nothing"
        )
    expected = expected_calls(item.truth)
    found = [(call.name, arguments_of(call.arguments)) for call in said.calls]
    left = list(expected)
    for name, arguments in found:
        match = next((each for each in left if each[0] == name and same(each[1], arguments)), None)
        if match is None:
            return verdict(item, f"{name}({arguments!r}), expected {expected!r}")
        left.remove(match)
    return verdict(item, f"not called: {left!r}" if left else "")


def expected_calls(truth: Json) -> list[tuple[str, Json]]:
    """Functions and their arguments; a name that is used again has a number behind it."""
    calls = cast("list[Mapping[str, Json]]", truth if isinstance(truth, list) else [truth])
    return [(re.sub(r"_\d+$", "", allowed_name(name)) if _again(name, each) else allowed_name(name), arguments)
            for each in calls for name, arguments in each.items()]  # fmt: skip


def _again(name: str, names: Mapping[str, Json]) -> bool:
    head = re.sub(r"_\d+$", "", name)
    return head != name and sum(re.sub(r"_\d+$", "", each) == head for each in names) > 1


def arguments_of(told: Json) -> Json:
    """Of a call; what is no JSON stays text."""
    try:
        return json.loads(told) if isinstance(told, str) else told
    except ValueError:
        return told


def same(wanted: Json, found: Json) -> bool:
    """Equal as JSON; strings without case, blanks and marks, numbers by value."""
    if isinstance(wanted, str) and isinstance(found, str):
        return _plain(wanted) == _plain(found)
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        one, other = cast("Mapping[str, Json]", wanted), cast("Mapping[str, Json]", found)
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(wanted, list) and isinstance(found, list):
        a, b = cast("Sequence[Json]", wanted), cast("Sequence[Json]", found)
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(wanted == found)


def _plain(text: str) -> str:
    return re.sub(r"[\s,./\-_*^'\"]", "", text).casefold()


BFCL = Task(name="bfcl", benchmark=None, data="bfcl", items=_bfcl, score=_score_bfcl)
ACEBENCH = Task(
    name="acebench", benchmark=None, data="toolcalling/acebench/data_all/data_en", items=_ace, score=_score_ace
)
