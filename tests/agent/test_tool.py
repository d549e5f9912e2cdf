from __future__ import annotations

from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.agent.tool import AgentTool, ToolResult, by_name, cut, schema_of, tool
from baltoro.errors import BaltoroError, ToolError


def greet(name: Annotated[str, "whom"], times: int = 1, mood: Literal["glad", "sad"] | None = None) -> str:
    """Say hello.

    More than once, if asked.
    """
    return f"hello {name} " * times


def test_a_schema_is_made_from_the_signature() -> None:
    assert schema_of(greet) == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "whom"},
            "times": {"type": "integer"},
            "mood": {"enum": ["glad", "sad"]},
        },
        "required": ["name"],
        "additionalProperties": False,
    }


def test_every_schema_that_is_made_is_one() -> None:
    def all_kinds(a: str, b: int, c: float, d: bool, e: list[list[str]], f: int | None = None) -> str:
        return ""

    jsonschema.Draft202012Validator.check_schema(schema_of(all_kinds))


@pytest.mark.parametrize("bad", ["dict[str, str]", "int | str", "None", "object"])
def test_types_that_cannot_be_told_are_refused_by_name(bad: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def wrong(value: {bad}) -> str: ...", namespace)
    with pytest.raises(BaltoroError, match=r"wrong\(value\)"):
        schema_of(namespace["wrong"])


def test_parameters_without_type_or_name_are_refused() -> None:
    def untyped(value) -> str: ...  # type: ignore[no-untyped-def]

    def nameless(*values: int) -> str: ...

    for function in (untyped, nameless):
        with pytest.raises(BaltoroError, match="value"):
            schema_of(function)


def test_a_call_runs_the_function() -> None:
    hello = tool(greet)
    assert hello({"name": "anna", "times": 2}) == ToolResult(for_model="hello anna hello anna ")
    assert hello.declared.declaration["function"]["description"].startswith("Say hello.\n\nMore")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "'name' is a required property"),
        ({"name": 3}, "name: 3 is not of type 'string'"),
        ({"name": "a", "mood": "cross"}, "mood"),
        ({"name": "a", "size": 1}, "size"),
        ([], "the arguments are list, expected an object"),
        ("name", "the arguments are str"),
        (None, "the arguments are NoneType"),
    ],
)
def test_arguments_beside_the_schema_never_reach_the_function(arguments: Any, told: str) -> None:
    result = tool(greet)(arguments)
    assert result.failed
    assert told in result.for_model
    assert "did not run" in result.for_model


@pytest.mark.parametrize("error", [ToolError("no"), OSError(2, "no such", "x"), ValueError("odd"), ZeroDivisionError()])
def test_whatever_a_tool_raises_is_a_result(error: Exception) -> None:
    def fails() -> str:
        raise error

    assert tool(fails)({}).failed


def test_ctrl_c_in_a_tool_is_no_result() -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tool(interrupted)({})


def test_a_broken_schema_is_told_and_nothing_is_fetched_for_it() -> None:
    for schema in ({"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/schema.json"}):
        result = AgentTool(name="x", description="", parameters=schema, run=lambda _: ToolResult(for_model=""))({})
        assert "schema is broken" in result.for_model


@given(st.text(max_size=400), st.integers(20, 200))
def test_a_cut_result_has_both_ends_and_says_what_is_missing(text: str, chars: int) -> None:
    result = cut(ToolResult(for_model=text), chars).for_model
    if len(text) <= chars:
        assert result == text
        return
    head, rest = result.split("\n[... ", 1)
    told, tail = rest.split(" characters left out here ...]\n", 1)
    missing, total = (int(each.replace(",", "")) for each in told.split(" of "))
    assert total == len(text)
    assert len(head) + len(tail) == chars == total - missing
    assert text.startswith(head)
    assert text.endswith(tail)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "12", "x" * 65, "ä"])
def test_names_that_k2_cannot_call_are_refused(name: str) -> None:
    with pytest.raises(BaltoroError, match="named"):
        tool(greet, name=name)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(BaltoroError, match="greet"):
        by_name([tool(greet), tool(greet)])
