"""Functions as real interfaces declare them: every wording can be said, and what it says is what the arguments hold."""

from __future__ import annotations

import re
from datetime import datetime
from random import Random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat.schema import Subject, lower
from baltoro.train.synthesis import asking, blueprints, everyday, kinds, numerals
from baltoro.train.synthesis.api import declare_api, make_api
from baltoro.train.synthesis.asking_each import ask_each
from baltoro.train.synthesis.split import is_reserved
from baltoro.train.synthesis.words import lexicon

ALL = blueprints.read()
DAYS = ("today", "tomorrow", "tonight")
SUBJECT = Subject(name="tool", contents="its parameters", param="tools", is_object=True)


def named(blueprint: blueprints.Blueprint) -> str:
    return f"{blueprint.verb} {blueprint.topic}"


def test_every_wording_names_what_is_required_and_only_slots_that_there_are() -> None:
    for blueprint in ALL:
        required = {slot.key for slot in blueprint.slots.values() if slot.required}
        for wording in blueprint.wordings:
            assert required <= wording.needs <= wording.keys <= blueprint.slots.keys(), named(blueprint)
        assert blueprint.wordings and blueprint.slots


def test_functions_of_evaluation_are_not_those_of_training() -> None:
    train, heldout = blueprints.blueprints("train"), blueprints.blueprints("heldout")
    assert len(train) + len(heldout) == len(ALL) and len(train) > 300 and len(heldout) > 40
    assert not {(b.verb, b.topic) for b in train} & {(b.verb, b.topic) for b in heldout}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_calls_are_valid_under_schemas_that_the_grammar_accepts(split) -> None:
    r, words = Random(1), lexicon(split)
    nested = 0
    for _ in range(400):
        function = make_api(r, words, nested=r.random() < 0.3)
        assert function is not None
        schema = function.tool.parameters
        lower(schema, SUBJECT)
        said = asking.ask(r, words, function)
        jsonschema.Draft202012Validator(schema).validate(said.arguments)
        assert not is_reserved(function.name) and not everyday.is_everyday(function.name)
        assert list(said.arguments) == [key for key in schema["properties"] if key in said.arguments]
        request = re.sub(r"\ban (?=\w)", "a ", said.request).casefold()  # "a" may have become "an" inside a value
        assert all(
            re.sub(r"\ban (?=\w)", "a ", text).casefold() in request for text in said.texts.values() if text not in DAYS
        ), said
        nested += function.nested
    assert nested > 100


def test_every_blueprint_is_declared_and_asked_for() -> None:
    for blueprint in ALL:
        r, words = Random(blueprint.topic), lexicon(blueprint.split)
        required = {slot.key for slot in blueprint.slots.values() if slot.required}
        for _ in range(2):
            function = declare_api(r, words, blueprint)
            said = asking.ask(r, words, function)
            assert required <= said.texts.keys(), named(blueprint)
            assert not re.search(r"\{[a-z_]+[:}]", said.request), said.request
            for made in (ask_each(r, words, function) for _ in range(2)):
                if made is not None:
                    assert len(made[1]) > 1 and len({str(each.arguments) for each in made[1]}) == len(made[1])


def number(text: str) -> float:
    """What a person reads in "$1,200", "3 million" or "5k"; an independent reading of numerals.written."""
    text = re.sub(r"[$€,%]|dollars|euros|USD|EUR|percent", "", text).strip()
    factor = 1
    for ending, size in (("thousand", 1000), ("k", 1000), ("K", 1000), ("million", 10**6)):
        if text.endswith(ending):
            text, factor = text.removesuffix(ending), size
    return float(text) * factor


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.one_of(st.integers(0, 10**7), st.floats(0.01, 10**6).map(lambda x: round(x, 2))))
def test_written_numbers_are_read_as_themselves(seed: int, value: float) -> None:
    assert number(numerals.written(Random(seed), value)) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (85, "eighty-five"), (105, "one hundred five"),
     (12_300, "twelve thousand three hundred")],
)  # fmt: skip
def test_numbers_in_words(value: int, words: str) -> None:
    assert numerals.in_words(value) == words


def test_money_and_percentages_mean_what_the_description_says() -> None:
    words = lexicon("train")
    for seed in range(200):
        r = Random(seed)
        money, share = kinds.declare(r, "money"), kinds.declare(r, "percent")
        value = money.make(r, words)
        assert number(value.text) == pytest.approx(value.json)
        rate = share.make(r, words)
        fraction = "%" in rate.text or "percent" in rate.text
        scale = 100 if fraction and share.strict else 1
        assert number(rate.text) == pytest.approx(rate.json * scale)


SPOKEN = ("%Y-%m-%d", "%B %d, %Y", "%d %B %Y", "the %d of %B %Y", "%b %d %Y", "%m/%d/%Y")


def test_dates_and_times_are_the_same_moment_in_the_request_and_the_arguments() -> None:
    words = lexicon("train")
    seen = set()
    for seed in range(300):
        r = Random(seed)
        kind = kinds.declare(r, "date")
        value = kind.make(r, words)
        if kind.strict:
            plain = re.sub(r"(?<=\d)(st|nd|rd|th)\b", "", value.text)
            read = [datetime.strptime(plain, form) for form in SPOKEN if parses(plain, form)]
            written = [datetime.strptime(value.json, form) for form in SPOKEN if parses(value.json, form)]
            assert written[0] in read, value
            seen.add(value.text == value.json)
        else:
            assert value.text == value.json
        clock = kinds.declare(r, "time")
        time = clock.make(r, words)
        if clock.strict and time.text != time.json:
            form = "%I:%M %p" if ":" in time.text else "%I %p"
            assert datetime.strptime(time.text, form).strftime("%H:%M") == time.json
    assert seen == {True, False}


def parses(text: str, form: str) -> bool:
    try:
        return bool(datetime.strptime(text, form))
    except ValueError:
        return False


def test_a_format_that_must_be_known_is_always_described() -> None:
    r, words = Random(5), lexicon("train")
    for _ in range(400):
        function = make_api(r, words)
        assert function is not None
        text = str(function.tool.declaration).lower()
        for kind in function.kinds.values():
            if kind.strict:
                assert any(hint.lower() in text for hint in kind.hints), (kind.hints, text)
    assert not any(kinds.declare(Random(seed), "date", described=False).strict for seed in range(50))


@pytest.mark.parametrize("spec", ["place", "person", "fullname", "company", "proper", "noun", "team", "product"])
def test_names_made_for_evaluation_hold_a_word_that_training_never_makes(spec) -> None:
    r = Random(2)
    trained = {word for _ in range(1500) for word in kinds.declare(r, spec).make(r, lexicon("train")).text.split()}
    for _ in range(80):
        value = kinds.declare(r, spec).make(r, lexicon("heldout")).text
        assert not set(value.split()) <= trained, value
