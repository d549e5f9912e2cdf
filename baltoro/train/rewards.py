"""What an answer is worth, by checks that need no judge: calls, states, texts, numbers, instructions.

Every function returns 0 to 1. A wrong answer that is partly right gets at most `PARTIAL`, so that a group of wrong
answers still says which one is nearer, and no collection of near misses is worth a right answer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from baltoro.chat.messages import ToolCall
from baltoro.chat.parser import Folded
from baltoro.train.instructions import Instruction, follows

PARTIAL = 0.5  # the most that an answer can get without being right
NAME_SHARE = 0.3  # of that, for the right functions; the rest is for arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a right answer looks like. Empty fields ask for nothing, but calls are right only where they are listed."""

    calls: tuple[ToolCall, ...] = ()  # in any order
    text: str | None = None  # the whole text, exactly
    mentions: tuple[str, ...] = ()  # strings that the text must contain, in any case of letters
    number: float | None = None  # the last number of the text
    tolerance: float = 0.0  # of that number, absolute
    instructions: tuple[Instruction, ...] = ()


def reward(wanted: Wanted, answer: Folded) -> float:
    """All that is wanted must be right for 1; what is partly right gets the mean of its parts, times PARTIAL."""
    if wanted.calls:
        return calls(wanted.calls, answer)
    if answer.calls or answer.incomplete:
        return 0.0
    text = answer.content or ""
    parts: list[float] = []
    if wanted.text is not None:
        parts.append(exact(wanted.text, text))
    if wanted.mentions:
        parts.append(mentions(wanted.mentions, text))
    if wanted.number is not None:
        parts.append(numeric(wanted.number, text, wanted.tolerance))
    if wanted.instructions:
        parts.append(sum(follows(each, text) for each in wanted.instructions) / len(wanted.instructions))
    if not parts:
        return abstention(answer)
    return 1.0 if min(parts) == 1.0 else PARTIAL * sum(parts) / len(parts)


def abstention(answer: Folded) -> float:
    """Words, and no call, not even one that was cut off."""
    return float(bool((answer.content or "").strip()) and not answer.calls and not answer.incomplete)


def exact(wanted: str, text: str) -> float:
    return float(text.strip() == wanted.strip())


def mentions(wanted: Sequence[str], text: str) -> float:
    """Share of the strings that the text contains, in any case of letters."""
    folded = text.casefold()
    return sum(each.casefold() in folded for each in wanted) / len(wanted)


_NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<![\w.])[-+−]?\.\d+")
_FRACTION = re.compile(r"(?<![\w.])([-+−]?\d+)\s*/\s*(\d+)(?![\w.]*\d)")


def numeric(wanted: float, text: str, tolerance: float = 0.0) -> float:
    """Whether the last number of the text is `wanted`, to `tolerance` and float64's own rounding.

    A number behind the last `\\boxed{` counts before all others; 1,234.5 and 1e3 are numbers, 3/4 is one number.
    """
    boxed = text.rpartition("\\boxed{")
    found = last_number(boxed[2].partition("}")[0] if boxed[1] else text)
    if found is None or not math.isfinite(found):
        return 0.0
    return float(abs(found - wanted) <= tolerance + 1e-9 * max(1.0, abs(wanted)))


def last_number(text: str) -> float | None:
    """None: there is none."""
    numbers = [(each.start(), each.end(), _float(each[0])) for each in _NUMBER.finditer(text)]
    if not numbers:
        return None
    start, end, value = numbers[-1]
    for fraction in _FRACTION.finditer(text):
        if fraction.start() < start and fraction.end() == end and int(fraction[2]):
            return _float(fraction[1]) / int(fraction[2])
    return value


def _float(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def calls(wanted: Sequence[ToolCall], answer: Folded) -> float:
    """1 for exactly these calls, in any order, arguments equal as JSON values: 2.0 is 2, true is not 1.

    Else a share of PARTIAL for the right functions and their right arguments, less for what nobody asked for. A call
    that was cut off is wrong.
    """
    expected, found = [_items(call) for call in wanted], [_items(call) for call in answer.calls]
    if not answer.incomplete and Counter(expected) == Counter(found):
        return 1.0
    names = _overlap([name for name, _ in expected], [name for name, _ in found])
    arguments = _overlap(
        [(name, *item) for name, items in expected for item in items],
        [(name, *item) for name, items in found for item in items],
    )
    return PARTIAL * (NAME_SHARE * names + (1 - NAME_SHARE) * arguments * (names > 0))


def _overlap(expected: Sequence[object], found: Sequence[object]) -> float:
    """F1 of two multisets; 1 where both are empty."""
    both = sum((Counter(expected) & Counter(found)).values())
    return 2 * both / (len(expected) + len(found)) if expected or found else 1.0


def _items(call: ToolCall) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Its name, and its arguments as canonical JSON, sorted; what is no object equals nothing but itself."""
    try:
        arguments: Any = json.loads(call.arguments) if isinstance(call.arguments, str) else dict(call.arguments)
    except (json.JSONDecodeError, RecursionError):
        return call.name, (("", f"broken {call.arguments!r}"),)
    if not isinstance(arguments, dict):
        return call.name, (("", f"no object {call.arguments!r}"),)
    values = cast("dict[str, Any]", arguments)
    return call.name, tuple(sorted((key, canonical(value)) for key, value in values.items()))


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: 2.0 is 2, the order of keys is free, true is not 1."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def same_state(wanted: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> float:
    """What calls have done, by what they leave behind: 1 where all tables are equal.

    Else PARTIAL times the F1 of what is there, record by record. state: table -> key -> record
    """
    if canonical(wanted) == canonical(found):
        return 1.0
    records = [
        [(table, key, canonical(record)) for table, rows in state.items() for key, record in rows.items()]
        for state in (wanted, found)
    ]
    return PARTIAL * _overlap(*records)
