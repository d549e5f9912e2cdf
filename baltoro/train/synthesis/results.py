"""What tools answer, and the sentence that tells it to the user."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from baltoro.train.synthesis import answers, natural, values
from baltoro.train.synthesis.api import ApiFunction
from baltoro.train.synthesis.functions import Function
from baltoro.train.synthesis.natural import NaturalFunction
from baltoro.train.synthesis.requests import Intent
from baltoro.train.synthesis.words import Lexicon

_STATES = (
    "Sunny", "Cloudy", "rainy", "windy", "ready", "delayed", "on time", "available", "sold out", "open", "closed", "active",
    "pending", "shipped", "confirmed", "in progress", "done", "empty", "full", "busy", "free", "high", "low", "normal",
)  # fmt: skip
_REASONS = (
    "not found", "timeout", "permission denied", "invalid {p}", "unknown {p}", "{p} not found", "service unavailable",
    "no {a} found", "too many requests", "{p} is missing", "the {a} does not exist", "internal error", "not allowed",
)  # fmt: skip


def result(r: Random, words: Lexicon, intent: Intent) -> tuple[str, str, list[str]]:
    """The tool's message, the sentence for the user, and the values that the sentence must mention."""
    if r.random() < 0.1:
        return _failure(r, intent)
    function = intent.function
    if isinstance(function, ApiFunction):
        return answers.result(r, words, function, intent.texts)
    if isinstance(function, NaturalFunction):
        return natural.result(r, words, function, intent.arguments, intent.texts)
    if function.verb.past and r.random() < 0.75:
        return _done(r, words, function)
    return _found(r, words, function, intent)


def _value(r: Random, words: Lexicon) -> Any:
    kind = r.random()
    if kind < 0.2:
        return r.choice(_STATES)
    if kind < 0.3:
        return words.noun(r, 0.5)
    maker = r.choice((
        values.integer, values.decimal, values.decimal, values.small_integer, values.identifier, values.clock, values.date,
        values.person, values.place, values.title, values.thing, values.proper,
    ))  # fmt: skip
    return maker(r, words).json


_NAMEABLE = frozenset({"person", "thing", "noun", "proper", "company", "id", "food"})


def _subject(r: Random, function: Function, intent: Intent) -> str:
    """The {about}, with one argument where that reads well: "the lantern price in Oslo"."""
    about = f"the {function.about}"
    for parameter in function.parameters:
        text = intent.texts.get(parameter.name)
        if text is None or r.random() < 0.3:
            continue
        if parameter.slot.kind in ("place", "country"):
            return f"{about} in {text}"
        if parameter.slot.kind in _NAMEABLE:
            return f"{about} for {text}"
    return about


def _found(r: Random, words: Lexicon, function: Function, intent: Intent) -> tuple[str, str, list[str]]:
    subject = _subject(r, function, intent)
    style = r.random()
    if style < 0.12:  # a bare value
        value = _value(r, words)
        told = str(value)
        content = told if r.random() < 0.6 else json.dumps({"result": value}, ensure_ascii=False)
        return content, _capital(f"{subject if r.random() < 0.9 else 'it'} is {told}."), [told]
    if style < 0.26:  # a list
        maker = r.choice((values.person, values.title, values.proper, values.word, values.place))
        items = list(dict.fromkeys(maker(r, words).json for _ in range(r.randint(1, 4))))
        key = r.choice(("results", "items", function.about.split()[-1], "matches"))
        data: Any = items if r.random() < 0.3 else {key: items}
        told = values.listing(items)
        sentence = r.choice((f"I found {told}.", f"I found these: {told}.", f"Here is {subject}: {told}."))
        return json.dumps(data, ensure_ascii=False), sentence, items
    head = function.about.split()[-1]
    if style < 0.6:  # one field
        value = _value(r, words)
        key = head if r.random() < 0.6 else words.singular(r)
        sentence = f"{subject} is {value}." if key == head else f"the {key} of {subject} is {value}."
        fields: dict[str, Any] = {key: value}
    else:  # two or three fields, told in their order
        fields = {words.singular(r): _value(r, words) for _ in range(r.choice((2, 2, 3)))}
        pairs = [f"{key} is {value}" if i else f"the {key} is {value}" for i, (key, value) in enumerate(fields.items())]
        sentence = f"for {subject}, {values.listing(pairs)}."
    told_values = [str(value) for value in fields.values()]
    if r.random() < 0.25 and intent.texts:  # many interfaces echo the arguments
        name = r.choice(list(intent.texts))
        fields = {name: intent.arguments[name], **fields}
    return json.dumps(fields, ensure_ascii=False), _capital(sentence), told_values


def _done(r: Random, words: Lexicon, function: Function) -> tuple[str, str, list[str]]:
    past, about = function.verb.past, function.about
    reference = r.random() < 0.5
    number = values.identifier(r, words).text
    key = r.choice(("id", "number", "reference", "code", "confirmation"))
    fields: dict[str, Any] = r.choice((
        {"status": "success"}, {"status": "ok"}, {"success": True}, {"result": "done"}, {"ok": True}, {"status": past},
    ))  # fmt: skip
    if reference:
        fields = {**fields, key: number}
    sentence = r.choice((
        f"Done. The {about} is {past}.", f"I have {past} the {about}.", f"The {about} has been {past}.", f"The {about} is {past}.",
        f"All right, the {about} is {past}.", f"It is done: the {about} is {past}.",
    ))  # fmt: skip
    if reference:
        sentence += f" The {key} is {number}."
    content = json.dumps(fields, ensure_ascii=False)
    if not reference and r.random() < 0.2:
        content = r.choice(("ok", "done", "success", "true"))
    return content, sentence, [number] if reference else [about]


def _failure(r: Random, intent: Intent) -> tuple[str, str, list[str]]:
    function = intent.function
    if isinstance(function, NaturalFunction):
        label, about = r.choice(list(function.declared.values())), "result"
    elif isinstance(function, ApiFunction):
        label, about = r.choice([*function.labels.values(), "value"]), function.blueprint.topic
    else:
        about = function.about
        label = r.choice(function.parameters).label if function.parameters else about
    reason = r.choice(_REASONS).replace("{p}", label).replace("{a}", about)
    content = r.choice((
        json.dumps({"error": reason}), json.dumps({"status": "error", "message": reason}), f"Error: {reason}",
        json.dumps({"success": False, "reason": reason}),
    ))  # fmt: skip
    sentence = r.choice((
        f"Sorry, that did not work: {reason}.", f"I am sorry, the tool reports an error: {reason}.", f"That failed: {reason}.",
        f"I could not do that: {reason}.", f"Unfortunately there was a problem: {reason}.",
    ))  # fmt: skip
    return content, sentence, [reason]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
