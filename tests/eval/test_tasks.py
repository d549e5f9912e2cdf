"""What counts as an answer: numbers, letters, conclusions, programs, and IFEval's 25 instructions."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from baltoro.eval.tasks.choices import conclusion, letter
from baltoro.eval.tasks.functions import allowed_name, expected_calls, same
from baltoro.eval.tasks.instructions import CHECKS, follows, sentences
from baltoro.eval.tasks.maths import number
from baltoro.eval.tasks.programs import program


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#### 18", "18"), ("a 5\n#### $1,234.50 dollars\n7", "1234.50"), ("so \\boxed{024}.", "24"),
        ("\\boxed{1} then \\boxed{\\frac{3}{4}}", "4"), ("it is 3 or 4.", "4"), ("-7", "-7"), ("none", None),
        ("#### none", None), ("1,000,000", "1000000"), (".5", "0.5"),
    ],
)  # fmt: skip
def test_the_number_of_an_answer(text: str, found: str | None) -> None:
    assert number(text) == (None if found is None else Decimal(found))


@pytest.mark.parametrize(
    ("text", "found"),
    [("Answer: B", "B"), ("answer is (c)", "C"), ("**Answer: D**", "D"), ("Answer: A\nAnswer: B", "B"), ("B", "B"),
     ("C. Rome", "C"), ("Apples", None), ("A man walks", "A"), ("Answer: Because", None), ("", None)],
)  # fmt: skip
def test_the_letter_of_an_answer(text: str, found: str | None) -> None:
    assert letter(text) == found


def test_the_conclusion_of_an_answer() -> None:
    assert conclusion("We see. So the answer is (B).") == "(B)"
    assert conclusion("So the answer is True.\n\nQ: next\nA: So the answer is False.") == "True"
    assert conclusion("just words") == "just words"


def test_the_program_of_an_answer() -> None:
    assert program("Here:\n```python\nx = 1\n```\nor\n```\nlonger = 2\n```") == "longer = 2\n"
    assert program("x = 1") == "x = 1"
    assert program("```\nx = 1") == "x = 1"


def test_calls_of_acebench() -> None:
    assert expected_calls({"f": {"a": 1}}) == [("f", {"a": 1})]
    assert expected_calls([{"f": {}}, {"g_2": {}}]) == [("f", {}), ("g_2", {})]
    assert expected_calls({"f_1": {"a": 1}, "f_2": {"a": 2}}) == [("f", {"a": 1}), ("f", {"a": 2})]
    assert same({"a": ["New-York", 1]}, {"a": ["new york", 1.0]})
    assert not same({"a": True}, {"a": 1})
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert allowed_name("a.b/ü") == "a_b__"


LOREM = "The cat sat on the mat and it was happy."
# For each instruction: arguments, a text that follows it, one that does not. By the paper's table 1.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["cat", "Dog"]}, "Cats and dogs", "cats"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a b A", "a b"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"}, "a b", "a a"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocket", "Rock!"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "q"),
    ("language:response_language", {"language": "de"}, "Das ist nicht der Hund und die Katze.", LOREM),
    ("language:response_language", {"language": "hi"}, "यह एक किताब है और वह मेज पर है", LOREM),
    ("language:response_language", {"language": "hi"}, "यह एक किताब है और वह मेज पर है", "ते एक पुस्तक आहे आणि हे नाही"),
    ("language:response_language", {"language": "ko"}, "안녕하세요", "你好"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "One. Two!", "Dr. No came."),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2}, "One, e.g. this.",
     "We go. You stay?"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two three", "one two"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "hi"},
     "a\n\n\"Hi\" b", "hi\n\na"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] [a b]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\nP.S. b", "a ps b"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "a\nP.P.S. b", "a\nP.S. b"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a*"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     "SECTION 1\na\nSECTION 2\nb", "SECTION 1\na"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\na", "<< >>"),
    ("combination:two_responses", {}, "a******b", "a******a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi", "Hi. Say hi."),
    ("startend:end_checker", {"end_phrase": "the end."}, "This is The End.", "the end. Or not"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "A BIG cat",
     "a BIG cat"),
    ("change_case:english_capital", {}, LOREM.upper(), LOREM),
    ("change_case:english_lowercase", {}, LOREM.lower(), LOREM),
    ("punctuation:no_comma", {}, "a b", "a, b"),
    ("startend:quotation", {}, '"a"', 'a"'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_an_instruction_is_followed_or_not(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert follows(name, good, arguments)
    assert not follows(name, bad, arguments)
    assert not follows(name, " \n", arguments), "nothing follows no instruction"


def test_every_instruction_has_a_case() -> None:
    assert {name for name, *_ in CASES} == CHECKS.keys()
    assert len(CHECKS) == 25


def test_sentences_end_where_people_end_them() -> None:
    assert sentences('Mr. Smith left. He said "go!" Then 3.5 m.') == 3
    assert sentences("No end") == 1
