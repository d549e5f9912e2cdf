"""Every reward by hand: what is right, what is nearly right, and what only looks right."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.chat.messages import ToolCall
from baltoro.chat.parser import Folded, IncompleteCall
from baltoro.train import rewards
from baltoro.train.instructions import Instruction
from baltoro.train.rewards import PARTIAL, Wanted


def call(name: str, arguments: Any) -> ToolCall:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return ToolCall(id=f"functions.{name}:0", name=name, arguments=text)


def said(text: str | None = None, *calls: ToolCall, cut: bool = False) -> Folded:
    return Folded(text, calls, (IncompleteCall(id="x", name="x", arguments="{"),) if cut else ())


OSLO = call("weather", {"city": "Oslo", "days": 2})


@pytest.mark.parametrize(
    "found",
    [
        [OSLO],
        [call("weather", '{"days": 2.0,  "city": "Oslo"}')],
        [ToolCall(id="other", name="weather", arguments={"city": "Oslo", "days": 2})],
    ],
)
def test_equal_calls_are_right_however_they_are_written(found: list[ToolCall]) -> None:
    assert rewards.calls([OSLO], said("Let me see.", *found)) == 1.0


def test_a_call_is_worth_more_the_nearer_it_is_and_never_as_much_as_the_right_one() -> None:
    answers = [
        said("It is sunny."),
        said(None, call("weather", "{")),
        said(None, call("weather", {"city": "Rome", "days": 3})),
        said(None, call("weather", {"city": "Oslo", "days": 3})),
        said(None, call("weather", {"city": "Oslo", "days": 2, "unit": "C"})),
        said(None, OSLO),
    ]
    found = [rewards.calls([OSLO], answer) for answer in answers]
    assert found[0] == 0.0
    assert found[1] == found[2]  # the right function, nothing else
    assert all(a < b for a, b in pairwise(found[2:]))
    assert found[-2] < PARTIAL < found[-1] == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        said(None, OSLO, OSLO),  # nobody asked twice
        said(None, OSLO, call("news", {})),
        said(None, OSLO, cut=True),
        said(None, call("weather", {"city": "Oslo", "days": "2"})),
        said(None, call("weather", {"city": "Oslo", "days": True})),
        said(None, call("Weather", {"city": "Oslo", "days": 2})),
        said(None, call("weather", [])),
    ],
)
def test_what_only_looks_right_is_not(answer: Folded) -> None:
    assert rewards.calls([OSLO], answer) <= PARTIAL


def test_several_calls_are_right_in_any_order() -> None:
    rome = call("weather", {"city": "Rome", "days": 1})
    assert rewards.calls([OSLO, rome], said(None, rome, OSLO)) == 1.0
    assert 0 < rewards.calls([OSLO, rome], said(None, rome)) < PARTIAL


def test_a_function_of_the_right_arguments_but_another_name_gets_nothing() -> None:
    assert rewards.calls([OSLO], said(None, call("news", {"city": "Oslo", "days": 2}))) == 0.0


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=4), st.dictionaries(st.text(max_size=3), JSON_VALUES))
def test_a_reward_is_1_exactly_for_equal_arguments(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    def strict(value: Any) -> Any:  # python's 1 == True is not JSON's
        return json.dumps(value, sort_keys=True)

    value = rewards.calls([call("f", wanted)], said(None, call("f", found)))
    assert 0.0 <= value <= 1.0
    assert (value == 1.0) == (strict(wanted) == strict(found))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42), ("= -3.5", -3.5), ("1,234,567.25 in all", 1234567.25), ("about 1e3", 1000),
        ("first 3, then 7", 7), ("it is 3/4", 0.75), ("so -6/4.", -1.5), ("\\boxed{12} of 90", 12), ("−8", -8),
        (".5", 0.5), ("20%", 20), ("$5", 5), ("2 + 2 = 4", 4), ("07", 7), ("1/0", 0),
    ],
)  # fmt: skip
def test_the_last_number_counts_in_all_its_spellings(text: str, number: float) -> None:
    assert rewards.numeric(number, text) == 1.0
    assert rewards.numeric(number + 1, text) == 0.0


@pytest.mark.parametrize("text", ["", "none", "version v2", "x1", "1e999"])
def test_a_text_without_a_number_is_worth_nothing(text: str) -> None:
    assert rewards.numeric(1.0, text) == 0.0


def test_a_tolerance_is_absolute() -> None:
    assert rewards.numeric(3.14, "3.15", 0.011) == 1.0
    assert rewards.numeric(3.14, "3.16", 0.011) == 0.0


@given(st.floats(-1e9, 1e9))
def test_every_number_is_read_as_python_writes_it(number: float) -> None:
    assert rewards.last_number(f"It is {number!r}") == number


def test_texts() -> None:
    assert rewards.exact("a b", " a b\n") == 1.0
    assert rewards.exact("a b", "a  b") == 0.0
    assert rewards.mentions(["Oslo", "12 °C"], "in OSLO it is 12 °c") == 1.0
    assert rewards.mentions(["Oslo", "Rome"], "in Oslo") == 0.5


def test_without_wishes_only_words_without_a_call_are_right() -> None:
    assert rewards.reward(Wanted(), said("I cannot do that.")) == 1.0
    assert rewards.reward(Wanted(), said("  ")) == 0.0
    assert rewards.reward(Wanted(), said("I will.", OSLO)) == 0.0
    assert rewards.reward(Wanted(), said("I will.", cut=True)) == 0.0


def test_a_call_where_words_are_wanted_is_worth_nothing() -> None:
    assert rewards.reward(Wanted(text="yes"), said("yes")) == 1.0
    assert rewards.reward(Wanted(text="yes"), said("yes", OSLO)) == 0.0


def test_all_that_is_wanted_must_be_there_for_1() -> None:
    wanted = Wanted(number=4.0, mentions=("boats",), instructions=(Instruction("max_words", 5),))
    assert rewards.reward(wanted, said("There are boats: 4")) == 1.0
    assert rewards.reward(wanted, said("There are ships: 4")) == pytest.approx(PARTIAL * 2 / 3)
    assert rewards.reward(wanted, said("")) == 0.0


def test_states_are_compared_record_by_record() -> None:
    wanted = {"boats": {"a": {"size": 2}, "b": {"size": 3}}}
    assert rewards.same_state(wanted, {"boats": {"b": {"size": 3.0}, "a": {"size": 2}}}) == 1.0
    assert rewards.same_state(wanted, {"boats": {"a": {"size": 2}, "b": {"size": 4}}}) == PARTIAL * 0.5
    assert rewards.same_state(wanted, {}) == 0.0
    assert rewards.same_state({}, {}) == 1.0
