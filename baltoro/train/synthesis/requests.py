"""What a user says so that exactly one call answers it.

A request names the function's verb and thing, and mentions every argument verbatim: by its own phrase
where no other parameter could be meant ("in Oslo"), else with the parameter's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from baltoro.train.synthesis import asking, natural
from baltoro.train.synthesis.api import ApiFunction
from baltoro.train.synthesis.functions import ASKING, Declared, Function, article
from baltoro.train.synthesis.natural import Mentioned, NaturalFunction
from baltoro.train.synthesis.parameters import Parameter
from baltoro.train.synthesis.values import Value
from baltoro.train.synthesis.words import Lexicon

_ASKING = frozenset(verb.base for verb in ASKING)

_INLINE = (
    "with {p} {v}", "with the {p} {v}", "with {p} set to {v}", "where the {p} is {v}", "using {v} as the {p}",
    "with {v} as {p}", "with a {p} of {v}", "{p} {v}", "({p}: {v})", "with {p} = {v}", "for {p} {v}", "and {v} as the {p}",
)  # fmt: skip
_AFTER = (
    "The {p} is {v}.", "Use {v} as the {p}.", "{P}: {v}.", "The {p} should be {v}.", "For the {p} use {v}.",
    "Take {v} for the {p}.", "Set the {p} to {v}.", "{P} = {v}.", "Make sure the {p} is {v}.", "I think the {p} is {v}.",
)  # fmt: skip
_BEFORE = ("With {v} as the {p}, ", "Given the {p} {v}, ", "The {p} is {v}. ", "My {p} is {v}. ", "{P}: {v}. ")
_TRUE = (
    "with {p} on",
    "with {p} enabled",
    "with {p} set to true",
    "with {p}",
    "({p}: true)",
    "{p}=true",
    "with {p} = yes",
)
_FALSE = (
    "with {p} off",
    "with {p} disabled",
    "with {p} set to false",
    "without {p}",
    "({p}: false)",
    "{p}=false",
    "with {p} = no",
)
_QUOTED_KINDS = frozenset({"thing", "title", "text", "query", "noun", "enum"})
_NAMES = frozenset({"place", "country", "person", "company", "proper", "language", "title", "food"})

_ORDERS = (
    "{c}.", "{c}.", "{c}", "Please {c}.", "Please {c}.", "Could you {c}?", "Can you {c}?", "Can you please {c}?", "Would you {c}?",
    "I want to {c}.", "I need to {c}.", "I'd like to {c}.", "I want you to {c}.", "I need you to {c}.", "Go ahead and {c}.",
    "Now {c}.", "Hey, {c}.", "Hi! {c}.", "Hello, {c}.", "{c}, please.", "{c} please", "Help me {c}.", "I have to {c}.",
    "My boss wants me to {c}.", "It would be great if you could {c}.", "Use the tool to {c}.", "{c}. Thanks!", "Let's {c}.",
    "Can you help me {c}?", "We should {c}.", "Be so kind and {c}.", "Quick, {c}!", "I was asked to {c}.", "Next, {c}.",
    "Time to {c}.", "Would you mind helping me to {c}?", "Try to {c}.", "{c}, will you?", "I would like you to {c}.", "ok, {c}",
)  # fmt: skip
# "I need to tell me" is what nobody says.
_ORDERS_TO_YOU = tuple(o for o in _ORDERS if " to {c}" not in o or "you to {c}" in o)
_ASKS = (
    "{q}?", "{q}?", "{q}?", "{q}", "Tell me, {q}?", "Hi, {q}?", "Quick question: {q}?", "{q}? Use the tool to check.", "So {q}?",
    "Hello! {q}?", "I wonder, {q}?", "{q} please?", "{q}? Thanks.", "Excuse me, {q}?", "{q}? I need to know.", "And {q}?",
    "My friend asks: {q}?", "{q}? Please check.", "{q} now?",
)  # fmt: skip
_NOISE = (
    "I slept badly last night. ", "It is late and I am tired. ", "The sun is out again. ", "We had a long meeting. ",
    "I am back from lunch. ", "Sorry for the trouble. ", "This is my first time here. ", "I have to leave soon. ",
    "My phone is almost empty. ", "Good morning! ", "Good evening. ", "Thanks for the help so far. ", "One more thing. ",
    "I am in a hurry. ", "As I said before, I need your help. ", "We talked about it yesterday. ", "Listen. ", "All right. ",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Intent:
    """A call that somebody wants, and the words that say so."""

    function: Declared
    arguments: dict[str, Any]  # in the order of the schema
    texts: dict[str, str]  # parameter, or key of an everyday domain -> as the request writes it
    request: str  # a whole message
    clause: str  # "book a table for Anna", to be joined with others; says everything only if compact

    @property
    def arguments_json(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


def choose_arguments(r: Random, words: Lexicon, function: Function) -> dict[str, Value]:
    return {p.name: p.value(r, words) for p in function.parameters if p.required or r.random() < 0.5}


def make_intent(
    r: Random, words: Lexicon, function: Declared, declared: Sequence[Declared], *, compact: bool = False
) -> Intent:
    if isinstance(function, ApiFunction):
        return mentioned_intent(function, asking.ask(r, words, function, compact=compact))
    if isinstance(function, NaturalFunction):
        intent = mentioned_intent(function, natural.mention(r, words, function, compact=compact))
        noise = r.choice(_NOISE) if r.random() < 0.06 else ""
        return replace(intent, request=noise + intent.request)
    return phrase(r, function, choose_arguments(r, words, function), declared, compact=compact)


def mentioned_intent(function: NaturalFunction | ApiFunction, said: Mentioned) -> Intent:
    return Intent(function, said.arguments, said.texts, said.request, said.clause)


def phrase(
    r: Random, function: Function, chosen: dict[str, Value], declared: Sequence[Declared], *, compact: bool = False
) -> Intent:
    """Words for one call of `function`, unmistakable among `declared`; compact: all of them in the clause."""
    inline: list[str] = []
    before, after = "", ""
    texts: dict[str, str] = {}
    mentioned = [p for p in function.parameters if p.name in chosen]
    if r.random() < 0.5:
        r.shuffle(mentioned)
    for parameter in mentioned:
        value = chosen[parameter.name]
        texts[parameter.name] = value.text
        place = 1.0 if compact else r.random()
        text = _quoted(r, parameter, value)
        own = _own_phrases(function, parameter)
        if parameter.slot.kind == "object":
            inline.append(f"with {parameter.label} ({text})")
        elif parameter.slot.kind == "boolean":
            inline.append(r.choice(_TRUE if value.json else _FALSE).replace("{p}", parameter.label))
        elif own and r.random() < 0.75:
            template = r.choice(own)
            if '"' in template or "'" in template:
                text = value.text
            said = template.replace("{p}", parameter.label).replace("{v}", text)
            said = said.replace("on today", "today").replace("on tomorrow", "tomorrow").replace("on tonight", "tonight")
            if place < 0.12 and not before and said.startswith(("in ", "on ", "at ", "for ")):
                before = said[:1].upper() + said[1:] + ", "
            else:
                inline.append(said)
        elif place < 0.1 and not before:
            before = _named(r.choice(_BEFORE), parameter.label, text)
        elif place < 0.25:
            after += " " + _named(r.choice(_AFTER), parameter.label, text)
        else:
            inline.append(_named(r.choice(_INLINE), parameter.label, text))
    arguments = {p.name: chosen[p.name].json for p in function.parameters if p.name in chosen}
    clause, request = _sentence(r, function, declared, inline, before, after)
    return Intent(function, arguments, texts, request, clause)


def _own_phrases(function: Function, parameter: Parameter) -> tuple[str, ...]:
    slot = parameter.slot
    if len(function.parameters) == 1:
        return slot.sure + slot.loose
    others = [p.slot for p in function.parameters if p is not parameter]
    if any(other.kind == slot.kind for other in others):
        return ()
    if slot.kind in _NAMES:
        taken = {phrase for other in others if other.kind in _NAMES for phrase in other.sure}
        return tuple(phrase for phrase in slot.sure if phrase not in taken)
    return slot.sure


def _quoted(r: Random, parameter: Parameter, value: Value) -> str:
    """Values of several common words need quotes, or nobody knows where they end."""
    if not isinstance(value.json, str) or parameter.slot.kind not in _QUOTED_KINDS:
        return value.text
    if " " in value.text or r.random() < 0.15:
        return f'"{value.text}"' if r.random() < 0.7 else f"'{value.text}'"
    return value.text


def _named(template: str, label: str, text: str) -> str:
    return template.replace("{p}", label).replace("{P}", label[:1].upper() + label[1:]).replace("{v}", text)


def _joined(r: Random, head: str, inline: list[str]) -> str:
    inline = [part[4:] if part.startswith("and ") and position == 0 else part for position, part in enumerate(inline)]
    if len(inline) < 2:
        return " ".join([head, *inline])
    style = r.random()
    if style < 0.45:
        return " ".join([head, *inline])
    last = inline[-1] if inline[-1].startswith("and ") else "and " + inline[-1]
    if style < 0.8:
        return f"{head} {', '.join(inline[:-1])} {last}"
    return f"{head} {', '.join(inline)}"


def _sentence(
    r: Random, function: Function, declared: Sequence[Declared], inline: list[str], before: str, after: str
) -> tuple[str, str]:
    shared = any(
        isinstance(other, Function) and other is not function and other.about == function.about for other in declared
    )
    about = function.about
    asked = function.verb.asked[0] if shared or r.random() < 0.5 else r.choice(function.verb.asked)
    determiner = "the" if function.verb.base in _ASKING else r.choice((article(about), "the", article(about)))
    clause = _joined(r, f"{asked} {determiner} {about}" if r.random() < 0.93 else f"{asked} {about}", inline)
    style = r.random()
    if style < 0.06:
        form = r.choice(("use {n}", "call {n}", "run {n}", "use the {n} tool", "call the function {n}"))
        clause = _joined(r, form.replace("{n}", function.name), inline)
        text = r.choice(_ORDERS[:8]).replace("{c}", clause)
    elif function.verb.base in _ASKING and not shared and style < 0.45:
        start = r.choice((
            "what is the {a}", "what is the {a}", "what's the {a}", "do you know the {a}", "can you tell me the {a}",
            "what about the {a}", "how is the {a}", "what's the {a} like",
        ))  # fmt: skip
        question = _joined(r, start.replace("{a}", about), inline)
        text = r.choice(_ASKS).replace("{q}", question)
    else:
        text = r.choice(_ORDERS_TO_YOU if " me " in asked + " " else _ORDERS).replace("{c}", clause)
    if before.endswith(". ") or not before:
        text = text[:1].upper() + text[1:] if r.random() < 0.9 else text
    else:
        text = text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]
    if after and text[-1] not in ".?!":
        text += "."
    noise = r.choice(_NOISE) if r.random() < 0.06 else ""
    whole = noise + before + text + after
    return clause, whole
