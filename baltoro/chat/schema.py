"""A tool's JSON schema -> the schema that its arguments are generated under, or one error that names the fault.

Clients send every dialect of JSON Schema; the grammar library knows the core of one. What is lowered here accepts
the same arguments or fewer, never more, so that whatever is generated under it is valid under the client's own:

    annotations, unknown formats    dropped, as the standard says
    $ref                            followed here, so that a broken one is named before the library sees it
    propertyNames                   becomes properties or patternProperties
    properties without a word on    closed: a model that may invent arguments will
        additionalProperties
    an assertion nobody enforces    refused, never ignored
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast
from urllib.parse import unquote

from baltoro.chat.messages import Json
from baltoro.errors import SchemaError

Schema = dict[str, Json] | bool

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
MAX_DEPTH = 100  # schemas inside schemas, references followed; Python's own stack ends at about twice that


def lower(parameters: Json, *, tool: str, param: str) -> dict[str, Json]:
    """The schema of one tool's arguments, always of type object. `param` is where the request holds it."""
    lowering = _Lowering(parameters, tool, param)
    root: Json = {} if parameters is None or parameters is True else parameters
    if isinstance(root, Mapping):
        root = dict(cast("Mapping[str, Json]", root))
        kinds: Json = root.get("type", "object")
        if kinds != "object" and not (_is_list(kinds) and "object" in kinds):
            raise lowering.error("", f"type {_show(kinds)}", '"object": the arguments of a call are a JSON object')
        root["type"] = "object"
    schema = lowering.schema(root, "", closable=True)
    if isinstance(schema, bool):
        raise lowering.error("", _show(parameters), "a JSON schema of type object")
    if lowering.defs:
        schema["$defs"] = dict(lowering.defs.values())
    lowering.refuse_endless(schema)
    return schema


class _Lowering:
    """One walk over one schema. Paths are JSON pointers from its root."""

    def __init__(self, root: Json, tool: str, param: str) -> None:
        self.root, self.tool, self.param = root, tool, param
        self.depth = 0
        self.defs: dict[tuple[str, bool], tuple[str, Schema]] = {}  # (pointer, closable) -> (new name, lowered)

    def error(self, path: str, found: str, expected: str) -> SchemaError:
        where = f" at {path}" if path else ""
        message = f"tool {self.tool!r}: {found}{where} in its parameters, expected {expected}"
        return SchemaError(message, param=self.param)

    def schema(self, node: Json, path: str, *, closable: bool) -> Schema:
        """`closable`: nothing outside `node` may lend it further properties."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            raise self.error(path, _show(node), "a schema: an object or a boolean")
        if self.depth == MAX_DEPTH:
            raise self.error(path, f"schemas nested {MAX_DEPTH} deep", "fewer")
        self.depth += 1
        lowered = self._lower(cast("Mapping[str, Json]", node), path, closable)
        self.depth -= 1
        return lowered

    def _lower(self, node: Mapping[str, Json], path: str, closable: bool) -> Schema:
        if "not" in node and node["not"] in ({}, True):  # how zod spells "never"
            return False
        for word in sorted(UNENFORCED & node.keys()):
            if node[word] is not (word != "uniqueItems"):  # true, and uniqueItems false, assert nothing
                raise self.error(f"{path}/{word}", f"keyword {word!r}", "keywords that a grammar can enforce")

        # Closing is safe where no sibling or outer schema describes the same object, and never below oneOf:
        # there a narrower branch can make a second one fail to match, and the value valid by mistake.
        applicators = APPLICATORS & node.keys()
        alone = len(applicators) == 1 and not OBJECT_WORDS & node.keys()
        inner = closable and (not applicators or (alone and bool(applicators & {"anyOf", "$ref"})))

        lowered = {word: self._value(word, value, path, inner) for word, value in node.items() if word in WORDS}
        if isinstance(lowered.get("items"), list):  # before draft 2020-12 a list stood for prefixItems
            lowered["prefixItems"] = lowered.pop("items")
            if "additionalItems" in node:
                lowered["items"] = self.schema(node["additionalItems"], f"{path}/additionalItems", closable=inner)
        if "propertyNames" in node:
            self._lower_names(node["propertyNames"], lowered, f"{path}/propertyNames")
        self._settle_bounds(lowered, path)
        if lowered.get("format") not in FORMATS:
            lowered.pop("format", None)

        named: set[str] = set(lowered.get("properties", ()))
        silent = not {"additionalProperties", "patternProperties"} & lowered.keys()
        if inner and silent and not applicators and named and named.issuperset(lowered.get("required", ())):
            lowered["additionalProperties"] = False
        return lowered

    def _value(self, word: str, value: Json, path: str, closable: bool) -> Json:
        """What `word` holds, checked, with every schema inside it lowered."""
        path = f"{path}/{word}"
        accepts, expected = WORDS[word]
        if not accepts(value):
            raise self.error(path, _show(value), expected)
        if word in ("properties", "patternProperties"):
            return {name: self.schema(node, f"{path}/{name}", closable=closable) for name, node in value.items()}
        if word in ("anyOf", "oneOf", "allOf", "prefixItems") or (word == "items" and _is_list(value)):
            return [self.schema(node, f"{path}/{place}", closable=closable) for place, node in enumerate(value)]
        if word in ("items", "additionalProperties"):
            return self.schema(value, path, closable=closable)
        if word == "$ref":
            return self._reference(value, path, closable)
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def _lower_names(self, node: Json, lowered: dict[str, Json], path: str) -> None:
        names = self.schema(node, path, closable=False)
        words: dict[str, Json] = {"enum": []} if names is False else {} if names is True else dict(names)
        if words.pop("type", "string") not in ("string", ["string"]):
            raise self.error(path, _show(node), "a schema of strings: property names are strings")
        if not words:
            return
        values = lowered.pop("additionalProperties", True)
        if "properties" in lowered or "patternProperties" in lowered:
            raise self.error(path, "keyword 'propertyNames'", "it without properties and patternProperties beside it")
        lowered["additionalProperties"] = False
        if words.keys() in ({"const"}, {"enum"}):
            listed: list[Json] = words.get("enum", [words.get("const")])
            lowered["properties"] = {name: values for name in listed if isinstance(name, str)}
        elif words.keys() == {"pattern"}:
            lowered["patternProperties"] = {words["pattern"]: values}
        elif words.keys() <= {"minLength", "maxLength"}:
            lengths = f"{words.get('minLength', 0)},{words.get('maxLength', '')}"
            lowered["patternProperties"] = {f"^.{{{lengths}}}$": values}
        else:
            raise self.error(path, _show(node), "enum, const, pattern, or minLength and maxLength")

    def _settle_bounds(self, lowered: dict[str, Json], path: str) -> None:
        for side in ("Minimum", "Maximum"):  # draft 4: {"minimum": 0, "exclusiveMinimum": true}
            word, bound = f"exclusive{side}", side.lower()
            if isinstance(lowered.get(word), bool) and lowered.pop(word) and bound in lowered:
                lowered[word] = lowered.pop(bound)
        for least, greatest in BOUNDS:
            low, high = lowered.get(least, -math.inf), lowered.get(greatest, math.inf)
            if low > high:
                raise self.error(path, f"{least} {low} with {greatest} {high}", f"{least} <= {greatest}")
        above, below = lowered.get("exclusiveMinimum", -math.inf), lowered.get("exclusiveMaximum", math.inf)
        if above >= below or above >= lowered.get("maximum", math.inf) or below <= lowered.get("minimum", -math.inf):
            raise self.error(path, "bounds that exclude each other", "a range that holds a number")

    def _reference(self, pointer: str, path: str, closable: bool) -> str:
        key = (pointer, closable)
        if key not in self.defs:
            name = str(len(self.defs))
            self.defs[key] = (name, True)  # something to point at while its own body is read
            self.defs[key] = (name, self.schema(self._resolve(pointer, path), pointer, closable=closable))
        return f"#/$defs/{self.defs[key][0]}"

    def _resolve(self, pointer: str, path: str) -> Json:
        if pointer != "#" and not pointer.startswith("#/"):
            raise self.error(path, f"$ref {_show(pointer)}", "a path into the same schema, #/$defs/NAME")
        node: Json = self.root
        for step in unquote(pointer).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if _is_map(node) and step in node:
                node = node[step]
            elif _is_list(node) and step.isdecimal() and int(step) < len(node):
                node = node[int(step)]
            else:
                raise self.error(path, f"$ref {_show(pointer)}", "a path that exists")
        return node

    def refuse_endless(self, schema: Schema) -> None:
        """Refuse a schema that only an endless value could satisfy: a definition that requires itself."""
        finite: set[str] = set()
        bodies = {f"#/$defs/{name}": body for name, body in self.defs.values()}
        while more := {name for name, body in bodies.items() if name not in finite and _ends(body, finite)}:
            finite |= more
        if not _ends(schema, finite):
            raise self.error("", "a schema that no finite value satisfies", "one that does not require itself")


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


def _is_list(value: Json) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_listed(value: Json) -> bool:
    return _is_list(value) and len(value) > 0


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Json) -> bool:
    return _is_number(value) and value >= 0 and float(value).is_integer()


def _is_limit(value: Json) -> bool:
    return isinstance(value, bool) or _is_number(value)


def _is_kind(value: Json) -> bool:
    return value in TYPES if isinstance(value, str) else _is_listed(value) and all(kind in TYPES for kind in value)


def _is_names(value: Json) -> bool:
    return _is_list(value) and all(isinstance(name, str) for name in value)


def _is_text(value: Json) -> bool:
    return isinstance(value, str)


def _is_map(value: Json) -> bool:
    return isinstance(value, Mapping)


def _is_anything(value: Json) -> bool:  # noqa: ARG001
    return True


def _show(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# The keywords that reach the grammar library: what they may hold. Any other is an annotation or was lowered above.
WORDS: dict[str, tuple[Callable[[Json], bool], str]] = {
    "type": (_is_kind, f"one or several of {', '.join(TYPES)}"),
    "enum": (_is_listed, "a list of at least one value"),
    "const": (_is_anything, "a value"),
    "$ref": (_is_text, "a path into the same schema, #/$defs/NAME"),
    "anyOf": (_is_listed, "a list of at least one schema"),
    "oneOf": (_is_listed, "a list of at least one schema"),
    "allOf": (_is_listed, "a list of at least one schema"),
    "properties": (_is_map, "an object of schemas"),
    "patternProperties": (_is_map, "an object of schemas"),
    "additionalProperties": (_is_anything, "a schema"),
    "required": (_is_names, "a list of property names"),
    "minProperties": (_is_count, "a whole number from 0 on"),
    "maxProperties": (_is_count, "a whole number from 0 on"),
    "items": (_is_anything, "a schema"),
    "prefixItems": (_is_listed, "a list of at least one schema"),
    "minItems": (_is_count, "a whole number from 0 on"),
    "maxItems": (_is_count, "a whole number from 0 on"),
    "minLength": (_is_count, "a whole number from 0 on"),
    "maxLength": (_is_count, "a whole number from 0 on"),
    "pattern": (_is_text, "a regular expression"),
    "format": (_is_text, "a string"),
    "minimum": (_is_number, "a number"),
    "maximum": (_is_number, "a number"),
    "exclusiveMinimum": (_is_limit, "a number"),
    "exclusiveMaximum": (_is_limit, "a number"),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
}
