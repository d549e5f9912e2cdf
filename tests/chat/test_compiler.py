from __future__ import annotations

import logging
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat import compiler
from baltoro.chat.compiler import MAX_CHARACTERS, MAX_TOOLS, Compiler
from baltoro.chat.grammar import Grammar
from baltoro.chat.messages import AnswerFormat, Tool
from baltoro.chat.schema_words import UNENFORCED, WORDS
from baltoro.errors import SchemaError
from tests import vocabulary

T = vocabulary.tokenizer()
LOOK_AHEAD = {"type": "string", "pattern": "^(?!x)"}
OVERLAP = {"oneOf": [{"type": "integer"}, {"type": "number"}]}


def tool(name: str, schema: Any, *, strict: bool = False) -> Tool:
    return Tool(name=name, parameters=schema, declaration={}, strict=strict)


def props(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


# ── loose ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        (props(a=LOOK_AHEAD), ["/properties/a/pattern"]),
        (props(a=OVERLAP), ["/properties/a/oneOf"]),
        (props(a=OVERLAP, b=props(c=LOOK_AHEAD), d={"pattern": "^ok$"}),
         ["/properties/a/oneOf", "/properties/b/properties/c/pattern"]),
        (props(a={"not": {}, "type": "string"}) | {"minProperties": 1}, ["/minProperties"]),
        ({"type": "object", "patternProperties": {"^a": {}, "b": {}}}, ["/patternProperties"]),
        (props(a={"$ref": "#/$defs/d"}) | {"$defs": {"d": LOOK_AHEAD}}, ["#/$defs/d/pattern"]),
        (props(a=LOOK_AHEAD, b={"uniqueItems": True}), ["/properties/b/uniqueItems", "/properties/a/pattern"]),
    ],
)  # fmt: skip
def test_what_the_library_refuses_is_dropped_keyword_by_keyword(
    schema: Any, paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    grammar = Grammar(T, loose=True)
    with caplog.at_level(logging.WARNING):
        made = grammar.loosened([tool("good", props()), tool("bad", schema)], None)
        assert grammar.loosened([tool("bad", schema)], None) == made
    assert [each.owner for each in made] == ["bad"] * len(paths)
    assert sorted(each.path for each in made) == sorted(paths)
    assert len(caplog.messages) == len(paths), "told once, not every turn"
    assert all(any(f"'bad': {path} in" in line for line in caplog.messages) for path in paths)


def test_the_branches_of_a_loosened_one_of_hold() -> None:
    (made,) = Compiler(T, loose=True).tools([tool("f", props(a=OVERLAP) | {"required": ["a"]})]).values()
    assert made.schema["properties"]["a"] == {"anyOf": OVERLAP["oneOf"]}


def test_strict_is_refused_where_schemas_are_loose() -> None:
    loose = Compiler(T, loose=True)
    for schema in (props(a=LOOK_AHEAD), props(a={"not": {"type": "null"}})):
        with pytest.raises(SchemaError, match="/properties/a/"):
            loose.tools([tool("f", schema, strict=True)])
        with pytest.raises(SchemaError, match="/properties/a/"):
            loose.answer(AnswerFormat(schema=schema, strict=True))
        assert loose.answer(AnswerFormat(schema=schema)).dropped
        with pytest.raises(SchemaError):  # what was compiled loosely is not what strict asks for
            loose.tools([tool("f", schema, strict=True)])


def test_what_cannot_be_loosened_is_refused() -> None:
    for schema in (props(a=False) | {"required": ["a"]}, {"type": "array"}):
        with pytest.raises(SchemaError):
            Compiler(T, loose=True).tools([tool("f", schema)])
    many = props(**{f"p{i}": LOOK_AHEAD for i in range(compiler.MAX_DROPPED + 1)})
    with pytest.raises(SchemaError, match="look-ahead"):
        Compiler(T, loose=True).tools([tool("f", many)])


@pytest.mark.parametrize("guilty", [[], [0], [7], [3, 4], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_culprits_are_all_that_cannot_stay(guilty: list[int]) -> None:
    suspects = [f"/{place}" for place in range(8)]
    bad = {f"/{place}" for place in guilty}

    def fault(without: Any) -> str | None:
        return None if bad <= set(without) else "no"

    def culprits(most: int = 99, tries: int = 99) -> dict[str, str] | None:
        return compiler._culprits(suspects, fault, most=most, tries=tries)

    assert culprits() == culprits(most=max(2, len(bad))) == dict.fromkeys(sorted(bad), "no")
    assert culprits(most=1) == dict.fromkeys(sorted(bad)[:1], "no")
    assert (culprits(most=2) is None) == (len(bad) > 2)
    assert (culprits(tries=3) is None) == bool(bad)
    assert compiler._culprits(suspects, lambda _: "whatever", most=99, tries=99) is None


def test_a_client_cannot_write_lines_of_the_log_nor_flood_it(caplog: pytest.LogCaptureFixture) -> None:
    nasty = props(**{f"x\nforged {i}": {"not": {"type": "null"}} for i in range(500)})
    with caplog.at_level(logging.WARNING):
        Compiler(T, loose=True).tools([tool("f", nasty)])
    assert len(caplog.messages) == compiler.MAX_LOGGED + 1
    assert not any("\n" in line for line in caplog.messages)
    assert caplog.messages[-1].endswith(f"{500 - compiler.MAX_LOGGED} more keywords")


def test_a_fault_in_a_long_schema_is_not_looked_for_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = Compiler._matcher

    def counted(self: Compiler, lowered: Any) -> Any:
        tried.append(1)
        return real(self, lowered)

    monkeypatch.setattr(Compiler, "_matcher", counted)
    monkeypatch.setattr(compiler, "MAX_TRIED_CHARACTERS", 60_000)
    bad = {"type": "object", "properties": {"a": LOOK_AHEAD, "b": {"description": "d" * 10_000}}}
    with pytest.raises(SchemaError, match="/properties/a/pattern"):
        Compiler(T).tools([tool("f", bad)])
    tried.clear()
    bad["properties"] |= {f"p{i}": {"minLength": 1} for i in range(1000)}
    with pytest.raises(SchemaError, match="look-ahead") as caught:
        Compiler(T).tools([tool("f", bad)])
    assert len(tried) <= 3 and "/properties" not in caught.value.message


TEXTS = st.sampled_from(["string", "^a", "(", "#", ""])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.floats(allow_nan=True), TEXTS)
WORDS_AND_OTHERS = st.sampled_from(
    [*WORDS, *sorted(UNENFORCED), "propertyNames", "additionalItems", "$defs", "title", "default"]
)
NODES = st.recursive(
    VALUES,
    lambda inner: (
        st.dictionaries(WORDS_AND_OTHERS | st.sampled_from("ab"), inner, max_size=4) | st.lists(inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(schema=NODES)
def test_whatever_is_sent_as_a_schema_is_compiled_or_refused_and_loosely_never_refused_more(schema: Any) -> None:
    def outcome(loose: bool) -> str:
        try:
            (made,) = Compiler(T, loose=loose).tools([tool("f", props(a=schema))]).values()
        except SchemaError as error:
            assert error.param == "tools[0].function.parameters" and "'f'" in error.message
            return "refused"
        assert loose or not made.dropped
        return "loosened" if made.dropped else "compiled"

    strict, loose = outcome(loose=False), outcome(loose=True)
    assert (strict == "compiled") == (loose == "compiled")


# ── how much ─────────────────────────────────────────────────────────────────────────────────────


def test_three_hundred_tools_with_a_hundred_thousand_characters_compile_and_one_too_many_does_not() -> None:
    tools = [tool(f"tool_{i}", props(**{f"p{i}": {"type": "string", "description": "d" * 300}})) for i in range(300)]
    made = Compiler(T).tools(tools)
    assert list(made) == [each.name for each in tools]
    jsonschema.Draft202012Validator.check_schema(dict(made["tool_299"].schema))
    with pytest.raises(SchemaError, match=f"{MAX_TOOLS + 1}, expected at most {MAX_TOOLS}") as caught:
        Compiler(T).tools([tool(f"t{i}", {}) for i in range(MAX_TOOLS + 1)])
    assert caught.value.param == "tools"


def test_schemas_of_more_than_a_million_characters_are_refused() -> None:
    long = props(a={"description": "d" * (MAX_CHARACTERS // 2)})
    with pytest.raises(SchemaError, match="'g'") as caught:
        Compiler(T).tools([tool("f", long), tool("g", long)])
    assert caught.value.param == "tools"
    with pytest.raises(SchemaError, match="characters"):
        Compiler(T).answer(AnswerFormat(schema={"description": "d" * MAX_CHARACTERS}))


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────


def test_the_same_tools_are_compiled_once_whatever_they_are_called() -> None:
    made = Compiler(T)
    first = made.tools([tool("f", props(a={"type": "string"})), tool("g", props())])
    again = made.tools([tool("g", props()), tool("h", props(a={"type": "string"}))])
    assert made.compiled == 2
    assert again["h"] is first["f"] and again["g"] is first["g"]


def test_order_matters_and_an_answer_is_no_tool() -> None:
    made = Compiler(T)
    made.tools([tool("f", props(a={}, b={})), tool("g", props(b={}, a={}))])
    made.answer(AnswerFormat(schema=props(a={}, b={})))
    assert made.compiled == 3


def test_what_was_used_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "KEPT_SCHEMAS", 2)
    made = Compiler(T)
    for names in ("ab", "a", "c", "a", "b"):  # c drives b out, then b drives c out
        made.tools([tool("f", props(**{name: {}})) for name in names[:1]])
        made.tools([tool("f", props(**{name: {}})) for name in names[1:]])
    assert made.compiled == 4


def test_long_schemas_drive_others_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "KEPT_CHARACTERS", 1000)
    made = Compiler(T)
    for _ in range(2):
        made.tools([tool("f", props(a={"description": "x" * 600}))])
        made.tools([tool("f", props(b={"description": "x" * 600}))])
    assert made.compiled == 4


def test_nan_and_what_is_no_json_is_refused() -> None:
    for schema in (props(a={"minimum": float("nan")}), props(a={"const": object()})):
        with pytest.raises(SchemaError):
            Compiler(T).tools([tool("f", schema)])
