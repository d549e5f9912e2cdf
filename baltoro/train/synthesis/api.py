"""Declarations as real interfaces write them: names with dots and prefixes, long and short descriptions, defaults, nesting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from baltoro.chat.messages import Tool
from baltoro.train.synthesis import everyday
from baltoro.train.synthesis.blueprints import Blueprint, Slot, article, blueprints
from baltoro.train.synthesis.declarations import declare, spelled
from baltoro.train.synthesis.kinds import Kind
from baltoro.train.synthesis.kinds import declare as declare_kind
from baltoro.train.synthesis.split import is_reserved
from baltoro.train.synthesis.words import Lexicon


@dataclass(slots=True)
class ApiFunction:
    name: str
    blueprint: Blueprint
    tool: Tool
    kinds: dict[str, Kind]  # declared slots, in the order of the schema
    paths: dict[str, tuple[str, ...]]  # where a slot's value stands in the arguments
    labels: dict[str, str]  # what a slot's parameter is called, in words

    @property
    def words(self) -> frozenset[str]:
        return self.blueprint.words

    @property
    def nested(self) -> bool:
        return any(len(path) > 1 for path in self.paths.values()) or any(map(_holds_objects, self.kinds.values()))

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in the order of the schema; `given`: slot -> JSON value."""
        whole: dict[str, Any] = {}
        for key, path in self.paths.items():
            if key in given:
                place = whole
                for name in path[:-1]:
                    place = place.setdefault(name, {})
                place[path[-1]] = given[key]
        return whole


def _holds_objects(kind: Kind) -> bool:
    return kind.schema["type"] == "object" or kind.schema.get("items", {}).get("type") in ("object", "array")


_VERBS: Mapping[str, tuple[str, ...]] = {
    "get": ("get", "get", "fetch", "retrieve", "find", "lookup", "show", "query"), "find": ("find", "search", "list", "get", "locate"),
    "search": ("search", "find", "query", "list"), "calculate": ("calculate", "calculate", "compute", "calc", "get", "estimate", "determine"),
    "create": ("create", "create", "make", "new", "generate", "build"), "add": ("add", "create", "insert"), "set": ("set", "change", "adjust", "update"),
    "book": ("book", "reserve"), "reserve": ("reserve", "book"), "buy": ("buy", "purchase", "order"), "order": ("order", "place_order_for"),
    "send": ("send", "compose"), "log": ("log", "record", "track", "save"), "convert": ("convert", "transform"), "check": ("check", "verify"),
    "predict": ("predict", "forecast"), "estimate": ("estimate", "calculate", "compute"),
}  # fmt: skip


def make_api(
    r: Random, words: Lexicon, taken: Sequence[ApiFunction] = (), *, nested: bool = False, terse: bool = False
) -> ApiFunction | None:
    """A function that none of `taken` could stand for; half of the time a neighbour of one of them. nested: with an object."""
    used = {function.blueprint.topic for function in taken}
    free = [blueprint for blueprint in blueprints(words.split) if blueprint.topic not in used]
    if taken and r.random() < 0.5:
        section = r.choice(taken).blueprint.section
        free = [blueprint for blueprint in free if blueprint.section == section] or free
    return declare_api(r, words, r.choice(free), nested=nested, terse=terse) if free else None


def declare_api(
    r: Random, words: Lexicon, blueprint: Blueprint, *, nested: bool = False, terse: bool = False
) -> ApiFunction:
    style = r.choices(("snake", "camel", "pascal"), (76, 20, 4))[0]
    slots = [slot for slot in blueprint.slots.values() if slot.required or r.random() < 0.75]
    if r.random() < 0.15:
        r.shuffle(slots)
    detail = 0.0 if terse else r.choices((0.0, 0.6, 1.0), (12, 66, 22))[0]
    kinds = {slot.key: declare_kind(r, slot.spec, described=detail > 0) for slot in slots}
    labels = _labels(r, blueprint, slots)
    schemas = {
        slot.key: _schema(r, words, blueprint, slot, kinds[slot.key], labels[slot.key], detail) for slot in slots
    }
    paths = {slot.key: (spelled(labels[slot.key], style),) for slot in slots}
    properties = {paths[key][0]: schema for key, schema in schemas.items()}
    required = [paths[slot.key][0] for slot in slots if slot.required]
    if len(slots) > 1 and (nested or r.random() < 0.1):
        properties, required = _wrap(r, blueprint, slots, schemas, paths, style)
    name = _name(r, words, blueprint)
    description = None if terse and r.random() < 0.15 else _description(r, blueprint, labels, slots, detail)
    sort = r.random() < 0.1
    if sort:
        properties = dict(sorted(properties.items()))
        paths = dict(sorted(paths.items(), key=lambda item: item[1]))
        kinds = {key: kinds[key] for key in paths}
    return ApiFunction(name, blueprint, declare(r, name, description, properties, required, sort), kinds, paths, labels)


def _wrap(
    r: Random,
    blueprint: Blueprint,
    slots: list[Slot],
    schemas: Mapping[str, Any],
    paths: dict[str, tuple[str, ...]],
    style: str,
) -> tuple[dict[str, Any], list[str]]:
    """Some parameters become fields of an object; rewrites `paths`, in the new order."""
    optional = [slot for slot in slots if not slot.required]
    inner = optional if len(optional) > 1 and r.random() < 0.6 else slots[1:] if r.random() < 0.6 else slots
    keys = {slot.key for slot in inner}
    noun = blueprint.topic.split()[-1]
    label = r.choice(("options", "filters", "preferences", "criteria", "settings") if all(not slot.required for slot in inner)
                     else ("details", "data", "info", "request", f"{noun} details", f"{noun} info", noun))  # fmt: skip
    outer = spelled(label, style)
    while any((outer,) == path for path in paths.values()):
        outer += "_data"
    fields = {paths[slot.key][0]: schemas[slot.key] for slot in inner}
    schema: dict[str, Any] = {"type": "object", "properties": fields}
    needed = [paths[slot.key][0] for slot in inner if slot.required]
    if r.random() < 0.8:
        schema["description"] = r.choice(
            (
                f"The {label} of the {noun}.",
                f"{label.capitalize()}",
                f"{label.capitalize()} for the {blueprint.topic}",
                f"An object with the {label}.",
            )
        )
    if needed or r.random() < 0.2:
        schema["required"] = needed
    properties: dict[str, Any] = {paths[slot.key][0]: schemas[slot.key] for slot in slots if slot.key not in keys}
    required = [paths[slot.key][0] for slot in slots if slot.required and slot.key not in keys]
    properties[outer] = schema
    rewritten = {slot.key: paths[slot.key] for slot in slots if slot.key not in keys}
    rewritten |= {slot.key: (outer, *paths[slot.key]) for slot in inner}
    paths.clear()
    paths.update(rewritten)
    return properties, [*required, outer] if needed else required


_TITLES = ("Api", "Service", "Hub", "Tools", "Manager", "Client")


def _name(r: Random, words: Lexicon, blueprint: Blueprint) -> str:
    while True:
        name = _styled(r, words, blueprint)
        if not is_reserved(name) and not everyday.is_everyday(name):
            return name


def _styled(r: Random, words: Lexicon, blueprint: Blueprint) -> str:
    verb, topic, section = r.choice(_VERBS.get(blueprint.verb, (blueprint.verb,))), blueprint.topic, blueprint.section
    plain = f"{verb} {topic}"
    style = r.random()
    if style < 0.40:
        return spelled(plain, "snake")
    if style < 0.51:
        return spelled(plain, "camel")
    if style < 0.55:
        return spelled(plain, "pascal")
    if style < 0.64:
        return f"{section}.{spelled(plain, 'snake')}"
    if style < 0.71:
        return f"{spelled(topic, 'snake')}.{spelled(verb, 'snake')}"
    if style < 0.75:
        head, *rest = topic.split()
        return f"{head}.{spelled(' '.join([verb, *rest]), 'snake')}"
    if style < 0.82:
        return f"{section.title()}_{r.randint(1, 4)}_{spelled(plain, 'pascal')}"
    if style < 0.87:
        return f"{spelled(words.singular(r, 0.5).capitalize(), 'pascal')}{r.choice(('', *_TITLES))}.{spelled(plain, r.choice(('snake', 'camel')))}"
    if style < 0.92:
        return spelled(topic, "snake")
    if style < 0.96:
        return spelled(f"{topic} {verb}", "snake")
    return f"{r.choice(('api', 'v1', 'app', section, words.singular(r, 0.4)))}_{spelled(plain, 'snake')}"


# Other names for a slot; the key itself comes first.
_ALSO: Mapping[str, tuple[str, ...]] = {
    "city": ("location", "place", "town", "city name", "loc"), "location": ("city", "place", "area", "loc", "where"), "region": ("area", "zone", "location"),
    "date": ("day", "on date", "date of visit", "when"), "time": ("start time", "hour", "at", "time of day"), "count": ("number", "quantity", "num", "amount"),
    "quantity": ("count", "number", "qty", "amount"), "title": ("name", "heading"), "name": ("title", "label", "full name"), "topic": ("subject", "theme", "query"),
    "origin": ("from", "from city", "departure", "start", "source"), "destination": ("to", "to city", "arrival", "dest", "end"), "max_price": ("budget", "price limit", "max cost"),
    "amount": ("value", "sum", "total"), "guests": ("num guests", "number of people", "adults"), "language": ("lang", "locale"), "text": ("content", "input text", "message"),
    "message": ("text", "content", "body"), "email": ("email address", "mail", "recipient"), "artist": ("artist name", "musician", "performer"), "player": ("player name", "athlete"),
    "country": ("country name", "nation"), "year": ("for year", "in year"), "unit": ("units", "measure", "unit of measure"), "genre": ("category", "style", "type"),
    "duration": ("length", "minutes", "duration minutes"), "person": ("name", "full name", "who"), "company": ("company name", "organization", "firm"), "team": ("team name", "club"),
    "rating": ("min rating", "score"), "numbers": ("values", "data", "nums", "list"), "query": ("search term", "q", "keywords"), "address": ("street address", "location"),
    "food": ("food item", "item", "dish"), "symbol": ("ticker", "stock symbol", "stock"), "ticker": ("symbol", "stock"), "start_date": ("from date", "start", "begin date"),
    "end_date": ("to date", "end", "until"), "mass": ("weight", "m"), "velocity": ("speed", "v"), "height": ("h", "tall"), "length": ("l", "size"), "radius": ("r",), "width": ("w",),
}  # fmt: skip


_NAMED = frozenset({
    "place", "country", "person", "fullname", "company", "team", "venue", "product", "food", "animal", "plant", "sport", "instrument", "genre", "disease", "drug",
    "song", "work", "title", "proper", "course", "league", "metal", "profession",
})  # fmt: skip


def _labels(r: Random, blueprint: Blueprint, slots: list[Slot]) -> dict[str, str]:
    labels: dict[str, str] = {}
    reserved = {slot.key for slot in slots}
    for slot in slots:
        label = slot.key.replace("_", " ")
        other = r.choice(_ALSO.get(slot.key, (label,)))
        if r.random() < 0.4 and other not in labels.values() and other.replace(" ", "_") not in reserved:
            label = other
        elif r.random() < 0.07:
            label = f"{blueprint.topic.split()[0]} {label}"
        labels[slot.key] = label if label not in labels.values() else slot.key.replace("_", " ")
    return labels


def _schema(
    r: Random, words: Lexicon, blueprint: Blueprint, slot: Slot, kind: Kind, label: str, detail: float
) -> dict[str, Any]:
    """`detail`: 0 says nothing in words, 1 all there is to say."""
    schema = dict(kind.schema)
    spoken_default = False
    if detail and (kind.strict or r.random() < 0.94):
        noun = blueprint.topic.split()[-1]
        plain = slot.key.replace("_", " ")
        text = r.choice((
            f"The {plain}", f"The {plain}", plain.capitalize(), f"The {plain} of the {noun}", f"The {plain} for the {noun}", f"{plain.capitalize()} of the {noun}",
            f"The {plain} to {'search in' if slot.spec == 'place' else 'look for' if blueprint.verb in ('find', 'search') else 'use'}", f"The {plain} to use",
            f"Name of the {plain}" if slot.spec in _NAMED else f"The {plain} wanted",
            f"Specifies the {plain}", f"{article(plain).capitalize()} {plain}",
        ))  # fmt: skip
        if kind.schema["type"] == "boolean":
            text = r.choice(
                (
                    f"Whether to use {plain}",
                    f"Whether {plain} is wanted",
                    f"True for {plain}",
                    f"Set to true for {plain}",
                    f"If true, {plain}",
                    f"Flag for {plain}",
                )
            )
        elif (
            kind.schema["type"] in ("integer", "number")
            and "_" not in slot.key
            and slot.key.endswith("s")
            and r.random() < 0.5
        ):
            text = r.choice((f"Number of {plain}", f"How many {plain}", f"The number of {plain}"))
        if kind.strict:
            text += _hinted(r, r.choice(kind.hints))
        elif slot.unit and slot.unit not in plain and r.random() < 0.85:
            text += r.choice((f" in {slot.unit}", f" (in {slot.unit})", f" ({slot.unit})", f", in {slot.unit}"))
        elif kind.hints and r.random() < 0.5 + detail / 2:
            text += _hinted(r, r.choice(kind.hints))
        if r.random() < 0.12 * detail and kind.schema["type"] in ("string", "integer"):
            example = kind.make(r, words).json
            text += r.choice(
                (
                    f", e.g. {example}",
                    f" (e.g. {example})",
                    f". For example, '{example}'",
                    f", such as '{example}'",
                    f" like {example}",
                )
            )
        if not slot.required and r.random() < 0.75:
            if kind.default is not None and r.random() < 0.7:
                text += r.choice(
                    (
                        f". Default is {kind.default}",
                        f". Defaults to {kind.default}",
                        f" (default: {kind.default})",
                        f". If not given, {kind.default} is used",
                        f". Optional, default {kind.default}",
                    )
                )
                spoken_default = True
            else:
                text += r.choice(
                    (
                        " (optional)",
                        ", optional",
                        ". Optional",
                        ". This parameter is optional",
                        ". If not provided, all are considered",
                    )
                )
        if detail == 1.0 and r.random() < 0.3:
            text += r.choice(
                (
                    ". This value is used by the service",
                    ". Must be valid",
                    ". Case insensitive",
                    ". It must not be empty",
                    f". Please give the {plain} exactly",
                )
            )
        schema["description"] = text + ("." if r.random() < 0.6 else "")
    if kind.default is not None and not slot.required and r.random() < (0.35 if spoken_default else 0.55):
        schema["default"] = kind.default
    if r.random() < 0.25:
        schema = dict(sorted(schema.items(), key=lambda item: item[0] != "description"))
    return schema


def _hinted(r: Random, hint: str) -> str:
    if not hint:
        return ""
    if hint.startswith(("in ", "as ")) and r.random() < 0.7:
        return f" {hint}"
    return r.choice((f", {hint}", f" ({hint})", f". {hint[:1].upper()}{hint[1:]}"))


def ability(blueprint: Blueprint) -> str:
    """As an order: "look up the weather alerts of a region"."""
    about = blueprint.about
    if blueprint.does:
        return about
    verb = {"calculate": "calculate", "compare": "compare"}.get(blueprint.verb, "look up")
    return f"{verb} {about}"


def _description(r: Random, blueprint: Blueprint, labels: Mapping[str, str], slots: list[Slot], detail: float) -> str:
    about = blueprint.about
    if blueprint.does:
        text = r.choice(
            (
                about,
                about,
                about,
                f"this function can {about}",
                f"use this to {about}",
                f"allows you to {about}",
                f"call this function to {about}",
            )
        )
    else:
        lead = {"calculate": ("calculate", "compute", "calculates", "work out", "determine", "find")}.get(
            blueprint.verb, ("get", "retrieve", "fetch", "returns", "retrieves", "look up", "find", "provides", "query")
        )
        text = f"{r.choice(lead)} {about.removeprefix('the ') if r.random() < 0.25 else about}"
        if r.random() < 0.1:
            text = r.choice(
                (f"this function returns {about}", about, f"service for {about}", about.removeprefix("the "))
            )
    needed = [labels[slot.key] for slot in slots if slot.required]
    if needed and r.random() < 0.25:
        named = needed[0] if len(needed) == 1 else ", ".join(needed[:-1]) + " and " + needed[-1]
        text += r.choice(
            (
                f" based on the {named}",
                f" given the {named}",
                f" using the provided {named}",
                f" by {named}",
                f" for the given {named}",
            )
        )
    text = text[:1].upper() + text[1:]
    if detail == 1.0 or r.random() < 0.08:
        text += r.choice((
            ". Returns a JSON object with the result", ". Use it when the user asks for it", f". Call this whenever somebody wants to {ability(blueprint)}", ". The result is an object",
            ". All optional parameters may be left out", ". Requests are limited to 60 a minute", f". Part of the {blueprint.section.replace('_', ' ')} service", ". Raises an error when nothing is found",
        ))  # fmt: skip
    return text + ("." if r.random() < 0.75 else "")
