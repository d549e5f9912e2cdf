"""A question with its truth, a verdict with its reason, and how sure a share of verdicts makes us."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from baltoro.chat.messages import ChatRequest, ToolCall
from baltoro.chat.parser import Folded
from baltoro.eval.possible import Possible, matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a right answer looks like. Empty fields ask for nothing, but calls are right only where they are listed."""

    calls: tuple[ToolCall, ...] = ()  # in any order
    text: str | None = None  # the whole text, exactly
    mentions: tuple[str, ...] = ()  # strings that the text must contain, in any case of letters
    possible: tuple[Possible, ...] = ()  # calls with all the values that are allowed, in place of `calls`
    any_text: bool = False  # whatever is said is right as long as nothing is called, nothing too


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    id: str
    kind: str  # scores are told apart by it
    request: ChatRequest
    truth: Truth


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """`right` is the verdict; `checks` are its parts, those that the kind has."""

    example: str
    kind: str
    right: bool
    checks: Mapping[str, bool] = field(default_factory=dict[str, bool])
    reason: str = ""  # empty when right


def judge(example: Example, answer: Folded) -> Score:
    """Compare an answer with the truth. Without calls in the truth, any call is wrong."""
    checks: dict[str, bool] = {}
    if example.truth.calls:
        checks |= _call_checks(example.truth.calls, answer.calls)
    elif example.truth.possible:
        checks |= _possible_checks(example, answer.calls)
    else:
        checks["no_call"] = not answer.calls and not answer.incomplete
        text = (answer.content or "").strip()
        if example.truth.text is not None:
            checks["text"] = text == example.truth.text.strip()
        elif example.truth.mentions:
            checks["mentions"] = all(word.casefold() in text.casefold() for word in example.truth.mentions)
        elif not example.truth.any_text:
            checks["words"] = bool(text)
    right = all(checks.values())
    reason = "" if right else f"{', '.join(name for name, good in checks.items() if not good)}: {_told(answer)}"
    return Score(example=example.id, kind=example.kind, right=right, checks=checks, reason=reason)


def _call_checks(expected: Sequence[ToolCall], found: Sequence[ToolCall]) -> dict[str, bool]:
    """called: at least one call; names: the right functions; arguments: equal as JSON values too."""
    return {
        "called": bool(found),
        "names": sorted(call.name for call in expected) == sorted(call.name for call in found),
        "arguments": sorted(map(_canonical, expected)) == sorted(map(_canonical, found)),
    }


def _possible_checks(example: Example, found: Sequence[ToolCall]) -> dict[str, bool]:
    expected = example.truth.possible
    return {
        "called": bool(found),
        "names": sorted(possible.name for possible in expected) == sorted(call.name for call in found),
        "arguments": matches(expected, found, example.request.tools),
    }


def _canonical(call: ToolCall) -> str:
    """Equal for equal calls: 2.0 is 2, the order of keys is free, true is not 1. Broken JSON equals nothing."""
    arguments = call.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return f"{call.name} {arguments!r}"
    return f"{call.name} {json.dumps(_plain(arguments), sort_keys=True)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _told(answer: Folded) -> str:
    calls = [f"{call.name}({call.arguments})" for call in answer.calls]
    broken = [f"incomplete {call.id}" for call in answer.incomplete]
    return " | ".join([*([repr(answer.content)] if answer.content else []), *calls, *broken]) or "nothing"


class Interval(NamedTuple):
    share: float
    low: float
    high: float
    total: int

    def __str__(self) -> str:
        return f"{self.share:6.1%} [{self.low:.1%}, {self.high:.1%}] of {self.total}"


def wilson(right: int, total: int, z: float = 1.96) -> Interval:
    """Share with its Wilson score interval: 95 % for z = 1.96, sensible also near 0 and 1 and for few examples."""
    if not total:
        return Interval(0.0, 0.0, 1.0, 0)
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), total)


def summary(scores: Iterable[Score]) -> dict[str, dict[str, Interval]]:
    """kind -> check -> share; "right" is the verdict as a whole."""
    verdicts: defaultdict[str, defaultdict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        verdicts[score.kind]["right"].append(score.right)
        for name, good in score.checks.items():
            verdicts[score.kind][name].append(good)
    return {
        kind: {name: wilson(sum(goods), len(goods)) for name, goods in checks.items()}
        for kind, checks in verdicts.items()
    }
