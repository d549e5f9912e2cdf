"""Everyday functions in use: one as a client declares it, a request for it, what it returns, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, cast

from baltoro.chat.messages import Tool
from baltoro.train.synthesis import everyday, values
from baltoro.train.synthesis.declarations import declare, spelled
from baltoro.train.synthesis.everyday import Argument, Domain, Phrase
from baltoro.train.synthesis.values import Value
from baltoro.train.synthesis.words import Lexicon

ORDERS = (
    "{c}.", "{c}.", "{c}.", "{c}", "{c}!", "Please {c}.", "Please {c}.", "Could you {c}?", "Can you {c}?", "Can you please {c}?",
    "I need you to {c}.", "I'd like you to {c}.", "Would you {c}?", "{c}, please.", "Hey, {c}.", "Hi! Please {c}.",
    "Go ahead and {c}.", "Now {c}.", "Use the tool to {c}.", "{c}. Thanks!",
)  # fmt: skip
WISHES = (
    "I want to {c}.",
    "Would you mind helping me to {c}?",
    "I have to {c}.",
    "I'd like to {c}.",
    "We need to {c}.",
)


class Mentioned(NamedTuple):
    """What a request asks for: JSON arguments under the declared names, and how the request writes them."""

    arguments: dict[str, Any]
    texts: dict[str, str]  # by the domain's own keys
    request: str
    clause: str


@dataclass(slots=True)
class NaturalFunction:
    name: str
    domain: Domain
    tool: Tool
    declared: dict[str, str]  # key of the domain -> name of the parameter, in the order of the schema

    @property
    def words(self) -> frozenset[str]:
        return self.domain.words

    @property
    def listable(self) -> list[Argument]:
        return [a for a in self.domain.arguments.values() if a.listable and a.required]


def make_natural(r: Random, words: Lexicon, taken: Sequence[NaturalFunction] = ()) -> NaturalFunction | None:
    """A function of a domain that none of `taken` could serve; None where all groups are taken."""
    groups = {function.domain.group for function in taken}
    free = [domain for domain in everyday.domains(words.split) if domain.group not in groups]
    return _declared(r, r.choice(free)) if free else None


def _declared(r: Random, domain: Domain) -> NaturalFunction:
    style = "camel" if r.random() < 0.15 else "snake"
    described = r.random() < 0.8
    names: dict[str, str] = {}
    schemas: dict[str, dict[str, Any]] = {}
    for argument in domain.arguments.values():
        if not argument.required and r.random() < 0.3:
            continue
        unused = [label for label in argument.labels if spelled(label, style) not in schemas] or [argument.key]
        label = unused[0] if r.random() < 0.3 else r.choice(unused)
        names[argument.key] = spelled(label, style)
        schemas[names[argument.key]] = _schema(r, argument, described)
    required = [names[a.key] for a in domain.arguments.values() if a.required]
    name = r.choice(domain.names)
    name = spelled(name.replace("_", " "), "camel" if r.random() < 0.12 else "snake")
    description = r.choice(domain.descriptions) if r.random() < 0.93 else None
    if description and r.random() < 0.3:
        description = description.rstrip(".")
    sort = r.random() < 0.12
    if sort:
        names = dict(sorted(names.items(), key=lambda item: item[1]))
        schemas = dict(sorted(schemas.items()))
    return NaturalFunction(name, domain, declare(r, name, description, schemas, required, sort), names)


def _schema(r: Random, argument: Argument, described: bool) -> dict[str, Any]:
    schema = dict(argument.schema)
    if described and r.random() < 0.9 and argument.hints[0]:
        schema["description"] = r.choice(argument.hints)
    return dict(sorted(schema.items())) if r.random() < 0.2 else schema


def mention(r: Random, words: Lexicon, function: NaturalFunction, *, compact: bool = False) -> Mentioned:
    """One request; compact: by a clause, which can be joined with others."""
    clauses, requests = _fitting(function, function.domain.clauses), _fitting(function, function.domain.requests)
    by_clause = compact or r.random() < 0.35
    phrase = r.choice(clauses if by_clause else requests)
    chosen = {key: function.domain.arguments[key].make(r, words) for key in function.declared if key in phrase.keys}
    if len({str(value.json) for value in chosen.values()}) < len(chosen):  # from Oslo to Oslo
        return mention(r, words, function, compact=compact)
    return _said(r, function, phrase, chosen, by_clause=by_clause)


def mention_each(
    r: Random, words: Lexicon, function: NaturalFunction, argument: Argument
) -> tuple[str, list[Mentioned]]:
    """ "How warm is it in Oslo, Rome and Lima?": one request, and a call for each item."""
    phrase = r.choice([p for p in _fitting(function, function.domain.clauses) if argument.key not in p.given])
    chosen = {key: function.domain.arguments[key].make(r, words) for key in function.declared if key in phrase.keys}
    items = {item.json: item for item in (argument.make(r, words) for _ in range(r.choice((2, 2, 3))))}
    joined = Value("", values.listing([item.text for item in items.values()]))
    request = _said(r, function, phrase, {**chosen, argument.key: joined}, by_clause=True).request
    return request, [
        _said(r, function, phrase, {**chosen, argument.key: item}, by_clause=True) for item in items.values()
    ]


def _fitting(function: NaturalFunction, phrases: list[Phrase]) -> list[Phrase]:
    """Phrases whose arguments the declaration has, optional ones included."""
    return [phrase for phrase in phrases if phrase.keys <= function.declared.keys()]


def _said(
    r: Random, function: NaturalFunction, phrase: Phrase, chosen: Mapping[str, Value], *, by_clause: bool
) -> Mentioned:
    texts = {key: value.text for key, value in chosen.items()}
    text = everyday.fill(_quotes(r, phrase.text, texts), texts)
    clause = text
    if by_clause:
        text = r.choice(ORDERS if " me" in phrase.text else ORDERS + WISHES).replace("{c}", text)
    if r.random() < 0.92 and not phrase.text.startswith("{"):  # a file's name keeps its case
        text = text[:1].upper() + text[1:]
    given = {**{key: value.json for key, value in chosen.items()}, **phrase.given}
    arguments = {name: given[key] for key, name in function.declared.items() if key in given}
    return Mentioned(arguments, texts, text, clause)


def _quotes(r: Random, template: str, texts: Mapping[str, str]) -> str:
    """Single quotes where the value has double ones, and now and then."""
    for key, text in texts.items():
        if '"' in text or ("'" not in text and r.random() < 0.25):
            template = template.replace(f'"{{{key}}}"', f"'{{{key}}}'")
    return template


def result(
    r: Random, words: Lexicon, function: NaturalFunction, arguments: Mapping[str, Any], texts: Mapping[str, str]
) -> tuple[str, str, list[str]]:
    """The tool's message, the sentence for the user, and what that sentence must mention."""
    domain = function.domain
    answers = [
        answer for answer in domain.answers
        if all(key in texts or key in domain.returns for key in everyday.PLACEHOLDER.findall(answer.sentence))
    ]  # fmt: skip
    answer = r.choice(answers)
    told = {key: make(r, words).json for key, make in domain.returns.items()}
    given = {key: arguments[name] for key, name in function.declared.items() if name in arguments}
    written = {**texts, **{key: _written(value) for key, value in told.items()}}
    sentence = everyday.fill(answer.sentence, written)
    mentioned = everyday.PLACEHOLDER.findall(answer.sentence)
    mentions = [written[key] for key in mentioned if key in told] or [written[key] for key in mentioned[:1]]
    if not answer.sentence.startswith("{"):
        sentence = sentence[:1].upper() + sentence[1:]
    return everyday.content(answer, {**given, **told}, written), sentence, mentions


def _written(value: Any) -> str:
    return ", ".join(cast("list[str]", value)) if isinstance(value, list) else str(value)
