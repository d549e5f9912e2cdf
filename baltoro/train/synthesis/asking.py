"""How people ask for what a blueprint's function does: frames around its wordings, the values they mention, and results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random

from baltoro.train.synthesis import natural, values
from baltoro.train.synthesis.api import ApiFunction, ability
from baltoro.train.synthesis.blueprints import Wording
from baltoro.train.synthesis.kinds import SLOT
from baltoro.train.synthesis.natural import Mentioned
from baltoro.train.synthesis.values import Value
from baltoro.train.synthesis.words import Lexicon

_QUESTIONS = (
    "What is {t}?", "What is {t}?", "What's {t}?", "Can you tell me {t}?", "Could you tell me {t}?", "Do you know {t}?", "Tell me {t}.", "Give me {t}.",
    "I need {t}.", "I'd like to know {t}.", "I want to know {t}.", "Please find {t}.", "Find {t}.", "Get {t}.", "Please get me {t}.", "Show me {t}.",
    "Could you look up {t}?", "Look up {t}, please.", "I'm looking for {t}.", "Find out {t}.", "{t}", "{t}?", "Let me know {t}.", "Help me find {t}.",
    "Would you check {t} for me?", "I was wondering about {t}.", "I have to know {t} by tonight.", "My boss asked me for {t}.", "Can I have {t}?", "Fetch {t}",
    "How about {t}?", "I need help finding {t}.", "Could you please provide {t}?", "Retrieve {t}.", "I'm curious about {t}.", "please tell me {t}",
)  # fmt: skip
_SUMS = (
    "Calculate {t}.", "Calculate {t}.", "Compute {t}.", "What is {t}?", "What's {t}?", "Find {t}.", "Determine {t}.", "Work out {t}, please.", "Can you calculate {t}?",
    "Could you compute {t} for me?", "I need {t}.", "Help me calculate {t}.", "I want to know {t}.", "How do I get {t}? Just calculate it.", "Please calculate {t}",
    "For my homework I need {t}.", "Tell me {t}.", "{t}?", "Figure out {t}.", "Please figure out {t}.",
)  # fmt: skip
_ASKED_FOR = ("find", "get", "look up", "tell me", "find out", "show me", "check")
_SUMMED = ("calculate", "compute", "work out", "find", "determine")
_ORDERS = (
    *natural.ORDERS, *natural.WISHES, "I would like to {c}.", "Could you please {c}?", "I was hoping you could {c}.", "Is it possible to {c}?", "We'd like to {c}.",
    "My manager wants me to {c}.", "Kindly {c}.", "Can I ask you to {c}?", "I'm trying to {c}.", "Would it be possible to {c}?", "Let's {c}.", "Time to {c}.", "Assist me to {c}.",
    "please {c}", "Make sure to {c}.", "It would help me a lot if you could {c}.", "You have to {c}.", "Would you be so kind to {c}?",
)  # fmt: skip
_BEFORE = (
    "Hi! ", "Hello. ", "Hey there, ", "Good morning. ", "I'm back. ", "Quick one: ", "One more thing: ", "Okay, ", "Sorry to bother you. ", "I need your help. ",
    "I'm preparing a presentation. ", "We talked about this yesterday. ", "I'm writing a report. ", "My friend {w} told me to ask you. ", "This is for a school project. ",
    "I'm planning something for my family. ", "I couldn't find it on the website. ", "It is urgent. ", "I'm new here. ", "I don't have much time. ", "{w} and I had an argument about it. ",
    "We are getting ready for next week. ", "I've been thinking about it for days. ", "I lost my notes. ", "Before I forget: ", "My phone is dead, so I'm asking you. ", "I have a question. ",
    "As an assistant you can do this. ", "I promised {w} to take care of it. ", "Thank you for your help so far. ",
)  # fmt: skip
_AFTER = (
    " Thanks!",
    " Thank you.",
    " Thanks a lot.",
    " Please be quick.",
    " I appreciate it.",
    " It's important.",
    " No hurry.",
    " That's all.",
    " Please use the tool.",
    " I'd be grateful.",
)


def ask(r: Random, words: Lexicon, function: ApiFunction, *, compact: bool = False) -> Mentioned:
    """One request; compact: by a clause that can be joined with others."""
    wording = choose_wording(r, function, compact)
    made = make(r, words, function, spoken(r, function, wording))
    text = filled(r, wording, made)
    clause, request = framed(r, words, function, wording, text)
    return mentioned(function, made, request, clause)


def choose_wording(r: Random, function: ApiFunction, compact: bool) -> Wording:
    fitting = [
        w
        for w in function.blueprint.wordings
        if w.needs <= function.kinds.keys() and not (compact and w.form == "whole")
    ]
    return r.choice(fitting)


def spoken(r: Random, function: ApiFunction, wording: Wording) -> list[str]:
    """The slots that a request mentions: all that the wording needs, and some of the others that are declared."""
    share = r.choice((0.0, 0.4, 0.4, 0.8))
    optional = [s for s in wording.segments if s.optional and s.keys <= function.kinds.keys() and r.random() < share]
    return [key for key in function.kinds if key in wording.needs or any(key in segment.keys for segment in optional)]


def make(r: Random, words: Lexicon, function: ApiFunction, keys: list[str]) -> dict[str, Value]:
    """Values, no two of which read the same where they are of one kind: nobody flies from Oslo to Oslo."""
    while True:
        made = {key: function.kinds[key].make(r, words) for key in keys}
        said = [(_family(function.blueprint.slots[key].spec), value.text) for key, value in made.items()]
        if len({pair for pair in said if pair[0]}) == len([pair for pair in said if pair[0]]):
            return made


def _family(spec: str) -> str:
    """What may not be said twice: two places, two members of one enum. Numbers may."""
    name = spec.split()[0]
    return spec.partition(";")[0] if "/" in spec else "" if name in ("int", "num", "coord", "list", "obj") else name


def filled(r: Random, wording: Wording, made: Mapping[str, Value]) -> str:
    kept = [segment for segment in wording.segments if segment.keys <= made.keys()]
    template = "".join(segment.text for segment in kept)
    if r.random() < 0.3:
        template = re.sub(r'"(\{\w+\})"', r"'\1'", template)
    elif r.random() < 0.1:
        template = re.sub(r'"(\{\w+\})"', r"\1", template)
    return fill(template, made)


def fill(template: str, made: Mapping[str, Value]) -> str:
    text = SLOT.sub(lambda found: made[found[1]].text, template)
    text = re.sub(r"\b(on|On) (today|tomorrow|tonight|next \w+)\b", r"\2", text)
    text = re.sub(r"\ba ((?:[aeiou]|8|11\b|18\b)\w*)", _an, text)
    return re.sub(r" {2,}", " ", text)


def _an(found: re.Match[str]) -> str:
    return found[0] if found[1].lower().startswith(("uni", "use", "eur", "one", "uti")) else f"an {found[1]}"


def framed(r: Random, words: Lexicon, function: ApiFunction, wording: Wording, text: str) -> tuple[str, str]:
    """A clause, and a whole message around the filled wording."""
    sums = function.blueprint.verb == "calculate"
    clause = text
    if wording.form == "thing":
        clause = f"{r.choice(_SUMMED if sums else _ASKED_FOR)} {text}"
        asked = r.choice(_SUMS if sums else _QUESTIONS)
        if text.startswith(("whether ", "how ")) and asked.startswith(
            (
                "What",
                "Give",
                "I need {",
                "Please f",
                "Find {",
                "Get",
                "{t}",
                "How",
                "Please get",
                "Show",
                "I'm looking",
                "Can I",
                "Fetch",
                "Retrieve",
                "Help",
                "Determine",
            )
        ):
            asked = r.choice(
                (
                    "Can you tell me {t}?",
                    "Tell me {t}.",
                    "I'd like to know {t}.",
                    "Check {t}.",
                    "I want to know {t}, please.",
                )
            )
        if _PLURAL.match(text):
            asked = asked.replace("What is", "What are").replace("What's", "What are")
        said = asked.replace("{t}", text)
    elif wording.form == "order":
        orders = (
            tuple(
                o
                for o in _ORDERS
                if not o.startswith(
                    ("I want", "I'd like to", "We need", "I have", "I would like", "I'm trying", "We'd")
                )
            )
            if " me " in f" {text} "
            else _ORDERS
        )
        said = r.choice(orders).replace("{c}", text)
    else:
        said = text
    if not said.startswith(("{", "/", "~")) and r.random() < 0.9 and not text.startswith(said[:12]):
        said = said[:1].upper() + said[1:]
    elif wording.form == "whole" and r.random() < 0.08:
        said = said[:1].lower() + said[1:]
    elif r.random() < 0.8:
        said = said[:1].upper() + said[1:]
    if r.random() < 0.14:
        before = r.choice(_BEFORE).replace("{w}", r.choice(words.people))
        said = before + (
            said[:1].lower() + said[1:]
            if before.endswith((", ", ": ")) and not said.startswith(("I ", "I'")) and said[:1].isascii()
            else said
        )
    if r.random() < 0.06:
        said = (said if said[-1] in ".?!" else said + ".") + r.choice(_AFTER)
    if r.random() < 0.02:
        said = _mistyped(r, said)
    return clause, said


_PLURAL = re.compile(r"the ([a-z-]+ )*?[a-z]+[^su]s (of|in|from|for|by|with|at|near|between|visible|about|to)\b")


def _mistyped(r: Random, text: str) -> str:
    """One of the first three words, which hold no value, with two letters swapped."""
    head = text.split(" ")
    for position in range(min(3, len(head))):
        word = head[position]
        if len(word) > 4 and word.isalpha() and word.islower():
            at = r.randint(1, len(word) - 3)
            head[position] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            break
    return " ".join(head)


def mentioned(function: ApiFunction, made: Mapping[str, Value], request: str, clause: str) -> Mentioned:
    texts = {key: value.text for key, value in made.items()}
    return Mentioned(function.arguments({key: value.json for key, value in made.items()}), texts, request, clause)


def unsaid(r: Random, function: ApiFunction) -> tuple[str, str, list[str]] | None:
    """A request that leaves out what the function requires, the question back, and what that question names."""
    missing = [function.labels[slot.key] for slot in function.blueprint.slots.values() if slot.required]
    if not missing:
        return None
    wanted = ability(function.blueprint)
    request = r.choice(_ORDERS).replace("{c}", wanted)
    if wanted.startswith("look up") and r.random() < 0.5:
        request = r.choice(_QUESTIONS[2:9]).replace("{t}", function.blueprint.about)
    listed = values.listing([f"the {label}" for label in missing])
    answer = r.choice((
        f"Please tell me {listed}.", f"I need {listed} for that.", f"Sure. What {'is' if len(missing) == 1 else 'are'} {listed}?", f"Could you give me {listed}?",
        f"To do that I need to know {listed}.", f"Which values do you want for {listed}?" if len(missing) > 1 else f"What is {listed}?",
    ))  # fmt: skip
    return request[:1].upper() + request[1:], answer, missing
