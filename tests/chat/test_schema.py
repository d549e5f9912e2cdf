from __future__ import annotations

from typing import Any

import pytest

from baltoro.chat.schema import MAX_DEPTH, Subject, lower
from baltoro.errors import SchemaError

TOOL = Subject(name="tool 'f'", contents="its parameters", param="tools[2].function.parameters", is_object=True)
FORMAT = Subject(name="response_format", contents="its schema", param="response_format", is_object=False)


def lowered(parameters: Any) -> dict[str, Any]:
    return lower(parameters, TOOL).schema


def one(schema: Any) -> dict[str, Any]:
    """A tool with one parameter."""
    return {"type": "object", "properties": {"a": schema}}


@pytest.mark.parametrize("parameters", [None, True, {}, {"type": "object"}, {"type": ["object", "null"]}])
def test_a_tool_that_says_nothing_of_its_arguments_takes_any_object(parameters: Any) -> None:
    assert lowered(parameters) == {"type": "object"}


def test_annotations_and_formats_that_nobody_knows_are_dropped() -> None:
    described = {"type": "string", "format": "phone", "title": "A", "default": "x", "example": "y", "nullable": True}
    assert lowered(one(described) | {"$schema": "urn:mine"})["properties"] == {"a": {"type": "string"}}


def test_a_property_may_be_called_like_a_keyword() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}, "not": {"type": "null"}}}
    assert lowered(schema)["properties"] == schema["properties"]


def test_objects_that_name_their_properties_are_closed() -> None:
    schema = lowered(one({"type": "array", "items": one({"type": "string"})}))
    assert schema["additionalProperties"] is False
    assert schema["properties"]["a"]["items"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        one({}) | {"additionalProperties": True},
        one({}) | {"patternProperties": {"^x": {}}},
        one({}) | {"required": ["a", "b"]},
        {"allOf": [one({}), {"properties": {"b": {}}}]},
        one({}) | {"anyOf": [{"required": ["b"]}, {"properties": {"c": {}}}]},
        {"oneOf": [one({"const": 1}) | {"required": ["a"]}, one({"const": 2}) | {"required": ["a"]}]},
        {"type": "object", "properties": {}},
    ],
)
def test_objects_whose_other_properties_are_spoken_for_elsewhere_stay_open(schema: dict[str, Any]) -> None:
    def closed(node: Any) -> bool:
        if isinstance(node, dict):
            return node.get("additionalProperties") is False or any(map(closed, node.values()))
        return isinstance(node, list) and any(map(closed, node))

    assert not closed(lowered(schema))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"type": "string"}, {"additionalProperties": {"type": "integer"}}),
        ({"enum": ["x", "y"]}, {"properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}),
        ({"const": "x"}, {"properties": {"x": {"type": "integer"}}}),
        ({"pattern": "^a+$"}, {"patternProperties": {"^a+$": {"type": "integer"}}}),
        ({"type": "string", "minLength": 2}, {"patternProperties": {"^.{2,}$": {"type": "integer"}}}),
        (False, {"properties": {}}),
    ],
)
def test_property_names_become_properties(names: Any, words: dict[str, Any]) -> None:
    schema = lowered({"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": names})
    assert schema == {"type": "object", "additionalProperties": False} | words


def test_older_drafts_are_understood() -> None:
    schema = lowered(
        one({"type": "number", "minimum": 0, "exclusiveMinimum": True})
        | {
            "properties": {
                "b": {"items": [{"type": "null"}], "additionalItems": False},
                "a": {"$ref": "#/definitions/A"},
            }
        }
        | {"definitions": {"A": {"type": "number", "minimum": 0, "exclusiveMinimum": True}}}
    )
    assert schema["properties"]["b"] == {"prefixItems": [{"type": "null"}], "items": False}
    assert schema["$defs"] == {"0": {"type": "number", "exclusiveMinimum": 0}}


def test_references_may_go_in_circles_and_through_escapes() -> None:
    schema = lowered(one({"$ref": "#/$defs/a~1b%20c"}) | {"$defs": {"a/b c": one({"$ref": "#/$defs/a~1b%20c"})}})
    assert schema["properties"]["a"] == {"$ref": "#/$defs/0"}
    assert schema["$defs"]["0"]["properties"]["a"] == {"$ref": "#/$defs/0"}
    assert lowered(one({"$ref": "#"}))["$defs"]["0"]["properties"]["a"] == {"$ref": "#/$defs/0"}


def deep(levels: int) -> Any:
    schema: Any = {"type": "object"}
    for _ in range(levels):
        schema = one(schema)
    return schema


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ([], "[]"),
        (False, "False"),
        ("object", "'object'"),
        ({"type": "string"}, "'string'"),
        ({"type": "dict"}, "'dict'"),
        ({"type": None}, "None"),
        (one("string"), "'string' at /properties/a"),
        (one({"type": "float"}), "'float' at /properties/a/type"),
        (one({"type": ["string", "str"]}), "/properties/a/type"),
        (one({"type": "string", "enum": "x"}), "'x' at /properties/a/enum"),
        (one({"enum": []}), "/properties/a/enum"),
        (one({"anyOf": []}), "/properties/a/anyOf"),
        (one({"anyOf": [{"type": "string"}, 1]}), "1 at /properties/a/anyOf/1"),
        (one({"minLength": -1}), "-1 at /properties/a/minLength"),
        (one({"maxItems": "2"}), "'2' at /properties/a/maxItems"),
        (one({"maxItems": True}), "True at /properties/a/maxItems"),
        (one({"minimum": float("nan")}), "nan"),
        (one({"multipleOf": 0}), "/properties/a/multipleOf"),
        ({"type": "object", "properties": []}, "[] at /properties"),
        ({"type": "object", "required": "a"}, "'a' at /required"),
        (one({"minimum": 3, "maximum": 2}), "minimum 3 with maximum 2"),
        (one({"exclusiveMinimum": 2, "maximum": 2}), "exclude"),
        (one({"exclusiveMinimum": 2, "exclusiveMaximum": 2}), "exclude"),
        (one({"minLength": 3, "maxLength": 2}), "minLength 3 with maxLength 2"),
        (one({"minItems": 3, "maxItems": 2}), "minItems 3 with maxItems 2"),
        (one({"$ref": "#/$defs/B"}), "'#/$defs/B' at /properties/a/$ref"),
        (one({"$ref": "other.json#/a"}), "'other.json#/a'"),
        (one({"$ref": 1}), "1 at /properties/a/$ref"),
        (one({"$ref": "#/$defs/A"}) | {"$defs": {"A": {"$ref": "#/$defs/B"}}}, "at #/$defs/A/$ref"),
        (one({"$ref": "#"}) | {"required": ["a"]}, "no finite value"),
        (one(False) | {"required": ["a"]}, "no finite value"),
        (one({"type": "array", "minItems": 1, "items": {"$ref": "#"}}) | {"required": ["a"]}, "no finite value"),
        (one({"not": {"type": "string"}}), "'not' at /properties/a/not"),
        (one({"type": "array", "uniqueItems": True}), "'uniqueItems'"),
        ({"type": "object", "if": {}, "then": {}}, "'if'"),
        (one({}) | {"propertyNames": {"pattern": "^a"}}, "'propertyNames'"),
        ({"type": "object", "propertyNames": {"type": "integer"}}, "/propertyNames"),
        ({"type": "object", "propertyNames": {"format": "email"}}, "/propertyNames"),
        (deep(MAX_DEPTH), "nested"),
    ],
)
def test_a_broken_schema_is_one_error_with_the_tool_the_place_and_the_value(parameters: Any, named: str) -> None:
    with pytest.raises(SchemaError) as caught:
        lowered(parameters)
    assert named in caught.value.message
    assert "tool 'f'" in caught.value.message
    assert caught.value.param == "tools[2].function.parameters"


def test_what_asserts_nothing_is_not_refused() -> None:
    schema = {"type": "array", "uniqueItems": False, "unevaluatedItems": True, "items": {"not": {}}}
    assert lowered(one(schema))["properties"]["a"] == {"type": "array", "items": False}
    assert lowered(deep(MAX_DEPTH - 1))["type"] == "object"


# ── loose ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("schema", "kept", "paths"),
    [
        ({"not": {"type": "string"}, "minimum": 1}, {"minimum": 1}, ["/properties/a/not"]),
        ({"type": "array", "uniqueItems": True}, {"type": "array"}, ["/properties/a/uniqueItems"]),
        ({"type": "float"}, {}, ["/properties/a/type"]),
        ({"enum": [], "type": "string"}, {"type": "string"}, ["/properties/a/enum"]),
        ("string", True, ["/properties/a"]),
        ({"$ref": "#/$defs/B"}, {}, ["/properties/a/$ref"]),
        ({"minimum": 3, "maximum": 2}, {"minimum": 3}, ["/properties/a/maximum"]),
        ({"exclusiveMinimum": 2, "maximum": 2}, {"exclusiveMinimum": 2}, ["/properties/a"]),
        ({"propertyNames": {"format": "email"}}, {}, ["/properties/a/propertyNames"]),
        (
            {"properties": {"b": {"contains": {}}}, "if": {}},
            {"properties": {"b": {}}},  # open: what stands behind `then` may name further properties
            ["/properties/a/if", "/properties/a/properties/b/contains"],
        ),
    ],
)
def test_loosely_a_keyword_is_dropped_with_its_path_and_the_others_hold(
    schema: Any, kept: Any, paths: list[str]
) -> None:
    lowered = lower(one(schema), TOOL, loose=True)
    assert lowered.schema["properties"]["a"] == kept
    assert [each.path for each in lowered.dropped] == paths
    assert all(each.reason for each in lowered.dropped)


@pytest.mark.parametrize("parameters", [[], False, {"type": "string"}, one({"$ref": "#"}) | {"required": ["a"]}])
def test_loosely_what_no_object_satisfies_is_refused_all_the_same(parameters: Any) -> None:
    with pytest.raises(SchemaError):
        lower(parameters, TOOL, loose=True)


def test_loosely_what_compiles_is_lowered_as_ever() -> None:
    schema = one({"type": "array", "items": one({"type": "string", "pattern": "^a"})})
    assert lower(schema, TOOL, loose=True) == lower(schema, TOOL)
    assert lower(schema, TOOL).dropped == ()


def test_an_answer_may_be_any_value_and_names_itself_in_errors() -> None:
    assert lower({"type": "array", "items": {"type": "integer"}}, FORMAT).schema["type"] == "array"
    with pytest.raises(SchemaError, match="response_format: 'float' at /items/type in its schema") as caught:
        lower({"items": {"type": "float"}}, FORMAT)
    assert caught.value.param == "response_format"
