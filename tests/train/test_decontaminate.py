"""What an evaluation holds is found in whatever form it comes, and nothing else is."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baltoro
from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.train.synthesis import toolsets
from baltoro.train.synthesis.decontaminate import Evaluations, Repetitions, grams, signature
from baltoro.train.synthesis.dialogues import generate
from baltoro.train.synthesis.tokens import generated_documents
from baltoro.train.synthesis.toolset_sources import said

REQUEST = "Please tell me how many people live in the old harbour of Oslo today"
FUNCTION = {"name": "get_weather", "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}}}


@pytest.fixture
def evaluations(tmp_path: Path) -> Evaluations:
    (tmp_path / "deep").mkdir()
    lines = [{"question": [[{"role": "user", "content": REQUEST}]]}, {"function": [FUNCTION]}]
    (tmp_path / "deep" / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    (tmp_path / "b.json").write_text(
        json.dumps({"tools": [{"function": {"name": "pay", "arguments": {"sum": {}}}}]}, indent=1)
    )
    found = Evaluations()
    found.read(tmp_path)
    return found


def test_functions_are_known_by_name_and_parameters_whatever_their_style(evaluations: Evaluations) -> None:
    assert evaluations.reason([("getWeather", ["City"])], [])
    assert evaluations.reason([("Pay", ["sum"])], []) == "function of an evaluation"
    assert not evaluations.reason([("get_weather", ["city", "day"]), ("weather", ["city"])], [])


def test_written_and_opened_they_know_the_same(evaluations: Evaluations, tmp_path: Path) -> None:
    evaluations.write(tmp_path / "evaluations.npz")
    again = Evaluations.open(tmp_path / "evaluations.npz")
    assert again == evaluations
    assert again.reason([("getWeather", ["City"])], []) and again.reason([], [REQUEST])
    with pytest.raises(RecipeError, match="does not hold hashes"):
        Evaluations.open(tmp_path / "b.json")


def test_a_generated_dialogue_that_has_something_of_an_evaluation_is_left_out(tmp_path: Path) -> None:
    """Of the first function and the first long request that the generator makes, as an evaluation."""
    made = list(islice(generate(5), 60))
    tool = next(d.tools[0] for d in made if d.tools)
    request = next(
        str(m.content) for d in made for m in d.messages if m.role == "user" and len(str(m.content).split()) > 12
    )
    found = Evaluations()
    found.signatures.add(signature(tool.name, tool.parameters["properties"]))  # type: ignore[arg-type]
    found.grams |= {gram & (2**32 - 1) for gram in grams(request)}
    found.write(tmp_path / "evaluations.npz")
    vocabulary = Path(baltoro.__file__).parent / "nano"
    kept = list(generated_documents(5, "train", 60, vocabulary, without=tmp_path / "evaluations.npz", processes=1))
    tokenizer = Tokenizer.open(vocabulary)
    texts = [tokenizer.decode([i for i in document.ids if i < tokenizer.bos]) for document in kept]
    assert 40 <= len(kept) < 60
    assert not any(f'"name":"{tool.name}"' in text or request in text for text in texts)


def test_eight_words_in_a_row_are_a_request_of_the_evaluation(evaluations: Evaluations) -> None:
    assert evaluations.reason([], ["Hi. " + REQUEST.upper()])
    assert evaluations.reason([], ["how many, people live in the old harbour"]) == "request of an evaluation"
    assert not evaluations.reason(
        [], ["many people live in the old harbour", "people live in the new harbour of Oslo today"]
    )


@given(st.lists(st.sampled_from("abcdefg"), max_size=30), st.lists(st.sampled_from("abcdefg"), max_size=30))
def test_texts_share_a_gram_where_they_share_eight_words(left: list[str], right: list[str]) -> None:
    def rows(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[at : at + 8]) for at in range(max(1, len(words) - 7))} - {()}

    assert bool(grams(" ".join(left)) & grams(" ".join(right))) == bool(rows(left) & rows(right))


def test_repetitions_are_found_without_case_and_digits_and_nearly(tmp_path: Path) -> None:
    seen = Repetitions()
    assert seen.repeats(REQUEST) == "" and seen.repeats(REQUEST.lower() + "!") == "repeated"
    assert seen.repeats("Wake me at 7") == "" and seen.repeats("wake me at 9") == "repeated"
    assert seen.repeats(REQUEST + " please") == "nearly repeated"
    assert seen.repeats("Please order seven fresh sandwiches with extra cheese for our team") == ""


@pytest.mark.parametrize(
    ("value", "text", "known"),
    [
        ("New York", "fly to new york!", True), ("York", "in Yorkshire", False), (12000, "pay 12,000 dollars", True),
        (5, "for five nights", True), (5, "for 50 nights", False),
        (0.5, "0.5 km", True), (["a b", 3], "a-b and 3", True),
        (["a b", 4], "a b and 3", False), ({"x": "y"}, "Y", True), ("", "x", False),
    ],
)  # fmt: skip
def test_values_are_said_where_they_can_be_read(value: object, text: str, known: bool) -> None:
    assert said(value, text) is known


def test_a_directory_without_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no JSON"):
        Evaluations().read(tmp_path)


def test_the_tool_sets_in_data_are_conversations_whose_calls_their_requests_determine() -> None:
    file = Path(__file__).parents[2] / "data" / "nano_toolsets.jsonl.gz"
    dialogues = list(islice(toolsets.read(file), 0, None, 7))
    assert len(dialogues) > 150
    signatures = set()
    for dialogue in dialogues:
        known = {tool.name: tool.parameters for tool in dialogue.tools}
        text = ""
        for message in dialogue.messages:
            for call in message.tool_calls:
                arguments = json.loads(str(call.arguments))
                jsonschema.Draft202012Validator(known[call.name]).validate(arguments)
                assert said(arguments, text)
            text += f" {message.content or ''}"
        assert dialogue.messages[-1].role == "assistant"
        signatures |= {signature(name, schema["properties"]) for name, schema in known.items()}
    assert len(signatures) > 150
