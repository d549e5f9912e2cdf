"""One request for several calls of one function: a list, the same said again with other values, "respectively", "then repeat"."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from random import Random

from baltoro.train.synthesis import values
from baltoro.train.synthesis.api import ApiFunction
from baltoro.train.synthesis.asking import choose_wording, fill, filled, framed, make, mentioned, spoken
from baltoro.train.synthesis.blueprints import Wording
from baltoro.train.synthesis.natural import Mentioned
from baltoro.train.synthesis.values import Value
from baltoro.train.synthesis.words import Lexicon


def ask_each(r: Random, words: Lexicon, function: ApiFunction) -> tuple[str, list[Mentioned]] | None:
    """One request for two to four calls of `function`: one slot listed, or the whole tail of the wording said again."""
    wording = choose_wording(r, function, True)
    keys = spoken(r, function, wording)
    base = make(r, words, function, keys)
    count = r.choice((2, 2, 2, 3, 3, 4))
    way = r.random()
    if way < 0.1:
        return _repeated(r, words, function, wording, base)
    if way < 0.2 and len(base) > 1:
        return _respectively(r, words, function, wording, keys, count)
    if way < 0.5:
        return _listed(r, words, function, wording, base, count)
    template = "".join(segment.text for segment in wording.segments if segment.keys <= base.keys())
    found = _TAIL.match(template)
    if not found:
        return _listed(r, words, function, wording, base, count)
    sets = [base, *(make(r, words, function, keys) for _ in range(count - 1))]
    if r.random() < 0.35 and len(base) > 1:  # one thing stays as it is
        kept = r.choice(list(base))
        sets = [{**made, kept: base[kept]} for made in sets]
    sets = list({json.dumps({k: v.json for k, v in made.items()}, sort_keys=True): made for made in sets}.values())
    if len(sets) < 2:
        return None
    tails = [fill(found[2], made) for made in sets]
    glue = r.choice((" and ", ", and ", " and then ", ", and also "))
    text = f"{found[1]} {tails[0]}" if len(tails) == 1 else f"{found[1]} {', '.join(tails[:-1])}{glue}{tails[-1]}"
    _, request = framed(r, words, function, wording, text)
    return request, [mentioned(function, made, request, text) for made in sets]


_TAIL = re.compile(
    r"^([^{}]*?[^{} ]) ((?:for|in|of|from|at|to|with|on|by|near|between|about|if|given|using)\b[^{}]*\{.*)$"
)


def _listed(
    r: Random, words: Lexicon, function: ApiFunction, wording: Wording, base: dict[str, Value], count: int
) -> tuple[str, list[Mentioned]] | None:
    able = _plain(function, base)
    if not able:
        return None
    key = r.choice(able)
    items = list(
        {str(v.json): v for v in (base[key], *(function.kinds[key].make(r, words) for _ in range(count - 1)))}.values()
    )
    if len(items) < 2 or len({item.text for item in items}) < len(items):
        return None
    text = filled(r, wording, {**base, key: Value("", values.listing([item.text for item in items]))})
    _, request = framed(r, words, function, wording, text)
    return request, [mentioned(function, {**base, key: item}, request, text) for item in items]


def _plain(function: ApiFunction, made: Mapping[str, Value]) -> list[str]:
    return [key for key in made if function.kinds[key].schema["type"] in ("string", "integer", "number")]


def _respectively(
    r: Random, words: Lexicon, function: ApiFunction, wording: Wording, keys: list[str], count: int
) -> tuple[str, list[Mentioned]] | None:
    """ "from Oslo and Rome to Lima and Bonn, respectively"."""
    sets = [make(r, words, function, keys) for _ in range(count)]
    changing = _plain(function, sets[0])
    if len(changing) < 2:
        return None
    changing = r.sample(changing, 2)
    sets = [{key: made[key] if key in changing else value for key, value in sets[0].items()} for made in sets]
    if any(len({str(made[key].text) for made in sets}) < count for key in changing):
        return None
    joined = {key: Value("", values.listing([made[key].text for made in sets])) for key in changing}
    text = filled(r, wording, {**sets[0], **joined}) + r.choice((", respectively", " respectively"))
    _, request = framed(r, words, function, wording, text)
    return request, [mentioned(function, made, request, text) for made in sets]


def _repeated(
    r: Random, words: Lexicon, function: ApiFunction, wording: Wording, base: dict[str, Value]
) -> tuple[str, list[Mentioned]] | None:
    """ "Then do the same with 10 instead of 5"."""
    able = _plain(function, base)
    if not able:
        return None
    key = r.choice(able)
    other = function.kinds[key].make(r, words)
    if other.json == base[key].json or len({value.text for value in base.values()}) < len(base):
        return None
    text = filled(r, wording, base)
    _, request = framed(r, words, function, wording, text)
    label = key.replace("_", " ")
    again = r.choice((
        "Then do the same with {new} instead of {old}.", "Repeat that with {new} as the {label}.", "And once more with {new} instead of {old}.",
        "After that, do it again for {new} instead of {old}.", "Then again with the {label} {new}.",
    ))  # fmt: skip
    request = f"{request if request[-1] in '.?!' else request + '.'} {again}"
    request = request.replace("{new}", other.text).replace("{old}", base[key].text).replace("{label}", label)
    return request, [mentioned(function, made, request, text) for made in (base, {**base, key: other})]
