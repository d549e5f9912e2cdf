"""Parameters of invented functions: what they are called, what they accept, how a request mentions them.

A slot is a kind of parameter (a place, a date, a message). Its own phrases ("in {v}") may be used only
where no other parameter of the same function could be meant; otherwise the request names the parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from baltoro.train.synthesis import values
from baltoro.train.synthesis.declarations import spelled
from baltoro.train.synthesis.split import side
from baltoro.train.synthesis.values import Maker, Value
from baltoro.train.synthesis.words import Lexicon


@dataclass(frozen=True, slots=True)
class Slot:
    kind: str
    type: str  # of JSON schema
    labels: tuple[str, ...]  # names in words
    hints: tuple[str, ...]  # descriptions: {p} the label, {n} what the function is about
    make: Maker
    sure: tuple[str, ...] = ()  # phrases that say by themselves which parameter is meant
    loose: tuple[str, ...] = ()  # phrases that fit only where the function has no other parameter
    weight: float = 1.0


@dataclass(slots=True)
class Parameter:
    name: str
    label: str
    slot: Slot
    required: bool
    schema: dict[str, Any]
    choices: tuple[Value, ...] = ()  # of an enum or a boolean
    parts: tuple[str, ...] = ()  # names of an object's fields

    def value(self, r: Random, words: Lexicon) -> Value:
        if self.parts:
            fields = {name: (values.integer if i else values.word)(r, words) for i, name in enumerate(self.parts)}
            text = ", ".join(f"{name} {field.text}" for name, field in fields.items())
            return Value({name: field.json for name, field in fields.items()}, text)
        return r.choice(self.choices) if self.choices else self.slot.make(r, words)


_OF = ("{p} of the {n}", "The {p}", "The {p} of the {n}", "{p}", "{p} to use")

SLOTS = (
    Slot("place", "string", ("city", "town", "location", "place", "area", "city name", "region", "venue", "station"),
         ("Name of the {p}", "The {p}", "The {p} to look at", "{p} name", "{p} for the {n}", "Where the {n} is"),
         values.place, ("in {v}", "in {v}", "near {v}"), ("for {v}", "at {v}"), 2.2),
    Slot("country", "string", ("country", "nation", "state", "market"), ("Name of the {p}", "The {p}"),
         values.country, ("in {v}",), ("for {v}",), 0.5),
    Slot("person", "string",
         ("name", "person", "user", "customer", "owner", "author", "guest", "patient", "employee", "friend", "player",
          "member", "client", "artist", "student", "driver", "contact", "full name", "user name", "teacher", "assignee"),
         ("Name of the {p}", "The {p}", "Who the {n} is for", "{p} of the {n}", "Full name"),
         values.person, ("for {v}",), ("of {v}", "to {v}"), 1.8),
    Slot("company", "string", ("company", "vendor", "brand", "supplier", "store", "shop", "airline", "employer"),
         ("Name of the {p}", "The {p}"), values.company, (), ("for {v}", "of {v}", "from {v}", "at {v}"), 0.6),
    Slot("date", "string", ("date", "day", "due date", "deadline", "start date", "delivery date", "check in"),
         ("The {p}", "{p} of the {n}", "Date, for example 2024-01-31", "When", "{p} in ISO format"),
         values.date, ("on {v}", "on {v}", "for {v}"), (), 1.3),
    Slot("time", "string", ("time", "start time", "hour", "pickup time", "clock"),
         ("The {p}", "{p} of the {n}", "Time of day", "When to do it"), values.clock, ("at {v}",), (), 0.8),
    Slot("email", "string", ("email", "email address", "recipient", "sender", "contact email", "to"),
         ("The {p}", "Email address", "{p} for the {n}", "Address of the {p}"),
         values.email, ("to {v}", "using {v}"), (), 0.5),
    Slot("id", "string", ("id", "{n} id", "code", "reference", "order id", "user id", "key", "serial number", "token",
                          "ticket id", "account number", "tracking number", "sku"),
         ("The {p}", "{p} of the {n}", "Unique identifier", "Identifier of the {n}"),
         values.identifier, (), ("{v}", "with id {v}", "number {v}", "for {v}"), 1.6),
    Slot("thing", "string", ("item", "product", "object", "topic", "subject", "category", "keyword", "material", "theme"),
         _OF, values.thing, (), ("for {v}", "about {v}", "of {v}"), 1.2),
    Slot("food", "string", ("dish", "meal", "food", "ingredient", "drink", "menu item"), _OF, values.food,
         (), ("for {v}", "with {v}", "of {v}"), 0.5),
    Slot("language", "string", ("language", "target language", "locale", "source language"), _OF, values.language,
         ("in {v}",), (), 0.4),
    Slot("title", "string", ("title", "headline", "song", "book", "movie", "track", "playlist", "project", "event"),
         ("The {p}", "Title of the {n}", "{p} name"), values.title,
         ('titled "{v}"', 'called "{v}"', "called {v}", "named '{v}'", 'with the title "{v}"'), ('"{v}"', "'{v}'"), 1.0),
    Slot("text", "string", ("message", "text", "content", "body", "note", "comment", "description", "caption"),
         ("The {p}", "{p} of the {n}", "Text to use", "What to say"), values.sentence,
         ('saying "{v}"', 'that says "{v}"', "with the words '{v}'", 'with the {p} "{v}"'), ('"{v}"', ': "{v}"'), 0.8),
    Slot("query", "string", ("query", "search term", "keywords", "phrase", "search text"),
         ("What to search for", "The {p}", "Search words"), values.query,
         ('matching "{v}"', "matching '{v}'"), ('for "{v}"', "about {v}", 'with "{v}"'), 0.6),
    Slot("file", "string", ("file", "path", "file name", "filename", "source", "target file", "document"),
         ("The {p}", "Path of the {p}", "Name of the {p}"), values.file_name, (), ("{v}", "from {v}", "in {v}"), 0.6),
    Slot("count", "integer", ("limit", "count", "quantity", "max results", "number", "size", "amount", "page", "level"),
         ("How many", "The {p}", "Number of results", "{p} of the {n}"), values.small_integer, (), (), 0.8),
    Slot("people", "integer", ("guests", "people", "adults", "party size", "seats", "passengers", "players"),
         ("Number of {p}", "How many {p}", "The {p}"), values.small_integer, ("for {v} people", "for {v}"), (), 0.4),
    Slot("minutes", "integer", ("minutes", "duration minutes", "duration in minutes"),
         ("How many minutes", "Duration in minutes", "The {p}"), values.small_integer, ("for {v} minutes",), (), 0.3),
    Slot("days", "integer", ("days", "number of days", "nights", "days ahead"),
         ("How many days", "Number of days", "The {p}"), values.small_integer, ("for {v} days", "for the next {v} days"),
         (), 0.3),
    Slot("year", "integer", ("year", "start year", "release year"), ("The {p}", "{p} of the {n}"), values.year,
         ("from {v}", "in {v}", "of {v}"), (), 0.3),
    Slot("integer", "integer", ("width", "height", "age", "port", "threshold", "weight", "radius", "score", "a", "b", "x",
                                "y", "n", "index", "offset", "rank", "speed", "volume"),
         _OF, values.integer, (), ("of {v}", "{v}", "for {v}"), 1.0),
    Slot("money", "number", ("price", "budget", "amount", "cost", "total", "max price", "salary", "fee", "balance"),
         ("The {p}", "{p} in euros", "{p} of the {n}"), values.money, (), ("of {v}", "for {v}"), 0.6),
    Slot("number", "number", ("rate", "temperature", "distance", "ratio", "latitude", "longitude", "length", "factor",
                              "percentage", "weight", "mass", "angle", "value"),
         _OF, values.decimal, (), ("of {v}", "{v}", "for {v}"), 0.9),
    Slot("noun", "string", (), _OF, values.word, (), ("for {v}", "{v}", "with {v}", "of {v}"), 1.6),
    Slot("proper", "string", (), _OF, values.proper, (), ("for {v}", "{v}", "of {v}", "from {v}"), 1.2),
    Slot("people list", "array", ("names", "guests", "attendees", "members", "users", "players", "participants"),
         ("List of {p}", "The {p}", "{p} of the {n}"), values.several(values.person), (), ("for {v}", "with {v}"), 0.4),
    Slot("list", "array", ("items", "tags", "keywords", "products", "topics", "labels", "ingredients", "files"),
         ("List of {p}", "The {p}", "{p} of the {n}"), values.several(values.word), (), ("for {v}", "with {v}"), 0.4),
    Slot("number list", "array", ("numbers", "values", "scores", "prices", "data", "readings"),
         ("List of {p}", "The {p}"), values.several(values.integer), (), ("of {v}", "for {v}"), 0.3),
    Slot("enum", "string", ("unit", "mode", "format", "priority", "status", "type", "order", "size", "category", "color",
                            "style", "level", "genre"), _OF, values.word, (), (), 1.3),
    Slot("boolean", "boolean", ("verbose", "urgent", "notify", "public", "recursive", "include tax", "express", "dry run",
                                "repeat", "private", "overwrite", "gift wrap", "round trip", "archived", "silent"),
         ("Whether to use {p}", "{p} or not", "True for {p}", "Whether it is {p}"), values.word, (), (), 0.8),
    Slot("object", "object", ("options", "settings", "details", "filter", "config"), _OF, values.word, (), (), 0.25),
)  # fmt: skip
_WEIGHTS = [slot.weight for slot in SLOTS]

CHOICES = (
    ("celsius", "fahrenheit"), ("metric", "imperial"), ("low", "medium", "high"), ("small", "medium", "large"),
    ("asc", "desc"), ("open", "closed", "pending"), ("json", "csv", "xml"), ("daily", "weekly", "monthly"),
    ("economy", "business", "first"), ("credit", "debit", "cash"), ("car", "train", "bus", "bike"), ("on", "off"),
    ("pdf", "html", "text"), ("morning", "noon", "evening"), ("km", "miles"), ("kg", "lb"), ("single", "double", "suite"),
    ("red", "green", "blue"), ("pop", "rock", "jazz", "classical"), ("indoor", "outdoor"), ("hot", "cold", "iced"),
    ("mild", "spicy"), ("left", "right"), ("draft", "final"), ("public", "private"), ("male", "female"),
    ("standard", "express", "overnight"), ("buy", "sell"), ("USD", "EUR", "GBP", "JPY"), ("paperback", "hardcover"),
)  # fmt: skip


def _label(r: Random, words: Lexicon, slot: Slot, about: str) -> str:
    """A name that belongs to the split: the slot's own where it does, else with a noun before it."""
    if slot.labels and r.random() < 0.75:
        label = r.choice(slot.labels).replace("{n}", about)
        if words.split == "heldout" and any(map(words.is_new, label.split())):
            return label
        if words.split == "train" and all(side(word) == "train" for word in label.split()):
            return label
        if words.split == "train":  # the words of this label are reserved for evaluation
            return words.singular(r)
        return f"{words.noun(r)} {r.choice(slot.labels).replace('{n} ', '').split()[-1]}"
    noun = words.singular(r, 0.3)
    if not slot.labels or r.random() < 0.5:
        return f"{words.noun(r, 0.3)} {noun}" if r.random() < 0.25 else noun
    tail = r.choice(slot.labels).split()[-1]
    return f"{noun} {tail}" if words.split == "heldout" or side(tail) == "train" else noun


def _choices(r: Random, words: Lexicon) -> tuple[str, ...]:
    if words.split == "train" and r.random() < 0.5:
        return r.choice(CHOICES)
    return tuple(dict.fromkeys(words.noun(r, 0.4) for _ in range(r.randint(2, 5))))


def make_parameter(r: Random, words: Lexicon, about: str, style: str, required: bool, terse: float) -> Parameter:
    """`about`: what the function is about, in words; `terse`: how often the description is left out."""
    slot = r.choices(SLOTS, _WEIGHTS)[0]
    label = _label(r, words, slot, about)
    schema: dict[str, Any] = {"type": slot.type}
    choices: tuple[Value, ...] = ()
    parts: tuple[str, ...] = ()
    if slot.type == "array":
        schema["items"] = {"type": "integer" if slot.kind == "number list" else "string"}
    elif slot.kind == "enum":
        options = _choices(r, words)
        schema["enum"] = list(options)
        choices = tuple(Value(option, option) for option in options)
    elif slot.kind == "boolean":
        choices = (Value(True, "true"), Value(False, "false"))
    elif slot.kind == "object":
        parts = (words.invented(r), words.noun(r)) if r.random() < 0.7 else (words.noun(r),)
        schema["properties"] = {name: {"type": "integer" if i else "string"} for i, name in enumerate(parts)}
    if r.random() >= terse:
        hint = r.choice(slot.hints).replace("{p}", label).replace("{n}", about)
        if r.random() < 0.07 and not choices and slot.type == "string":
            hint += f", e.g. {slot.make(r, words).text}"
        elif r.random() < 0.06 and not required:
            hint += r.choice((" (optional)", ", optional", ". Optional."))
        schema["description"] = hint[:1].upper() + hint[1:] if r.random() < 0.85 else hint
    if r.random() < 0.3:  # some clients send their keys sorted or the description first
        schema = dict(sorted(schema.items()))
    return Parameter(spelled(label, style), label, slot, required, schema, choices, parts)
