"""JSON Schema's words: which of them the grammar library enforces, and what each may hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from baltoro.chat.messages import Json

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# Formats that llguidance 1.9 enforces; by the standard the others are annotations.
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
UNENFORCED = frozenset(
    {"not", "if", "contains", "uniqueItems", "dependentRequired", "dependentSchemas", "dependencies"}
    | {"unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"}
)
OBJECT_WORDS = frozenset({"properties", "patternProperties", "additionalProperties", "required", "propertyNames"})
APPLICATORS = frozenset({"anyOf", "oneOf", "allOf", "$ref"})
BOUNDS = [  # (least, greatest): a pair that contradicts itself is a mistake of the tool's author
    ("minimum", "maximum"),
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
]


def is_list(value: Json) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_listed(value: Json) -> bool:
    return is_list(value) and len(value) > 0


def is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Json) -> bool:
    return is_number(value) and value >= 0 and float(value).is_integer()


def is_limit(value: Json) -> bool:
    return isinstance(value, bool) or is_number(value)


def is_kind(value: Json) -> bool:
    return value in TYPES if isinstance(value, str) else is_listed(value) and all(kind in TYPES for kind in value)


def is_names(value: Json) -> bool:
    return is_list(value) and all(isinstance(name, str) for name in value)


def is_text(value: Json) -> bool:
    return isinstance(value, str)


def is_map(value: Json) -> bool:
    return isinstance(value, Mapping)


def is_anything(value: Json) -> bool:  # noqa: ARG001
    return True


def show(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# The keywords that reach the grammar library: what they may hold. Any other is an annotation or was lowered above.
WORDS: dict[str, tuple[Callable[[Json], bool], str]] = {
    "type": (is_kind, f"one or several of {', '.join(TYPES)}"),
    "enum": (is_listed, "a list of at least one value"),
    "const": (is_anything, "a value"),
    "$ref": (is_text, "a path into the same schema, #/$defs/NAME"),
    "anyOf": (is_listed, "a list of at least one schema"),
    "oneOf": (is_listed, "a list of at least one schema"),
    "allOf": (is_listed, "a list of at least one schema"),
    "properties": (is_map, "an object of schemas"),
    "patternProperties": (is_map, "an object of schemas"),
    "additionalProperties": (is_anything, "a schema"),
    "required": (is_names, "a list of property names"),
    "minProperties": (is_count, "a whole number from 0 on"),
    "maxProperties": (is_count, "a whole number from 0 on"),
    "items": (is_anything, "a schema"),
    "prefixItems": (is_listed, "a list of at least one schema"),
    "minItems": (is_count, "a whole number from 0 on"),
    "maxItems": (is_count, "a whole number from 0 on"),
    "minLength": (is_count, "a whole number from 0 on"),
    "maxLength": (is_count, "a whole number from 0 on"),
    "pattern": (is_text, "a regular expression"),
    "format": (is_text, "a string"),
    "minimum": (is_number, "a number"),
    "maximum": (is_number, "a number"),
    "exclusiveMinimum": (is_limit, "a number"),
    "exclusiveMaximum": (is_limit, "a number"),
    "multipleOf": (lambda value: is_number(value) and value > 0, "a number above 0"),
}
