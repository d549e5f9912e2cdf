"""Copying from context: repeat this exactly, and look this up. Tool calls are made of nothing else."""

from __future__ import annotations

from random import Random

from baltoro.train.synthesis import values
from baltoro.train.synthesis.words import Lexicon

_REPEAT = (
    'Say "{x}".', 'Repeat: "{x}"', 'Repeat this: "{x}"', 'Write "{x}" again.', 'Please say "{x}".', 'Echo "{x}"',
    "Say '{x}'.", "Repeat '{x}' for me.", 'Can you say "{x}"?', 'Copy this text: "{x}"', 'Print "{x}".',
    'Answer with "{x}" only.', "Reply with '{x}'.", 'Type "{x}" and nothing else.', 'Could you repeat "{x}"?',
    "Repeat after me: {x}", "Say this: {x}", "Copy: {x}", "Echo: {x}", "Please repeat the following: {x}",
    "Repeat the next line.\n{x}", "Write this again:\n{x}", "Copy the text below exactly.\n{x}", "Say the words: {x}",
    "Return this unchanged: {x}", "The text is: {x}", "Repeat exactly: {x}", "Output the string {x}", "Recite {x}",
)  # fmt: skip


_MAKERS = (
    values.identifier, values.email, values.file_name, values.date, values.decimal, values.title, values.sentence,
)  # fmt: skip


def recite(r: Random, words: Lexicon) -> tuple[str, str]:
    """A request to repeat something, and what to repeat."""
    text = _recitable(r, words)
    return r.choice(_REPEAT).replace("{x}", text), text


def _recitable(r: Random, words: Lexicon) -> str:
    kind = r.random()
    if kind < 0.22:  # running words
        return " ".join(r.choices(words.common, k=r.randint(1, 20)))
    if kind < 0.42:  # invented words
        return " ".join(words.invented(r) for _ in range(r.randint(1, 10)))
    if kind < 0.57:  # a small alphabet: the next symbol never follows from the last one alone
        alphabet = [_symbol(r, words) for _ in range(r.randint(2, 8))]
        return r.choice((" ", " ", ", ", "-")).join(r.choices(alphabet, k=r.randint(3, 18)))
    if kind < 0.67:
        letters = r.choice(("0123456789", "ABCDEF0123456789", "abcdefghijklmnopqrstuvwxyz", "01"))
        return "".join(r.choices(letters, k=r.randint(2, 16)))
    if kind < 0.85:
        return r.choice(_MAKERS)(r, words).text
    joint = r.choice(("_", ".", "-", ""))
    parts = [words.noun(r, 0.4) for _ in range(r.randint(2, 4))]
    return joint.join(parts) if joint else "".join(values.capitalised(part) for part in parts)


def _symbol(r: Random, words: Lexicon) -> str:
    return r.choice((words.noun(r, 0.5), r.choice("abcdefghijklmnopqrstuvwxyz"), str(r.randint(0, 99))))


_FACTS = (
    ("The {l} of {k} is {v}.", "What is the {l} of {k}?", "The {l} of {k} is {v}."),
    ("{k}'s {l} is {v}.", "What is {k}'s {l}?", "{k}'s {l} is {v}."),
    ("{k} has the {l} {v}.", "Which {l} does {k} have?", "{k} has the {l} {v}."),
    ("{k}: {v}", "What stands next to {k}?", "{v}"),
    ("{k} = {v}", "What is {k}?", "{v}"),
    ("{l} of {k}: {v}", "Tell me the {l} of {k}.", "{v}"),
    ("{k} -> {v}", "Where does {k} point to?", "{v}"),
    ("{k} lives in {v}.", "Where does {k} live?", "{k} lives in {v}."),
    ("{k} likes {v}.", "What does {k} like?", "{k} likes {v}."),
    ("{k} owns the {v}.", "What does {k} own?", "{k} owns the {v}."),
)


def pick(r: Random, words: Lexicon) -> tuple[str, str, str, str]:
    """Facts of one form about several keys: the text, a question about one, the answer, the bare value."""
    form = r.choice(_FACTS)
    label = words.noun(r, 0.15)
    key_maker = r.choice((values.person, values.person, values.proper, values.word, values.place, values.company))
    value_maker = r.choice((
        values.identifier, values.word, values.integer, values.proper, values.place, values.thing, values.clock,
    ))  # fmt: skip
    facts: dict[str, str] = {}
    for _ in range(r.choice((1, 2, 3, 3, 4, 5, 6, 8, 10))):
        facts.setdefault(key_maker(r, words).text, value_maker(r, words).text)
    key = r.choice(list(facts))
    glue = "\n" if not form[0].endswith(".") or r.random() < 0.3 else " "
    text = glue.join(_fill(form[0], label, k, v) for k, v in facts.items())
    question, answer = _fill(form[1], label, key, ""), _fill(form[2], label, key, facts[key])
    if r.random() < 0.25:
        question += r.choice((" Only the answer, please.", " Answer with the value only."))
        answer = facts[key]
    return text, question, answer, facts[key]


def _fill(form: str, label: str, key: str, value: str) -> str:
    return form.replace("{l}", label).replace("{k}", key).replace("{v}", value)
