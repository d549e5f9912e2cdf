"""Invented functions: a verb, a thing, parameters, and the declaration a client would send.

Names are made of the words that a request will use, in the styles of real interfaces; a part has names
that mean nothing, so that only the description tells what they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from baltoro.chat.messages import Tool
from baltoro.train.synthesis import everyday
from baltoro.train.synthesis.api import ApiFunction, make_api
from baltoro.train.synthesis.declarations import declare, spelled
from baltoro.train.synthesis.natural import NaturalFunction, make_natural
from baltoro.train.synthesis.parameters import Parameter, make_parameter
from baltoro.train.synthesis.split import is_reserved
from baltoro.train.synthesis.words import Lexicon


class Verb(NamedTuple):
    base: str
    asked: tuple[str, ...]  # how requests say it, the plain form first
    past: str = ""  # "booked": for telling that it is done; empty for verbs that only ask


ASKING = (
    Verb("get", ("get", "give me", "show me", "tell me", "fetch", "look up")),
    Verb("find", ("find", "look for", "search for", "locate")), Verb("search", ("search for", "find", "look for")),
    Verb("list", ("list", "show me", "give me a list of")), Verb("check", ("check", "look at", "verify")),
    Verb("show", ("show me", "show", "display")), Verb("fetch", ("fetch", "get", "retrieve")),
    Verb("look up", ("look up", "find", "get")), Verb("calculate", ("calculate", "compute", "work out")),
    Verb("compute", ("compute", "calculate")), Verb("count", ("count", "tell me")), Verb("read", ("read", "show me")),
    Verb("track", ("track", "follow")), Verb("estimate", ("estimate", "guess", "tell me")),
    Verb("retrieve", ("retrieve", "get", "fetch")), Verb("view", ("view", "show me", "see")),
    Verb("verify", ("verify", "check")), Verb("measure", ("measure",)), Verb("describe", ("describe",)),
    Verb("compare", ("compare",)), Verb("predict", ("predict", "forecast")), Verb("analyze", ("analyze", "look into")),
)  # fmt: skip
DOING = (
    Verb("create", ("create", "make", "set up", "add"), "created"), Verb("book", ("book", "reserve"), "booked"),
    Verb("send", ("send",), "sent"), Verb("delete", ("delete", "remove"), "deleted"), Verb("add", ("add",), "added"),
    Verb("update", ("update", "change"), "updated"), Verb("cancel", ("cancel",), "cancelled"),
    Verb("set", ("set",), "set"), Verb("start", ("start", "begin", "launch"), "started"),
    Verb("stop", ("stop", "end"), "stopped"), Verb("open", ("open",), "opened"), Verb("close", ("close",), "closed"),
    Verb("play", ("play",), "played"), Verb("order", ("order",), "ordered"), Verb("buy", ("buy", "get"), "bought"),
    Verb("rent", ("rent",), "rented"), Verb("schedule", ("schedule", "plan", "arrange"), "scheduled"),
    Verb("assign", ("assign",), "assigned"), Verb("rename", ("rename",), "renamed"), Verb("move", ("move",), "moved"),
    Verb("copy", ("copy",), "copied"), Verb("convert", ("convert",), "converted"), Verb("print", ("print",), "printed"),
    Verb("save", ("save", "store"), "saved"), Verb("upload", ("upload",), "uploaded"),
    Verb("download", ("download",), "downloaded"), Verb("share", ("share",), "shared"), Verb("pay", ("pay",), "paid"),
    Verb("register", ("register",), "registered"), Verb("reserve", ("reserve", "book"), "reserved"),
    Verb("remove", ("remove", "delete"), "removed"), Verb("enable", ("enable", "turn on"), "enabled"),
    Verb("disable", ("disable", "turn off"), "disabled"), Verb("install", ("install",), "installed"),
    Verb("submit", ("submit", "send in"), "submitted"), Verb("publish", ("publish",), "published"),
    Verb("archive", ("archive",), "archived"), Verb("generate", ("generate", "make"), "generated"),
    Verb("translate", ("translate",), "translated"), Verb("record", ("record", "log"), "recorded"),
    Verb("post", ("post",), "posted"), Verb("report", ("report",), "reported"), Verb("sell", ("sell",), "sold"),
    Verb("lock", ("lock",), "locked"), Verb("unlock", ("unlock",), "unlocked"), Verb("approve", ("approve",), "approved"),
    Verb("request", ("request", "ask for"), "requested"), Verb("resize", ("resize",), "resized"),
)  # fmt: skip
VERBS = ASKING * 2 + DOING


@dataclass(slots=True)
class Function:
    name: str
    verb: Verb
    about: str  # what it works on, in words: "lantern price"
    parameters: list[Parameter]
    tool: Tool
    plain: bool  # name and description say the verb itself, so that another verb may share its `about`

    @property
    def words(self) -> frozenset[str]:
        return frozenset(self.about.split())


def _name(r: Random, words: Lexicon, verb: str, about: str) -> tuple[str, bool]:
    """A name, and whether it says the verb."""
    style = r.random()
    if style < 0.56:
        return spelled(f"{verb} {about}", "snake"), True
    if style < 0.67:
        return spelled(f"{verb} {about}", "camel"), True
    if style < 0.71:
        return spelled(f"{verb} {about}", "pascal"), True
    if style < 0.78:
        return f"{spelled(about, 'snake')}.{spelled(verb, 'snake')}", True
    if style < 0.82:
        return spelled(about, "snake"), False
    if style < 0.90:
        return spelled(f"{about} {verb}", "snake"), True
    name = "_".join(words.invented(r) for _ in range(r.choice((1, 1, 2))))  # a name without meaning
    return (name if r.random() < 0.7 else f"{name}_{r.randint(1, 99)}"), False


def _description(r: Random, verb: str, about: str, parameters: list[Parameter]) -> str:
    one = f"{article(about)} {about}"
    first = parameters[0].label if parameters else about
    text = r.choice((
        f"{verb} the {about}", f"{verb} {one}", f"{verb} {one} by {first}", f"{verb} the {about} for a given {first}",
        f"Use this to {verb} the {about}", f"{verb} {about}", f"Function to {verb} {one}",
        f"{verb} {one} with the given {first}",
        f"{verb} the {about}. Call this when the user asks about the {about}",
    ))  # fmt: skip
    if r.random() < 0.06:
        text += r.choice((
            ". The result is a JSON object", ". Needs a valid account", ". Fails when nothing is found",
            f". Works only if the {first} is known", ". Please use it with care; every call is recorded",
        ))  # fmt: skip
    return text[:1].upper() + text[1:] + ("." if r.random() < 0.7 else "")


def article(noun: str) -> str:
    return "an" if noun[:1] in "aeiou" else "a"


def about_words(r: Random, words: Lexicon) -> str:
    """What a function works on: one to three words."""
    kind = r.random()
    noun = words.singular(r)
    if kind < 0.40:
        return noun
    if kind < 0.80:
        return f"{words.noun(r)} {noun}"
    if kind < 0.93:
        return f"{r.choice(words.adjectives)} {noun}"
    return f"{r.choice(words.adjectives)} {words.noun(r)} {noun}"


def make_function(r: Random, words: Lexicon, verb: Verb | None = None, about: str | None = None) -> Function:
    verb = verb or r.choice(VERBS)
    about = about or about_words(r, words)
    name, says_verb = _name(r, words, verb.base, about)
    while is_reserved(name) or everyday.is_everyday(name):
        name, says_verb = _name(r, words, verb.base, about)
    style = "camel" if r.random() < 0.15 else "snake"
    terse = 0.15 if r.random() < 0.85 else 1.0
    num_required = r.choices((0, 1, 2, 3, 4), (5, 50, 30, 11, 4))[0]
    num_optional = r.choices((0, 1, 2), (76, 18, 6))[0]
    parameters: dict[str, Parameter] = {}
    for position in range(num_required + num_optional):
        parameter = make_parameter(r, words, about, style, position < num_required, terse)
        if all(parameter.label != other.label for other in parameters.values()):
            parameters[parameter.name] = parameter
    listed = list(parameters.values())
    sort = r.random() < 0.12  # the reference tokenizer's wrapper sorts all keys
    if sort:
        listed.sort(key=lambda p: p.name)
    description = None
    spoken = r.choice(verb.asked) if r.random() < 0.3 else verb.base
    if not says_verb or r.random() < 0.9:
        description = _description(r, spoken.replace(" me a list of", "").replace(" me", ""), about, listed)
    required = [p.name for p in listed if p.required]
    tool = declare(r, name, description, {p.name: p.schema for p in listed}, required, sort)
    return Function(name, verb, about, listed, tool, says_verb and spoken == verb.base)


Declared = Function | NaturalFunction | ApiFunction


def make_functions(
    r: Random, words: Lexicon, count: int, *, nested: bool = False, real: bool = False
) -> list[Declared]:
    """`count` functions, invented, everyday, of blueprints or mixed, of which no two could serve the same request.

    nested: the first has an object among its parameters. real: all of blueprints. Many are declared with few words.
    """
    invented, natural = r.choices(((0.0, 0.0), (0.3, 0.3), (1.0, 0.0), (0.0, 1.0)), (46, 24, 20, 10))[0]
    if real:
        invented, natural = 0.0, 0.0
    terse = count > 6
    functions: list[Declared] = []
    while len(functions) < count:
        kind = r.random()
        api = [f for f in functions if isinstance(f, ApiFunction)]
        if nested and not functions:
            other = make_api(r, words, nested=True)
        elif kind < invented:
            other = _similar(r, words, [f for f in functions if isinstance(f, Function)])
        elif kind < invented + natural:
            other = make_natural(r, words, [f for f in functions if isinstance(f, NaturalFunction)])
        else:
            other = make_api(r, words, api, terse=terse and r.random() < 0.6)
        if other is None or (terse and not real and r.random() < 0.1):
            other = make_function(r, words)
        if all(_distinct(other, f) for f in functions):
            functions.append(other)
    if not nested:
        r.shuffle(functions)
    return functions


def _similar(r: Random, words: Lexicon, functions: list[Function]) -> Function:
    """An invented function that may resemble another in verb, thing or one word of the thing."""
    if not functions:
        return make_function(r, words)
    model = r.choice(functions)
    likeness = r.random()
    verb = about = None
    if likeness < 0.25:
        verb = model.verb
    elif likeness < 0.50:
        about = model.about
    elif likeness < 0.62:
        head = model.about.split()[-1]
        about = f"{words.noun(r)} {head}" if r.random() < 0.5 else f"{head} {words.singular(r)}"
    return make_function(r, words, verb, about)


def _distinct(a: Declared, b: Declared) -> bool:
    """A request can tell them apart: different things, or different verbs that both functions spell out."""
    if a.name == b.name:
        return False
    if isinstance(a, NaturalFunction) and isinstance(b, NaturalFunction):
        return a.domain.group != b.domain.group
    if isinstance(a, ApiFunction) and isinstance(b, ApiFunction):
        return a.blueprint.topic != b.blueprint.topic
    if isinstance(a, Function) and isinstance(b, Function):
        return a.about != b.about or (a.verb is not b.verb and a.plain and b.plain)
    return a.words.isdisjoint(b.words)
