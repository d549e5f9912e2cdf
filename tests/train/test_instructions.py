"""Instructions: one text that follows, one that does not, for each of them."""

from __future__ import annotations

from typing import Any

import pytest

from baltoro.errors import RecipeError
from baltoro.train.instructions import CHECKS, Instruction, follows

CASES: list[tuple[str, Any, str, str]] = [
    ("max_words", 3, "one two three", "one two three four"),
    ("min_words", 3, "one two-fold three", "one two-fold"),
    ("max_characters", 5, " abcde ", "abcdef"),
    ("sentences", 2, "It costs 3.5 dollars. Take it!", "It costs 3.5 dollars, take it."),
    ("sentences", 1, 'He said "no"', "No. Yes."),
    ("paragraphs", 2, "a\n\nb", "a\nb"),
    ("bullets", 2, "List:\n- a\n* b", "- a\n-b"),
    ("contains", "red boat", "The Red boat.", "The red boats."),
    ("avoids", "boat", "A boathouse.", "A boat."),
    ("starts_with", "Dear", "  Dear you", "dear you"),
    ("ends_with", "Yours.", "x Yours. ", "Yours. x"),
    ("json", "", "[1, 2]", "[1, 2"),
    ("json", "a b", '```json\n{"a": 1, "b": null, "c": 2}\n```', '{"a": 1}'),
    ("json", "a", '{"a": 1}', '["a"]'),
    ("lowercase", True, "so it is 5", "So it is"),
    ("uppercase", True, "ÄH 5", "äH"),
    ("no_commas", True, "a; b", "a, b"),
    ("no_commas", False, "a, b", "a; b"),
]


@pytest.mark.parametrize(("name", "value", "good", "bad"), CASES)
def test_one_text_follows_and_another_does_not(name: str, value: Any, good: str, bad: str) -> None:
    instruction = Instruction(name, value)
    assert follows(instruction, good)
    assert not follows(instruction, bad)
    assert not follows(instruction, " \n")  # saying nothing is no way to obey


def test_every_check_has_a_case() -> None:
    assert {name for name, *_ in CASES} == CHECKS.keys()


@pytest.mark.parametrize(("name", "value"), [("max_word", 3), ("max_words", "3"), ("max_words", -1), ("json", True)])
def test_an_unknown_instruction_or_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=name):
        Instruction(name, value)
