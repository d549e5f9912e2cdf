"""Whether a lowered schema can be satisfied by a value that comes to an end."""

from __future__ import annotations

from baltoro.chat.messages import Json
from baltoro.chat.schema_words import TYPES

Schema = dict[str, Json] | bool


def is_endless(schema: Schema, definitions: dict[str, Schema]) -> bool:
    """Whether only an endless value could satisfy it: a definition that requires itself.

    definitions: by the name that `$ref` has for them
    """
    finite: set[str] = set()
    while more := {name for name, body in definitions.items() if name not in finite and _ends(body, finite)}:
        finite |= more
    return not _ends(schema, finite)


def _ends(schema: Schema, finite: set[str]) -> bool:
    """Whether some value of finite length can satisfy `schema`, when the definitions in `finite` have one."""
    if isinstance(schema, bool):
        return schema
    if "enum" in schema or "const" in schema:
        return True
    if "$ref" in schema and schema["$ref"] not in finite:
        return False
    if not all(_ends(branch, finite) for branch in schema.get("allOf", ())):
        return False
    for word in ("anyOf", "oneOf"):
        if word in schema and not any(_ends(branch, finite) for branch in schema[word]):
            return False
    kinds = schema.get("type", TYPES)
    return any(_kind_ends(kind, schema, finite) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _kind_ends(kind: str, schema: dict[str, Json], finite: set[str]) -> bool:
    if kind == "object":
        properties = schema.get("properties", {})
        rest = "patternProperties" in schema or schema.get("additionalProperties", True)
        return all(_ends(properties.get(name, rest), finite) for name in schema.get("required", ()))
    if kind == "array":
        items = [*schema.get("prefixItems", ()), schema.get("items", True)]
        return all(_ends(item, finite) for item in items[: schema.get("minItems", 0)])
    return True
