"""Whole conversations of every kind, deterministic by seed.

Every dialogue has its own random stream, named by seed, split and number: any of them can be made
alone, in any order, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import cast

from baltoro.chat.messages import Message, Tool, ToolCall
from baltoro.train.synthesis import asking, copying, natural, results, smalltalk, values
from baltoro.train.synthesis.api import ApiFunction, ability, make_api
from baltoro.train.synthesis.asking_each import ask_each
from baltoro.train.synthesis.functions import Declared, Function, make_function, make_functions
from baltoro.train.synthesis.natural import NaturalFunction, make_natural
from baltoro.train.synthesis.requests import Intent, choose_arguments, make_intent, mentioned_intent, phrase
from baltoro.train.synthesis.split import Split
from baltoro.train.synthesis.values import Value
from baltoro.train.synthesis.words import Lexicon, lexicon

KINDS = (
    "recite", "pick", "single", "schema", "nested", "hint", "many", "multi", "parallel", "none", "ask", "result", "conversation",
    "identity", "chat",
)  # fmt: skip
WEIGHTS: Mapping[str, float] = {
    "recite": 0.07, "pick": 0.04, "single": 0.15, "schema": 0.08, "nested": 0.05, "hint": 0.05, "many": 0.04, "multi": 0.08, "parallel": 0.08, "none": 0.08, "ask": 0.015,
    "result": 0.07, "conversation": 0.16, "identity": 0.025, "chat": 0.02,
}  # fmt: skip

MAX_CHARS = 3000  # about 1,100 tokens of the nano vocabulary, before the last turn

_SAID_BEFORE_CALL = (
    "Let me check that.", "Let me look.", "One moment.", "Sure, I'll do that.", "I'll check.", "Okay.", "Sure.", "Right away.",
)  # fmt: skip
_REFUSALS = (
    "I'm afraid I can't {c}; none of my tools does that.", "Sorry, I have no tool that can {c}.", "I can't {c} here, sorry.",
    "Sorry, none of my tools can {c}.", "I have no tool to {c}.", "I'm sorry, I can't {c} with my tools.",
    "I cannot {c}: no tool does that.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation whose last turn is the assistant's. `mentions`: what that turn's text must contain."""

    kind: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    mentions: tuple[str, ...] = ()


@dataclass(slots=True)
class _Script:
    """A conversation being written: turns, and the number of the next call, which never starts again."""

    r: Random
    words: Lexicon
    functions: list[Declared]
    messages: list[Message] = field(default_factory=list[Message])
    num_calls: int = 0
    mentions: list[str] = field(default_factory=list[str])

    def size(self) -> int:
        """Characters so far, roughly: declarations and messages."""
        return sum(len(str(f.tool.declaration)) for f in self.functions) + sum(
            len(str(m.content)) + 90 * len(m.tool_calls) for m in self.messages
        )

    def say(self, role: str, text: str) -> None:
        self.messages.append(Message(role=role, content=text))

    def exchange(self, question: str, answer: str) -> None:
        self.say("user", question)
        self.say("assistant", answer)

    def call(self, request: str, intents: list[Intent]) -> None:
        self.say("user", request)
        calls: list[ToolCall] = []
        for intent in intents:
            name = intent.function.name
            calls.append(ToolCall(id=f"functions.{name}:{self.num_calls}", name=name, arguments=intent.arguments_json))
            self.num_calls += 1
        said = self.r.choice(_SAID_BEFORE_CALL) if self.r.random() < 0.12 else None
        self.messages.append(Message(role="assistant", content=said, tool_calls=tuple(calls)))

    def answer(self, intents: list[Intent]) -> None:
        """Results for the calls of the last turn, and what the assistant says about them."""
        named = self.r.random() < 0.5  # the official loop names the tool in its message, many clients do not
        sentences: list[str] = []
        self.mentions.clear()
        for call, intent in zip(self.messages[-1].tool_calls, intents, strict=True):
            content, sentence, mentions = results.result(self.r, self.words, intent)
            self.messages.append(
                Message(role="tool", content=content, tool_call_id=call.id, name=call.name if named else None)
            )
            sentences.append(sentence)
            self.mentions += mentions
        self.say("assistant", " ".join(sentences))

    def finished(self, kind: str) -> Dialogue:
        tools = tuple(function.tool for function in self.functions)
        return Dialogue(kind, tuple(self.messages), tools, tuple(self.mentions))


def generate(
    seed: int, split: Split = "train", *, weights: Mapping[str, float] = WEIGHTS, start: int = 0
) -> Iterator[Dialogue]:
    """Endless dialogues; `weights`: kind -> how often; `start`: number of the first."""
    kinds, shares = list(weights), list(weights.values())
    words = lexicon(split)
    number = start
    while True:
        r = Random(f"{seed}/{split}/{number}")
        yield _MAKERS[r.choices(kinds, shares)[0]](r, words)
        number += 1


def _script(r: Random, words: Lexicon, functions: list[Declared]) -> _Script:
    script = _Script(r, words, functions)
    if r.random() < 0.45:  # else the template puts its own system turn
        script.say("system", r.choice(smalltalk.SYSTEMS))
    return script


def _functions(r: Random, words: Lexicon) -> list[Declared]:
    return make_functions(r, words, r.choices((1, 2, 3, 4, 5, 6), (48, 29, 14, 5, 2, 2))[0])


def _single(r: Random, words: Lexicon) -> Dialogue:
    script = _script(r, words, _functions(r, words))
    intent = _intent(script)
    script.call(intent.request, [intent])
    return script.finished("single")


def _nested(r: Random, words: Lexicon) -> Dialogue:
    """A call with an object inside its arguments."""
    while True:
        script = _script(r, words, make_functions(r, words, r.choice((1, 1, 2, 3)), nested=True))
        intent = make_intent(r, words, script.functions[0], script.functions)
        if "{" in intent.arguments_json[1:]:
            r.shuffle(script.functions)
            script.call(intent.request, [intent])
            return script.finished("nested")


def _hint(r: Random, words: Lexicon) -> Dialogue:
    """A call with a value that the request says in other words than the schema wants it in: an enum's member, a date."""
    while True:
        script = _script(r, words, _functions(r, words))
        function = r.choice(script.functions)
        if isinstance(function, ApiFunction):
            said = asking.ask(r, words, function)
            if any(text not in said.texts.values() for text in _strings(said.arguments)):
                script.call(said.request, [mentioned_intent(function, said)])
                return script.finished("hint")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for item in cast("dict[str, object]", value).values():
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def _many(r: Random, words: Lexicon) -> Dialogue:
    """One of up to twenty declared functions."""
    script = _script(r, words, make_functions(r, words, r.choice((7, 7, 8, 9, 10, 12, 15, 20))))
    intent = _intent(script)
    script.call(intent.request, [intent])
    return script.finished("many")


def _ask(r: Random, words: Lexicon) -> Dialogue:
    """Something is missing that the function requires: the answer asks for it."""
    while True:
        script = _script(r, words, _functions(r, words))
        function = r.choice(script.functions)
        if isinstance(function, ApiFunction) and (said := asking.unsaid(r, function)):
            request, answer, missing = said
            script.exchange(request, answer)
            script.mentions += missing
            return script.finished("ask")


def _schema(r: Random, words: Lexicon) -> Dialogue:
    """A call of a function as real interfaces declare them, among its like."""
    script = _script(r, words, make_functions(r, words, r.choice((1, 1, 2, 3, 4)), real=True))
    intent = _intent(script)
    script.call(intent.request, [intent])
    return script.finished("schema")


def _parallel(r: Random, words: Lexicon) -> Dialogue:
    """Several calls of such functions."""
    while True:
        script = _script(r, words, make_functions(r, words, r.choice((1, 1, 2, 3, 4)), real=True))
        request, intents = _several(script)
        if len(intents) > 1:
            script.call(request, intents)
            return script.finished("parallel")


def _intent(script: _Script) -> Intent:
    return make_intent(script.r, script.words, script.r.choice(script.functions), script.functions)


def _result(r: Random, words: Lexicon) -> Dialogue:
    script = _script(r, words, _functions(r, words))
    intent = _intent(script)
    script.call(intent.request, [intent])
    script.answer([intent])
    return script.finished("result")


def _multi(r: Random, words: Lexicon) -> Dialogue:
    script = _script(r, words, _functions(r, words))
    request, intents = _several(script)
    script.call(request, intents)
    if r.random() < 0.3:
        script.answer(intents)
        script.mentions.clear()
        request, intents = _several(script)
        script.call(request, intents)
    return script.finished("multi")


def _several(script: _Script) -> tuple[str, list[Intent]]:
    """One request that needs two or three calls, of one function sometimes more."""
    r = script.r
    function = r.choice(script.functions)
    if r.random() < 0.55:
        if isinstance(function, ApiFunction):
            if each := ask_each(r, script.words, function):
                return each[0], [mentioned_intent(function, said) for said in each[1]]
        elif isinstance(function, NaturalFunction):
            if function.listable:
                request, said = natural.mention_each(r, script.words, function, r.choice(function.listable))
                return request, [mentioned_intent(function, each) for each in said]
        elif listed := [p for p in function.parameters if p.slot.kind in _LISTABLE and p.required]:
            return _one_for_each(script, function, r.choice(listed).name)
    count = r.choice((2, 2, 2, 3, 3, 4))
    if len(script.functions) > 1 and r.random() < 0.7:
        chosen = r.sample(script.functions, min(count, len(script.functions)))
    else:
        chosen = [function] * count
    whole = r.random() < 0.25
    made = [make_intent(r, script.words, f, script.functions, compact=not whole) for f in chosen]
    intents = list({(i.function.name, i.arguments_json): i for i in made}.values())  # nobody asks the same twice
    if whole:
        glue = r.choice((" ", " ", "\n", " Also: ", " And: ", " Then, "))
        return glue.join(i.request if i.request[-1] in ".?!" else i.request + "." for i in intents), intents
    return _join(r, [intent.clause for intent in intents]), intents


_LISTABLE = frozenset({"place", "country", "person", "company", "language", "food", "id", "proper", "file", "email"})


def _one_for_each(script: _Script, function: Function, name: str) -> tuple[str, list[Intent]]:
    """ "Find the harbour in Oslo, Rome and Lima": the calls differ in one argument."""
    r = script.r
    chosen = choose_arguments(r, script.words, function)
    parameter = next(p for p in function.parameters if p.name == name)
    items = list(dict.fromkeys(parameter.value(r, script.words) for _ in range(r.choice((2, 2, 3)))))
    joined = Value("", values.listing([item.text for item in items]))
    request = phrase(r, function, {**chosen, name: joined}, script.functions).request
    intents = [phrase(r, function, {**chosen, name: item}, script.functions) for item in items]
    return request, intents


def _join(r: Random, clauses: list[str]) -> str:
    style = r.randrange(6)
    first = clauses[0][:1].upper() + clauses[0][1:]
    if style == 0:
        return "First, " + ". Then ".join(clauses) + "."
    if style == 1:
        return "Please " + ", and ".join(clauses) + "."
    if style == 2:
        return first + ", and also " + ", and ".join(clauses[1:]) + "."
    if style == 3:
        return "Could you " + " and then ".join(clauses) + "?"
    if style == 4:
        return first + ". Also " + ". Also ".join(clauses[1:]) + "."
    return "I need " + r.choice(("several", "some", "a few")) + " things: " + "; ".join(clauses) + "."


def _refusal(script: _Script) -> tuple[str, str]:
    """A request that no declared function serves: another thing, often with a verb that one of them has."""
    r, words = script.r, script.words
    known = frozenset[str]().union(*(function.words for function in script.functions))
    if r.random() < 0.5:
        others = [f for f in script.functions if isinstance(f, ApiFunction)]
        api = make_api(r, words, others)
        if api and all(api.words.isdisjoint(f.words) for f in script.functions if not isinstance(f, ApiFunction)):
            request = asking.ask(r, words, api).request
            return request, r.choice(_REFUSALS).replace("{c}", ability(api.blueprint))
    if r.random() < 0.7:
        declared = [f for f in script.functions if isinstance(f, NaturalFunction)]
        absent = make_natural(r, words, declared)
        abouts = {word for f in script.functions if not isinstance(f, NaturalFunction) for word in f.words}
        if absent and abouts.isdisjoint(absent.words):
            request = natural.mention(r, words, absent).request
            return request, r.choice(_REFUSALS).replace("{c}", absent.domain.ability)
    while True:
        verbs = [function.verb for function in script.functions if isinstance(function, Function)]
        verb = r.choice(verbs) if verbs and r.random() < 0.4 else None
        missing = make_function(r, words, verb)
        if known.isdisjoint(missing.words):
            break
    intent = make_intent(r, words, missing, script.functions, compact=r.random() < 0.5)
    if missing.name in intent.request:
        return _refusal(script)
    what = f"{missing.verb.asked[0].replace(' me', '')} the {missing.about}"
    return intent.request, r.choice(_REFUSALS).replace("{c}", what)


def _none(r: Random, words: Lexicon) -> Dialogue:
    script = _script(r, words, _functions(r, words))
    for _ in range(r.choice((1, 2, 3))):
        script.exchange(*(_refusal(script) if r.random() < 0.5 else smalltalk.smalltalk(r)))
    return script.finished("none")


def _recite(r: Random, words: Lexicon) -> Dialogue:
    script = _script(r, words, _functions(r, words) if r.random() < 0.08 else [])
    for _ in range(r.randint(1, 6)):
        script.exchange(*copying.recite(r, words))
    return script.finished("recite")


def _pick(r: Random, words: Lexicon) -> Dialogue:
    script = _Script(r, words, [])
    text, question, answer, value = copying.pick(r, words)
    if r.random() < 0.25:
        script.say("system", text)
        script.exchange(question, answer)
    else:
        if r.random() < 0.4:
            script.say("system", r.choice(smalltalk.SYSTEMS))
        script.exchange(f"{text}\n{question}" if r.random() < 0.5 else f"{text} {question}", answer)
    for _ in range(r.choice((0, 0, 1, 1, 2))):
        text, question, answer, value = copying.pick(r, words)
        script.exchange(f"{text} {question}", answer)
    script.mentions.append(value)
    return script.finished("pick")


def _identity(r: Random, words: Lexicon) -> Dialogue:
    script = _script(r, words, [])
    script.exchange(*smalltalk.identity(r))
    for _ in range(r.choice((0, 0, 1, 2))):
        script.exchange(*smalltalk.smalltalk(r))
    return script.finished("identity")


def _chat(r: Random, words: Lexicon) -> Dialogue:
    script = _script(r, words, [])
    for _ in range(r.choice((1, 2, 3, 4))):
        script.exchange(*smalltalk.smalltalk(r))
    return script.finished("chat")


def _conversation(r: Random, words: Lexicon) -> Dialogue:
    """Several requests to the same functions: the declarations are read once and used often."""
    script = _script(r, words, _functions(r, words))
    turns = r.choice((2, 2, 3, 3, 4, 5)) if r.random() < 0.95 else r.randint(6, 12)
    for turn in range(turns):
        # Long ones lose turns, all but the first; dropping them whole would turn the mix into small talk.
        if turn and script.size() > MAX_CHARS:
            break
        kind = r.random()
        if kind < 0.62:
            intent = _intent(script)
            script.call(intent.request, [intent])
            script.answer([intent])
        elif kind < 0.76:
            request, intents = _several(script)
            script.call(request, intents)
            script.answer(intents)
        elif kind < 0.84:
            script.exchange(*_refusal(script))
        elif kind < 0.94:
            script.exchange(*smalltalk.smalltalk(r))
        else:
            script.exchange(*copying.recite(r, words))
    script.mentions.clear()
    return script.finished("conversation")


_MAKERS = {
    "recite": _recite, "pick": _pick, "single": _single, "schema": _schema, "parallel": _parallel, "nested": _nested, "hint": _hint, "many": _many, "multi": _multi, "ask": _ask, "none": _none, "result": _result,
    "conversation": _conversation, "identity": _identity, "chat": _chat,
}  # fmt: skip
