"""What functions of blueprints return, and the sentence that tells it to the user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from baltoro.train.synthesis import values
from baltoro.train.synthesis.api import ApiFunction
from baltoro.train.synthesis.kinds import SLOT
from baltoro.train.synthesis.words import Lexicon


def result(r: Random, words: Lexicon, function: ApiFunction, texts: Mapping[str, str]) -> tuple[str, str, list[str]]:
    """The tool's message, the sentence for the user, and what the sentence must mention."""
    blueprint = function.blueprint
    if blueprint.does and blueprint.about.split()[0] not in (
        "find",
        "search",
        "compare",
        "convert",
        "define",
        "estimate",
        "calculate",
    ):
        number = values.identifier(r, words).text
        key = r.choice(("id", "confirmation", "reference", "number", "booking_id", "request_id"))
        content = json.dumps({"status": r.choice(("success", "ok", "confirmed", "done")), key: number})
        return (
            content,
            r.choice(
                (
                    f"Done. The {key.replace('_', ' ')} is {number}.",
                    f"That is done, with the {key.replace('_', ' ')} {number}.",
                    f"All set. Your {key.replace('_', ' ')} is {number}.",
                )
            ),
            [number],
        )
    subject = _subject(r, function, texts)
    if blueprint.verb == "calculate" or blueprint.section == "formulas":
        value: Any = round(r.uniform(0, 10 ** r.randint(1, 5)), r.choice((0, 1, 2, 2, 3)))
        told = str(value)
        content = r.choice(
            (
                json.dumps({"result": value}),
                told,
                json.dumps({blueprint.topic.split()[-1]: value}),
                json.dumps({"value": value, "status": "ok"}),
            )
        )
        return content, r.choice((f"{subject} is {told}.", f"It is {told}.", f"The result is {told}.")), [told]
    fields = {words.singular(r): _value(r, words) for _ in range(r.choice((1, 1, 2, 2, 3)))}
    told_values = [str(value) for value in fields.values()]
    pairs = values.listing([f"the {key} is {value}" for key, value in fields.items()])
    shape = r.random()
    data: Any = (
        fields
        if shape < 0.6
        else {"data": fields}
        if shape < 0.75
        else [fields]
        if shape < 0.85
        else {"results": [fields], "count": 1}
    )
    sentence = r.choice(
        (
            f"For {subject[:1].lower() + subject[1:]}, {pairs}.",
            f"Here is what I found: {pairs}.",
            f"I found this: {pairs}.",
        )
    )
    return json.dumps(data, ensure_ascii=False), sentence, told_values


def _subject(r: Random, function: ApiFunction, texts: Mapping[str, str]) -> str:
    things = [w for w in function.blueprint.wordings if w.form == "thing" and w.needs <= texts.keys()]
    if things and r.random() < 0.6:
        text = "".join(s.text for s in things[0].segments if not s.optional)
        text = SLOT.sub(lambda found: texts[found[1]], text).strip()
    else:
        text = f"the {function.blueprint.topic}"
    return text[:1].upper() + text[1:]


def _value(r: Random, words: Lexicon) -> Any:
    maker = r.choice((
        values.integer, values.decimal, values.small_integer, values.identifier, values.clock, values.date, values.person, values.place, values.title,
        values.thing, values.proper,
    ))  # fmt: skip
    return maker(r, words).json
