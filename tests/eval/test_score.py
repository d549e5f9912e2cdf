"""Verdicts on answers, and the interval around a share of verdicts."""

from __future__ import annotations

import pytest

from baltoro.chat.messages import ChatRequest, Message, ToolCall
from baltoro.chat.parser import Folded
from baltoro.eval.score import Example, Truth, judge, summary, wilson


def example(**truth: object) -> Example:
    request = ChatRequest(messages=(Message(role="user", content="?"),))
    return Example(id="e", kind="k", request=request, truth=Truth(**truth))  # type: ignore[arg-type]


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall(id=f"functions.{name}:0", name=name, arguments=arguments)


WANTED = (call("f", '{"a": 1, "b": "x"}'),)


@pytest.mark.parametrize(
    ("found", "checks"),
    [
        ('{"b": "x", "a": 1.0}', {"called": True, "names": True, "arguments": True}),
        ('{"a": true, "b": "x"}', {"called": True, "names": True, "arguments": False}),
        ('{"a": 1, "b": "x", "c": 2}', {"called": True, "names": True, "arguments": False}),
        ('{"a": 1, "b": "x"', {"called": True, "names": True, "arguments": False}),
    ],
)
def test_arguments_are_equal_as_json_values(found: str, checks: dict[str, bool]) -> None:
    score = judge(example(calls=WANTED), Folded(None, (call("f", found),), ()))
    assert score.checks == checks and score.right == all(checks.values())


def test_another_function_is_wrong_and_the_reason_shows_it() -> None:
    score = judge(example(calls=WANTED), Folded(None, (call("g", "{}"),), ()))
    assert not score.right and "g({})" in score.reason


def test_several_calls_may_come_in_any_order_but_none_may_lack() -> None:
    a, b = call("f", '{"x": 1}'), call("f", '{"x": 2}')
    assert judge(example(calls=(a, b)), Folded(None, (b, a), ())).right
    assert not judge(example(calls=(a, b)), Folded(None, (a,), ())).right
    assert not judge(example(calls=(a, b)), Folded(None, (a, a), ())).right


def test_a_call_is_wrong_where_words_were_asked() -> None:
    assert not judge(example(), Folded("Hello", (call("f", "{}"),), ())).right
    assert judge(example(), Folded("Hello", (), ())).right
    assert not judge(example(), Folded(None, (), ())).right


def test_text_is_exact_and_mentions_ignore_case() -> None:
    assert judge(example(text="a b"), Folded("a b", (), ())).right
    assert not judge(example(text="a b"), Folded("a b c", (), ())).right
    assert judge(example(mentions=("Sunny",)), Folded("It is sunny.", (), ())).right
    assert not judge(example(mentions=("Sunny", "Oslo")), Folded("It is sunny.", (), ())).right


@pytest.mark.parametrize(  # R: binom::binom.confint(x, n, methods = "wilson"), to four places
    ("right", "total", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (190, 200, 0.9104, 0.9726)]
)
def test_wilson_interval_is_the_published_one(right: int, total: int, low: float, high: float) -> None:
    interval = wilson(right, total)
    assert interval.low == pytest.approx(low, abs=1e-4) and interval.high == pytest.approx(high, abs=1e-4)


def test_no_examples_say_nothing() -> None:
    assert wilson(0, 0)[1:] == (0.0, 1.0, 0)


def test_summary_counts_every_check_by_kind() -> None:
    good, bad = Folded(None, WANTED, ()), Folded("no", (), ())
    counts = summary([judge(example(calls=WANTED), answer) for answer in (good, bad, bad, bad)])
    assert counts["k"]["right"].share == 0.25 and counts["k"]["called"].total == 4
