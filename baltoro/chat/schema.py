"""A client's JSON schema -> the schema that is generated under, or one error that names the fault.

Clients send every dialect of JSON Schema; the grammar library knows the core of one. What is lowered here accepts
the same values or fewer, never more, so that whatever is generated under it is valid under the client's own:

    annotations, unknown formats    dropped, as the standard says
    $ref                            followed here, so that a broken one is named before the library sees it
    propertyNames                   becomes properties or patternProperties
    properties without a word on    closed: a model that may invent arguments will
        additionalProperties
    an assertion nobody enforces    refused, never ignored; loosely: dropped, and told
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote

from baltoro.chat.messages import Json
from baltoro.chat.schema_finite import Schema, is_endless
from baltoro.chat.schema_words import (
    APPLICATORS,
    BOUNDS,
    FORMATS,
    OBJECT_WORDS,
    UNENFORCED,
    WORDS,
    is_list,
    is_map,
    show,
)
from baltoro.errors import SchemaError

MAX_DEPTH = 100  # schemas inside schemas, references followed; Python's own stack ends at about twice that
_DROPPED = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose schema it is, as an error says it."""

    name: str  # tool 'f'
    contents: str  # its parameters
    param: str  # where the request holds it
    is_object: bool  # it can be nothing but an object

    def error(self, path: str, found: str, expected: str) -> SchemaError:
        """path: a JSON pointer from the schema's root"""
        where = f" at {path}" if path else ""
        return SchemaError(f"{self.name}: {found}{where} in {self.contents}, expected {expected}", param=self.param)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A keyword that is not enforced."""

    path: str  # JSON pointer from the schema's root
    reason: str


@dataclass(frozen=True, slots=True)
class Lowered:
    schema: dict[str, Json]
    dropped: tuple[Dropped, ...]  # nothing but where that was allowed
    fragile: tuple[str, ...]  # paths of keywords that the grammar library may refuse all the same


def lower(schema: Json, subject: Subject, *, loose: bool = False, without: Mapping[str, str] | None = None) -> Lowered:
    """`loose`: drop what cannot be enforced, in place of an error. `without`: paths to drop in any case, and why."""
    lowering = _Lowering(schema, subject, loose, without or {})
    root: Json = {} if schema is None or schema is True else schema
    if isinstance(root, Mapping) and subject.is_object:
        root = dict(cast("Mapping[str, Json]", root))
        kinds: Json = root.get("type", "object")
        if kinds != "object" and not (is_list(kinds) and "object" in kinds):
            raise subject.error("", f"type {show(kinds)}", '"object": it can be nothing but a JSON object')
        root["type"] = "object"
    if not isinstance(root, Mapping):
        raise subject.error("", show(schema), "a JSON schema" + " of type object" * subject.is_object)
    lowered = lowering.schema(cast(Json, root), "", closable=True)
    if isinstance(lowered, bool):
        raise subject.error("", show(schema), "a JSON schema that a value can satisfy")
    bodies = dict(lowering.defs.values())
    if bodies:
        lowered["$defs"] = bodies
    if is_endless(lowered, {f"#/$defs/{name}": body for name, body in bodies.items()}):
        raise subject.error("", "a schema that no finite value satisfies", "one that does not require itself")
    dropped = tuple(Dropped(path, reason) for path, reason in lowering.dropped.items())
    return Lowered(lowered, dropped, tuple(lowering.fragile))


class _Lowering:
    """One walk over one schema. Paths are JSON pointers from its root."""

    def __init__(self, root: Json, subject: Subject, loose: bool, without: Mapping[str, str]) -> None:
        self.root, self.subject, self.loose, self.without = root, subject, loose, without
        self.depth = 0
        self.defs: dict[tuple[str, bool], tuple[str, Schema]] = {}  # (pointer, closable) -> (new name, lowered)
        self.dropped: dict[str, str] = {}  # path -> reason
        self.fragile: dict[str, None] = {}

    def refuse(self, path: str, found: str, expected: str) -> None:
        """Raise the error, or note it where schemas are loose: then the caller goes on without the keyword."""
        if not self.loose:
            raise self.subject.error(path, found, expected)
        self.dropped[path] = f"{found}, expected {expected}"

    def schema(self, node: Json, path: str, *, closable: bool) -> Schema:
        """`closable`: nothing outside `node` may lend it further properties."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            self.refuse(path, show(node), "a schema: an object or a boolean")
            return True
        if self.depth == MAX_DEPTH:
            self.refuse(path, f"schemas nested {MAX_DEPTH} deep", "fewer")
            return True
        self.depth += 1
        lowered = self._lower(cast("Mapping[str, Json]", node), path, closable)
        self.depth -= 1
        return lowered

    def _lower(self, node: Mapping[str, Json], path: str, closable: bool) -> Schema:
        if "not" in node and node["not"] in ({}, True):  # how zod spells "never"
            return False
        # true, and uniqueItems false, assert nothing
        unenforced = [word for word in sorted(UNENFORCED & node.keys()) if node[word] is not (word != "uniqueItems")]
        for word in unenforced:
            self.refuse(f"{path}/{word}", f"keyword {word!r}", "keywords that a grammar can enforce")

        # Closing is safe where no sibling or outer schema describes the same object, and never below oneOf:
        # there a narrower branch can make a second one fail to match, and the value valid by mistake.
        applicators = APPLICATORS & node.keys()
        alone = len(applicators) == 1 and not OBJECT_WORDS & node.keys()
        inner = closable and not unenforced and (not applicators or (alone and bool(applicators & {"anyOf", "$ref"})))

        lowered: dict[str, Json] = {}
        for word, value in node.items():
            if word in WORDS and (kept := self._value(word, value, path, inner)) is not _DROPPED:
                lowered[word] = kept
        if isinstance(lowered.get("items"), list):  # before draft 2020-12 a list stood for prefixItems
            lowered["prefixItems"] = lowered.pop("items")
            if "additionalItems" in node:
                lowered["items"] = self.schema(node["additionalItems"], f"{path}/additionalItems", closable=inner)
        if "propertyNames" in node:
            self._lower_names(node["propertyNames"], lowered, f"{path}/propertyNames")
        self._settle_bounds(lowered, path)
        if lowered.get("format") not in FORMATS:
            lowered.pop("format", None)
        if f"{path}/oneOf" in self.dropped and "oneOf" in lowered:  # at least one of its branches holds
            lowered.setdefault("anyOf", lowered.pop("oneOf"))

        named: set[str] = set(lowered.get("properties", ()))
        silent = not {"additionalProperties", "patternProperties"} & (node.keys() | lowered.keys())
        if inner and silent and not applicators and named and named.issuperset(lowered.get("required", ())):
            lowered["additionalProperties"] = False
        return lowered

    def _value(self, word: str, value: Json, path: str, closable: bool) -> Json:
        """What `word` holds, checked, with every schema inside it lowered."""
        path = f"{path}/{word}"
        accepts, expected = WORDS[word]
        if not accepts(value):
            self.refuse(path, show(value), expected)
            return _DROPPED
        if path in self.without:
            self.dropped[path] = self.without[path]
            if word != "oneOf":
                return _DROPPED
        elif word not in ("type", "properties", "$ref"):
            self.fragile[path] = None
        if word in ("properties", "patternProperties"):
            return {name: self.schema(node, f"{path}/{name}", closable=closable) for name, node in value.items()}
        if word in ("anyOf", "oneOf", "allOf", "prefixItems") or (word == "items" and is_list(value)):
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
            return self.refuse(path, show(node), "a schema of strings: property names are strings")
        if not words:
            return None
        if "properties" in lowered or "patternProperties" in lowered:
            return self.refuse(path, "keyword 'propertyNames'", "it without properties and patternProperties beside it")
        values = lowered.get("additionalProperties", True)
        if words.keys() in ({"const"}, {"enum"}):
            listed: list[Json] = words.get("enum", [words.get("const")])
            lowered["properties"] = {name: values for name in listed if isinstance(name, str)}
        elif words.keys() == {"pattern"}:
            lowered["patternProperties"] = {words["pattern"]: values}
        elif words.keys() <= {"minLength", "maxLength"}:
            lengths = f"{words.get('minLength', 0)},{words.get('maxLength', '')}"
            lowered["patternProperties"] = {f"^.{{{lengths}}}$": values}
        else:
            return self.refuse(path, show(node), "enum, const, pattern, or minLength and maxLength")
        lowered["additionalProperties"] = False
        return None

    def _settle_bounds(self, lowered: dict[str, Json], path: str) -> None:
        for side in ("Minimum", "Maximum"):  # draft 4: {"minimum": 0, "exclusiveMinimum": true}
            word, bound = f"exclusive{side}", side.lower()
            if isinstance(lowered.get(word), bool) and lowered.pop(word) and bound in lowered:
                lowered[word] = lowered.pop(bound)
        for least, greatest in BOUNDS:
            low, high = lowered.get(least, -math.inf), lowered.get(greatest, math.inf)
            if low > high:
                self.refuse(f"{path}/{greatest}", f"{least} {low} with {greatest} {high}", f"{least} <= {greatest}")
                del lowered[greatest]
        above, below = lowered.get("exclusiveMinimum", -math.inf), lowered.get("exclusiveMaximum", math.inf)
        if above >= below or above >= lowered.get("maximum", math.inf) or below <= lowered.get("minimum", -math.inf):
            self.refuse(path, "bounds that exclude each other", "a range that holds a number")
            for word in ("exclusiveMaximum", "maximum"):
                lowered.pop(word, None)

    def _reference(self, pointer: str, path: str, closable: bool) -> Json:
        node = self._resolve(pointer, path)
        if node is _DROPPED:
            return node
        key = (pointer, closable)
        if key not in self.defs:
            name = str(len(self.defs))
            self.defs[key] = (name, True)  # something to point at while its own body is read
            self.defs[key] = (name, self.schema(node, pointer, closable=closable))
        return f"#/$defs/{self.defs[key][0]}"

    def _resolve(self, pointer: str, path: str) -> Json:
        node: Json = self.root if pointer == "#" or pointer.startswith("#/") else _DROPPED
        if node is _DROPPED:
            self.refuse(path, f"$ref {show(pointer)}", "a path into the same schema, #/$defs/NAME")
            return node
        for step in unquote(pointer).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if is_map(node) and step in node:
                node = node[step]
            elif is_list(node) and step.isdecimal() and int(step) < len(node):
                node = node[int(step)]
            else:
                self.refuse(path, f"$ref {show(pointer)}", "a path that exists")
                return _DROPPED
        return node
