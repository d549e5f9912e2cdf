"""BFCL's questions and its matching of calls: what is allowed passes, and nothing else.

`BFCL_DATA=DIR pytest tests/eval/test_bfcl.py` compares with all of the possible answers that BFCL ships.
"""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from baltoro.chat.messages import Tool, ToolCall
from baltoro.chat.parser import Folded
from baltoro.errors import RecipeError
from baltoro.eval.possible import Possible, fault, matches, plain
from baltoro.eval.score import judge
from baltoro.eval.tasks import bfcl

FUNCTION = {
    "name": "hotel.find",
    "description": "Find a hotel.",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"}, "nights": {"type": "integer"}, "budget": {"type": "float"},
            "extras": {"type": "array", "items": {"type": "string"}}, "pets": {"type": "boolean"},
            "guest": {"type": "dict", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}},
            "rooms": {"type": "array", "items": {"type": "dict", "properties": {"beds": {"type": "integer"}}}},
            "spot": {"type": "tuple", "items": {"type": "float"}}, "anything": {"type": "any"},
        },
        "required": ["city"],
    },
}  # fmt: skip
TOOL = bfcl.tool(FUNCTION)


def call(function: str = "hotel.find", /, **arguments: Any) -> ToolCall:
    return ToolCall(id="", name=function, arguments=json.dumps(arguments))


def right(allowed: dict[str, list[Any]], **arguments: Any) -> bool:
    return matches([Possible("hotel.find", allowed)], [call(**arguments)], [TOOL])


CITY = {"city": ["New York, NY", "New York"]}


@pytest.mark.parametrize("city", ["New York", "new york ny", "New-York", "NEW YORK, NY"])
def test_strings_are_equal_without_case_blanks_and_marks(city: str) -> None:
    assert right(CITY, city=city)
    assert not right(CITY, city=city + "x") and plain("It's") == plain('it"s')


@pytest.mark.parametrize(
    ("name", "allowed", "good", "bad"),
    [
        ("nights", [3], [3], [4, 3.0, "3", True]),
        ("budget", [100.0], [100, 100.0], ["100", 100.5]),
        ("pets", [True], [True], [False, 1, "true"]),
        ("extras", [["pool", "Spa"]], [["pool", "spa"]], [["spa", "pool"], ["pool"], "pool", [1, 2]]),
        ("guest", [{"name": ["Ann"], "age": [3, ""]}], [{"name": "ann", "age": 3}, {"name": "Ann"}],
         [{"age": 3}, {"name": "Ann", "x": 1}, {"name": "Bo"}]),
        ("rooms", [[{"beds": [1]}, {"beds": [2, 3]}]], [[{"beds": 1}, {"beds": 3}]],
         [[{"beds": 3}, {"beds": 1}], [{"beds": 1}]]),
        ("spot", [[1.5, 2.0]], [[1.5, 2]], [[2, 1.5], [1.5]]),
        ("anything", ["x"], ["X"], ["y"]),
        ("nights", ["all", 2], ["all", 2], ["ALL", "none"]),
    ],
)  # fmt: skip
def test_values_are_of_the_declared_type_and_among_the_allowed(name, allowed, good, bad) -> None:
    expected = {**CITY, name: allowed}
    assert all(right(expected, city="New York", **{name: value}) for value in good)
    assert not any(right(expected, city="New York", **{name: value}) for value in bad)


def test_what_may_be_left_out_may_and_nothing_else_may_lack_or_come_in_addition() -> None:
    assert right({**CITY, "nights": [2, ""]}, city="New York")
    assert not right({**CITY, "nights": [2]}, city="New York")
    assert not right({**CITY, "city": ["Rome", ""]})  # required by the function
    assert not right(CITY, city="New York", nights=2)
    assert not right({**CITY, "stars": [2]}, city="New York", stars=2)  # the function has no such parameter
    assert not right({**CITY, "nights": ["", 2]}, city="New York", nights=0)


def test_calls_come_in_any_order_and_each_expected_one_takes_another() -> None:
    a, b = Possible("hotel.find", {"city": ["Rome", "Oslo"]}), Possible("hotel.find", {"city": ["Rome"]})
    rome, oslo = call(city="Rome"), call(city="Oslo")
    assert matches([a, b], [rome, oslo], [TOOL]) and matches([a, b], [oslo, rome], [TOOL])  # greedily the first fails
    assert not matches([a, b], [oslo, oslo], [TOOL])
    assert not matches([a, b], [rome], [TOOL]) and not matches([a], [rome, rome], [TOOL])
    assert not matches([a], [call("hotel.book", city="Rome")], [TOOL])


def test_broken_arguments_are_a_fault_with_a_reason() -> None:
    schemas = {"hotel.find": TOOL.parameters}
    for arguments in ('{"city": ', "[1]"):
        assert fault(Possible("hotel.find", CITY), ToolCall(id="", name="hotel.find", arguments=arguments), schemas)


def test_types_become_those_of_json_schema() -> None:
    properties = TOOL.parameters["properties"]
    assert (
        TOOL.parameters["type"] == "object"
        and properties["budget"] == {"type": "number"}
        and properties["anything"] == {}
    )
    assert properties["rooms"]["items"]["type"] == "object" and properties["spot"]["type"] == "array"
    assert "enum" not in bfcl.schema({"type": "integer", "enum": ["1", "2"]})
    assert bfcl.schema({"type": "integer", "enum": [1, 2]})["enum"] == [1, 2]


def write(directory: Path, name: str, rows: list[dict[str, Any]]) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_questions_and_answers_are_read_from_a_directory(tmp_path: Path) -> None:
    question = [[{"role": "user", "content": "A hotel in Rome."}]]
    write(tmp_path, "BFCL_v4_multiple.json", [{"id": "multiple_0", "question": question, "function": [FUNCTION]}])
    write(tmp_path, "BFCL_v4_irrelevance.json", [{"id": "irrelevance_0", "question": question, "function": [FUNCTION]}])
    answers = [{"id": "multiple_0", "ground_truth": [{"hotel.find": {"city": ["Rome"]}}]}]
    write(tmp_path / "possible_answer", "BFCL_v4_multiple.json", answers)
    asked, none = bfcl.examples(tmp_path, 5, ["multiple", "irrelevance"])
    assert judge(asked, Folded(None, (call(city="rome"),), ())).right
    assert not judge(asked, Folded("Rome", (), ())).right
    assert judge(none, Folded(None, (), ())).right and not judge(none, Folded(None, (call(city="Rome"),), ())).right


def test_missing_files_and_answers_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"BFCL_v4_simple_python\.json is not there"):
        bfcl.examples(tmp_path, 1)
    write(tmp_path, "BFCL_v4_multiple.json", [{"id": "multiple_0", "question": [[]], "function": []}])
    write(tmp_path / "possible_answer", "BFCL_v4_multiple.json", [])
    with pytest.raises(RecipeError, match="multiple_0"):
        bfcl.examples(tmp_path, 1, ["multiple"])
    (tmp_path / "BFCL_v4_multiple.json").write_text("{\n")
    with pytest.raises(RecipeError, match="line 1"):
        bfcl.examples(tmp_path, 1, ["multiple"])


@pytest.mark.skipif("BFCL_DATA" not in os.environ, reason="BFCL's files: BFCL_DATA=DIR")
def test_every_possible_answer_passes_and_changed_ones_fail() -> None:
    examples = bfcl.examples(Path(os.environ["BFCL_DATA"]), 10_000)
    refused: list[str] = []
    for example in (e for e in examples if e.truth.possible):
        properties = {tool.name: set(tool.parameters.get("properties", {})) for tool in example.request.tools}
        expected = example.truth.possible
        if any(not possible.arguments.keys() <= properties.get(possible.name, set()) for possible in expected):
            continue  # an answer with a parameter that its function lacks is nobody's to give
        required = {tool.name: set(tool.parameters.get("required", ())) for tool in example.request.tools}
        for taken in (0, -1):
            calls: list[ToolCall] = []
            for p in expected:
                needed = {k: [a for a in v if a != "" or k not in required[p.name]] for k, v in p.arguments.items()}
                given = {k: opened(v[taken]) for k, v in needed.items() if v and v[taken] != ""}
                calls.append(call(p.name, **given))
            if not judge(example, Folded(None, tuple(calls[::-1]), ())).right:
                refused.append(f"{example.id}: {[c.arguments for c in calls]} {expected}")
        for changed in mutated(calls, example.request.tools):
            assert not judge(example, Folded(None, tuple(changed), ())).right, (example.id, changed)
    # Fewer than one in 300 cannot be given: nothing is allowed for a required parameter, or the answer lacks one.
    assert len(refused) <= len(examples) / 300, refused


def opened(found: Any) -> Any:
    """A value that an answer allows: the fields of objects have lists of values."""
    if isinstance(found, dict):
        first = {
            key: allowed[0] if isinstance(allowed, list) else allowed for key, allowed in found.items() if allowed != []
        }
        return {key: opened(inner) for key, inner in first.items() if inner != ""}
    if isinstance(found, list):
        return [opened(item) if isinstance(item, dict) else item for item in found]
    return found


def mutated(calls: list[ToolCall], tools: tuple[Tool, ...]) -> list[list[ToolCall]]:
    """Another name, one call too many, one too few, an invented parameter, one value changed."""
    first = calls[0]
    arguments = json.loads(str(first.arguments))
    others = [[call("no_such_function", **arguments), *calls[1:]], calls[1:], [*calls, first]]
    others.append([call(first.name, **arguments, no_such_parameter=1), *calls[1:]])
    for name, changed in product(arguments, ("\u00a7 no value \u00a7",)):
        others.append([call(first.name, **{**arguments, name: changed}), *calls[1:]])
    return others
