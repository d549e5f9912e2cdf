"""Functions of real interfaces, read from blueprints.txt: what each is about, its slots, and how people ask for it.

    == section                         a family; its name may stand before a function's
    verb topic :: about | wording ...  a function; `about` is what its description says
    = thing :: name kind unit; ...     a formula: its wordings are made here; `name?` may be left out
    ... (heldout) :: ...               kept for evaluation whatever its hash says: a held-out everyday topic is like it

A wording is a thing that is asked for ("the price of {item:product}", or after ~), a whole request (after ?), or
else an order ("book {count:int 1 9} seats"). A slot is {key:kind} where it first stands and {key} afterwards; kinds.py
knows the kinds. What stands in [brackets] may be left out, and a slot that stands nowhere else is optional.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

from baltoro.train.synthesis.kinds import SLOT
from baltoro.train.synthesis.split import Split, side
from baltoro.train.synthesis.words import is_plural

Form = Literal["thing", "order", "whole"]


class Segment(NamedTuple):
    text: str  # with {key}
    optional: bool

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(key for key, _ in SLOT.findall(self.text))


class Wording(NamedTuple):
    form: Form
    segments: tuple[Segment, ...]

    @property
    def needs(self) -> frozenset[str]:
        """Slots that it cannot do without."""
        return frozenset[str]().union(*(segment.keys for segment in self.segments if not segment.optional))

    @property
    def keys(self) -> frozenset[str]:
        return frozenset[str]().union(*(segment.keys for segment in self.segments))


class Slot(NamedTuple):
    key: str
    spec: str  # of its kind
    required: bool
    unit: str  # what the wordings say behind it: "kg", or nothing


_ORDER_VERBS = frozenset({
    "activate", "arrange", "arm", "book", "brew", "buy", "cancel", "check", "compare", "compress", "convert", "copy", "count", "create", "crop", "define",
    "donate", "draw", "encode", "enroll", "estimate", "extract", "file", "fill", "find", "format", "forward", "freeze", "generate", "hire", "identify", "install",
    "let", "log", "make", "merge", "move", "navigate", "open", "order", "pay", "pick", "ping", "place", "plan", "play", "post", "put", "rate", "record",
    "register", "remind", "renew", "rent", "replace", "report", "request", "reserve", "resize", "resolve", "restart", "return", "roll", "run", "scale",
    "schedule", "search", "sell", "send", "set", "simulate", "solve", "sort", "split", "start", "submit", "subscribe", "summarize", "switch", "track",
    "train", "transfer", "translate", "transpose", "tune", "turn", "update", "upload", "validate", "water", "add", "analyse", "apply", "assign", "balance",
    "block", "change", "show",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Blueprint:
    verb: str
    topic: str  # in words: "weather alerts"
    section: str
    about: str
    slots: dict[str, Slot]
    wordings: tuple[Wording, ...]
    kept: bool  # for evaluation

    @property
    def split(self) -> Split:
        return "heldout" if self.kept else side(self.topic.replace(" ", ""))

    @property
    def does(self) -> bool:
        """Whether `about` is an order ("book a table"), not a thing ("the price of a share")."""
        return self.about.split()[0] in _ORDER_VERBS

    @property
    def words(self) -> frozenset[str]:
        """What it is about, in single words; `words` of two functions that one request could mean overlap."""
        return frozenset(self.topic.split())


@cache
def blueprints(split: Split) -> tuple[Blueprint, ...]:
    return tuple(blueprint for blueprint in read() if blueprint.split == split)


@cache
def read() -> tuple[Blueprint, ...]:
    text = files("baltoro.train.synthesis").joinpath("blueprints.txt").read_text("utf-8")
    found: list[Blueprint] = []
    section = ""
    for line in text.splitlines():
        kept, line = " (heldout) ::" in line, line.replace(" (heldout) ::", " ::")
        if line.startswith("== "):
            section = line[3:]
        elif line.startswith("= "):
            found.append(_formula(section, line[2:], kept))
        elif line and not line.startswith("#"):
            head, _, rest = line.partition(" :: ")
            about, *wordings = rest.split(" | ")
            thing = about.split()[0] not in {*_ORDER_VERBS, *_DETERMINED}
            found.append(_blueprint(section, head, f"the {about}" if thing else about, wordings, kept))
    return tuple(found)


def _blueprint(section: str, head: str, about: str, wordings: list[str], kept: bool) -> Blueprint:
    verb, _, topic = head.replace("_", "\0").partition(" ")
    specs = {key: spec for wording in wordings for key, spec in SLOT.findall(wording) if spec}
    first = _wording(wordings[0])
    read = [first]
    for text in wordings[1:]:
        read.append(_extended(_wording(text), first))
    text = " ".join(wordings)
    slots = {
        key: Slot(key, spec, key in first.needs, _unit(text, key)) for key, spec in specs.items()
    }  # fmt: skip
    return Blueprint(verb.replace("\0", " "), topic.replace("\0", " "), section, about, slots, tuple(read), kept)


def _wording(text: str) -> Wording:
    form: Form = "order"
    if text.startswith(("~", "the ")):
        form = "thing"
    elif text.startswith("?"):
        form = "whole"
    segments = [
        Segment(SLOT.sub(r"{\1}", part), optional=index % 2 == 1)
        for index, part in enumerate(re.split(r"\[([^\[\]]*)\]", text.removeprefix("~").removeprefix("?").strip()))
        if part
    ]
    return Wording(form, tuple(segments))


def _extended(wording: Wording, first: Wording) -> Wording:
    """With the optional parts of the first wording, where it has none of its own and ends in one sentence."""
    body = "".join(segment.text for segment in wording.segments)
    extra = [segment for segment in first.segments if segment.optional and not segment.keys & wording.keys]
    if any(segment.optional for segment in wording.segments) or re.search(r"[.?!,] ", body) or not extra:
        return wording
    if wording.form != "whole":
        return Wording(wording.form, (*wording.segments, *extra))
    ending = body[-1] if body[-1] in ".?!" else ""
    return Wording(
        "whole", (Segment(body.removesuffix(ending), False), *extra, *([Segment(ending, False)] if ending else []))
    )


_DETERMINED = ("the", "a", "an", "how", "whether", "who", "where", "when", "somebody")

_UNITS = re.compile(
    r"(minutes|hours|days|nights|years|months|seconds|sentences|km|kg|grams|meters|percent|pixels|degrees|square meters|liters"
    r"|ms|MB|kW|bpm|kilometers|people|m tall)\b"
)


def _unit(text: str, key: str) -> str:
    found = re.search(r"\{" + key + r"(?::[^{}]+)?\} (\w+)", text)
    return found[1] if found and _UNITS.match(found[1]) else ""


def _formula(section: str, line: str, kept: bool) -> Blueprint:
    """`kinetic energy of an object :: mass int 1 9 kg; speed? int 1 9 m/s` with the ways to give quantities."""
    about, _, fields = line.partition(" :: ")
    quantity, _, owner = about.partition(" of ")
    if not owner:
        quantity, _, owner = about.partition(" for ")
    slots: dict[str, Slot] = {}
    said: list[tuple[str, str]] = []  # label, "{key} kg"
    for entry in fields.split("; "):
        label, spec, unit = _field(entry)
        key = label.removesuffix("?").replace(" ", "_")
        slots[key] = Slot(key, spec, not label.endswith("?"), unit)
        slot = "{" + key + "}"
        said.append((label.removesuffix("?"), slot + (" " + unit if unit else "")))
    required = [pair for pair in said if slots[pair[0].replace(" ", "_")].required]
    optional = [pair for pair in said if pair not in required]
    wordings = tuple(map(_wording, _formula_wordings(about, owner, required, optional)))
    topic = f"{owner.split()[-1]} {quantity}" if owner else quantity
    return Blueprint("calculate", topic, section, f"the {about}", slots, wordings, kept)


def _field(entry: str) -> tuple[str, str, str]:
    """ "first leg int 1 80 cm" -> label, kind, unit."""
    found = re.fullmatch(r"(.+?) (int -?\d+ -?\d+|num -?\d+ -?\d+ \d+|[\w-]+/[\w/-]+)(?: (.+))?", entry)
    assert found, entry
    return found[1], found[2], found[3] or ""


def _formula_wordings(
    about: str, owner: str, required: list[tuple[str, str]], optional: list[tuple[str, str]]
) -> Iterator[str]:
    def listed(form: str, glue: str, last: str) -> str:
        parts, more = [_said(form, *pair) for pair in required], [_said(form, *pair) for pair in optional]
        body = parts[0] if len(parts) == 1 else glue.join(parts[:-1]) + last + parts[-1]
        return body + "".join(f"[{last}{extra}]" for extra in more)

    yield f"the {about} with {listed('{a} {l} of {v}', ', ', ' and ')}"
    yield f"the {about} for {listed('{l} {v}', ', ', ' and ')}"
    yield f"the {about} given {listed('{l} = {v}', ', ', ', ')}"
    yield f"the {about} if {listed('the {l} is {v}', ', ', ' and ')}"
    yield f"calculate the {about} using {listed('{a} {l} of {v}', ', ', ' and ')}"
    yield f"work out the {about} ({listed('{l}: {v}', ', ', ', ')})"
    yield f"?{_capital(listed('the {l} is {v}', ', ', ' and '))}. What is the {about}?"
    yield f"?If {listed('the {l} is {v}', ', ', ' and ')}, what is the {about}?"
    yield f"?I have {listed('{a} {l} of {v}', ', ', ' and ')}. Compute the {about}."
    yield f"?What's the {about} when {listed('the {l} is {v}', ', ', ' and ')}?"
    yield f"?We know that {listed('the {l} is {v}', ', ', ' and ')}. I need the {about}."
    if owner.startswith(("a ", "an ")):
        yield f"?Consider {owner} with {listed('{a} {l} of {v}', ', ', ' and ')}. What is its {about.partition(' of ')[0].partition(' for ')[0]}?"


def _said(form: str, name: str, value: str) -> str:
    """ "a mass of 5 kg", "the mass is 5 kg"; of what is counted "12 wins", "the wins are 12"."""
    counted = is_plural(name)
    if counted and form == "{a} {l} of {v}":
        return value if value.endswith(name) else f"{value} {name}"
    if counted:
        form = form.replace(" is ", " are ")
    return form.replace("{l}", name).replace("{a}", article(name)).replace("{v}", value)


def article(noun: str) -> str:
    return "an" if noun[:1] in "aeiou" else "a"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
