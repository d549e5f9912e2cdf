"""Functions of everyday life, read from everyday.txt: their names, arguments, requests, results and answers.

A block begins with `== topic (group) heldout`. Two domains of one group never meet in a conversation,
because one request could mean both. A domain marked held out belongs to evaluation as a whole, so that
its function names are never trained on. The lines of a block:

    n: names | d: descriptions | can: what a model without the tool says it cannot do
    @ key: kind | names | descriptions     an argument; `key?` may be left out, `key*` can be listed
    > clause                               what somebody wants, fit for "Please ..."
    ? whole request [key=value]            arguments are those it mentions, and those in brackets
    $ key: kind                            something that a tool returns
    ! json or "text" => answer             JSON as key=name pairs, a bare name for a bare value
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, NamedTuple

from baltoro.train.synthesis import everyday_values, values
from baltoro.train.synthesis.split import Split
from baltoro.train.synthesis.values import Maker

PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Phrase(NamedTuple):
    text: str  # with {key} for what is mentioned
    given: Mapping[str, Any]  # arguments that it says in other words

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(PLACEHOLDER.findall(self.text)) | self.given.keys()


class Answer(NamedTuple):
    content: str  # a bare name, "quoted text" or key=name pairs
    sentence: str


@dataclass(frozen=True, slots=True)
class Argument:
    key: str
    required: bool
    listable: bool
    schema: Mapping[str, Any]  # without a description
    make: Maker
    labels: tuple[str, ...]
    hints: tuple[str, ...]


@dataclass
class Domain:
    topic: str
    group: str
    split: Split
    names: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    ability: str = ""
    arguments: dict[str, Argument] = field(default_factory=dict[str, Argument])
    clauses: list[Phrase] = field(default_factory=list[Phrase])
    requests: list[Phrase] = field(default_factory=list[Phrase])
    returns: dict[str, Maker] = field(default_factory=dict[str, Maker])
    answers: list[Answer] = field(default_factory=list[Answer])

    @cached_property
    def words(self) -> frozenset[str]:
        """All that it is about, in single words: no invented function beside it may be about one of them."""
        text = " ".join([*self.names, *self.descriptions, *(p.text for p in self.clauses + self.requests)])
        return frozenset(re.findall(r"[a-z]+", PLACEHOLDER.sub(" ", text.lower())))


@cache
def domains(split: Split) -> tuple[Domain, ...]:
    return tuple(domain for domain in _all() if domain.split == split)


def is_everyday(function: str) -> bool:
    """Whether a name is that of an everyday function of either split, whatever its case and separators."""
    return re.sub(r"[^a-z]", "", function.lower()) in _names()


@cache
def _names() -> frozenset[str]:
    return frozenset(name.replace("_", "") for domain in _all() for name in domain.names)


@cache
def _all() -> tuple[Domain, ...]:
    lists: dict[str, tuple[str, ...]] = {}
    found: list[Domain] = []
    text = files("baltoro.train.synthesis").joinpath("everyday.txt").read_text("utf-8")
    for line in text.splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "%":
            name, _, items = rest.partition(": ")
            lists[name] = _parts(items)
        elif mark == "==":
            found.append(_begin(rest))
        elif line and mark != "#":
            _add(found[-1], mark, rest, lists)
    return tuple(found)


def _begin(header: str) -> Domain:
    topic = header.split()[0]
    group = re.search(r"\((\w+)\)", header)
    return Domain(topic, group[1] if group else topic, "heldout" if header.endswith(" heldout") else "train")


def _add(domain: Domain, mark: str, rest: str, lists: Mapping[str, tuple[str, ...]]) -> None:
    if mark == "n:":
        domain.names = _parts(rest)
    elif mark == "d:":
        domain.descriptions = _parts(rest)
    elif mark == "can:":
        domain.ability = rest
    elif mark == "@":
        argument = _argument(rest, lists)
        domain.arguments[argument.key] = argument
    elif mark == ">":
        domain.clauses.append(_phrase(rest))
    elif mark == "?":
        domain.requests.append(_phrase(rest))
    elif mark == "$":
        key, _, kind = rest.partition(": ")
        domain.returns[key] = _maker(kind, lists)[1]
    else:
        assert mark == "!", mark
        domain.answers.append(Answer(*rest.split(" => ")))


def _parts(text: str, separator: str = " | ") -> tuple[str, ...]:
    return tuple(text.split(separator))


def _argument(line: str, lists: Mapping[str, tuple[str, ...]]) -> Argument:
    head, labels, hints = [*line.split(" | "), ""][:3]
    key, _, kind = head.partition(": ")
    schema, make = _maker(kind, lists)
    flags = key[len(key.rstrip("?*")) :]
    return Argument(
        key.rstrip("?*"), "?" not in flags, "*" in flags, schema, make, _parts(labels, ", "), _parts(hints, "; ")
    )


def _phrase(line: str) -> Phrase:
    found = re.fullmatch(r"(.*?) \[(\w+)=(\w+)\]", line)
    if found is None:
        return Phrase(line, {})
    given: Any = {"true": True, "false": False}.get(found[3], found[3])
    return Phrase(found[1], {found[2]: given})


def _maker(kind: str, lists: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, Any], Maker]:
    """The schema of a kind and the maker of its values."""
    name, *bounds = kind.split()
    if "/" in kind or " | " in kind:
        choices = _parts(kind, "/") if "/" in kind else _parts(kind)
        schema = {"type": "string", "enum": list(choices)} if "/" in kind else {"type": "string"}
        return schema, everyday_values.chosen(choices)
    if name == "int":
        return {"type": "integer"}, everyday_values.integer(int(bounds[0]), int(bounds[1]))
    if name == "num":
        return {"type": "number"}, everyday_values.decimal(int(bounds[0]), int(bounds[1]), int(bounds[2]))
    if name == "bool":
        return {"type": "boolean"}, everyday_values.chosen(("true",))  # phrases give its value in brackets
    if name == "list":
        return {"type": "array", "items": {"type": "string"}}, values.several(everyday_values.MAKERS[bounds[0]])
    if name in lists:
        return {"type": "string"}, everyday_values.listed(lists[name])
    return {"type": "number" if name == "money" else "string"}, everyday_values.MAKERS[name]


def fill(template: str, texts: Mapping[str, str]) -> str:
    """Placeholders by their texts; keys are left as they are where no text is known."""
    return PLACEHOLDER.sub(lambda found: texts.get(found[1], found[0]), template)


def content(answer: Answer, told: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The tool's message: `told` holds what it returns and the arguments, as JSON values."""
    if answer.content in told:
        return str(told[answer.content])
    if answer.content.startswith('"'):
        return fill(answer.content[1:-1].replace("\\n", "\n"), texts)
    pairs = re.findall(r'(\w+)=(\[[^\]]*\]|"[^"]*"|\w+)', answer.content)
    return json.dumps({key: _told(name, told) for key, name in pairs}, ensure_ascii=False)


def _told(name: str, told: Mapping[str, Any]) -> Any:
    if name.startswith("["):
        return [told[part] for part in _parts(name[1:-1], ", ")]
    if name.startswith('"'):
        return name[1:-1]
    return {"true": True, "false": False}[name] if name in ("true", "false") else told[name]
