"""The nano evaluation: a model that knows the truth scores 100 %, one that says nothing scores nothing."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path

import pytest

from baltoro.chat.messages import Message, ToolCall
from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.eval.score import Example
from baltoro.eval.tasks import nano
from baltoro.train import vocabulary
from baltoro.train.synthesis import generate
from baltoro.train.synthesis.heldout import write_heldout
from baltoro.train.synthesis.split import is_reserved


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("vocabulary")
    texts = [json.dumps(tool.declaration) for e in nano.examples(5) for tool in e.request.tools]
    vocabulary.write(vocabulary.train(texts, 400), directory / "tiktoken.model")
    return Tokenizer.open(directory)


def truthful(example: Example, tokenizer: Tokenizer) -> list[int]:
    """The ids that a model which knows the truth would generate."""
    start = nano.num_calls(example)
    calls = tuple(
        ToolCall(id=f"functions.{call.name}:{start + i}", name=call.name, arguments=json.dumps(call.arguments))
        for i, call in enumerate(example.truth.calls)
    )
    text = example.truth.text or " and ".join(example.truth.mentions)
    answer = Message(role="assistant", content=None if calls else text or "No.", tool_calls=calls)
    whole = render([*example.request.messages, answer], example.request.tools, add_generation_prompt=False)
    return whole.ids(tokenizer)[len(nano.prompt(example, tokenizer)) :]


def test_a_model_that_knows_the_truth_is_always_right(tokenizer: Tokenizer) -> None:
    chosen = nano.examples(12)
    answers = {tuple(nano.prompt(e, tokenizer)): truthful(e, tokenizer) for e in chosen}
    scores = nano.evaluate(lambda prompts, _asked: [answers[tuple(p)] for p in prompts], tokenizer, chosen)
    assert [score.reason for score in scores if not score.right] == []
    assert [score.example for score in scores] == [e.id for e in chosen]


def test_a_model_that_stops_at_once_is_never_right(tokenizer: Tokenizer) -> None:
    scores = nano.evaluate(lambda prompts, _asked: [[tokenizer.im_end]] * len(prompts), tokenizer, nano.examples(5))
    assert not any(score.right for score in scores)


def test_what_follows_a_stop_id_does_not_count(tokenizer: Tokenizer) -> None:
    example = nano.examples(1, ["identity"])[0]
    late = [*tokenizer.encode("Hello"), tokenizer.im_end, *tokenizer.encode("Baltoro")]
    assert nano.read(late, example, tokenizer).content == "Hello"


def test_every_kind_has_examples_and_the_table_shows_them(tokenizer: Tokenizer) -> None:
    chosen = nano.examples(4)
    assert {e.kind for e in chosen} == set(nano.KINDS)
    shown = nano.table(nano.evaluate(lambda prompts, _asked: [[] for _ in prompts], tokenizer, chosen))
    assert [line.split()[0] for line in shown.splitlines()] == list(nano.KINDS)


def test_hand_written_functions_are_those_kept_out_of_training() -> None:
    tools = {tool.name for e in nano.examples(100, ["card"]) for tool in e.request.tools}
    assert len(tools) == 11 and all(map(is_reserved, tools))


def test_hand_written_arguments_stand_in_their_requests() -> None:
    for e in nano.examples(100, ["card"]):
        for value in e.truth.calls[0].arguments.values():  # type: ignore[union-attr]
            assert str(value) in str(e.request.messages[-1].content)


def test_no_function_of_the_heldout_examples_is_declared_in_training() -> None:
    names = {call.name for e in nano.examples(200, ["single", "schema"]) for call in e.truth.calls}
    declared = {tool.name for dialogue in islice(generate(14), 1500) for tool in dialogue.tools}
    assert len(names) > 250 and len(declared) > 1500 and not names & declared


def test_the_shipped_examples_of_schemas_are_what_the_generator_writes(tmp_path: Path) -> None:
    """A change of the generator must rewrite them on purpose: scores are compared over time."""
    write_heldout(tmp_path / "few.jsonl.gz", 3)
    again = _rows(tmp_path / "few.jsonl.gz")
    shipped = {row["id"]: row for row in _rows(Path(nano.__file__).with_name("nano_schemas.jsonl.gz"))}
    assert all(shipped[row["id"]] == row for row in again)


def test_the_examples_of_the_first_edition_are_those_it_was_scored_on() -> None:
    file = Path(nano.__file__).with_name("nano_heldout.jsonl.gz")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest == "19de6ff29f1f570e0eab149260fe2fb36421c9b5e07d5f9494683f1bc42c121d"


def _rows(path: Path) -> list[dict[str, str]]:
    import gzip

    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
