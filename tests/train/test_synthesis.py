"""The generator's promises: held out by construction, every call determined by its request, the format K2 speaks."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from itertools import islice
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from baltoro.chat.messages import Message, Tool
from baltoro.chat.tokenizer import Tokenizer
from baltoro.train import vocabulary
from baltoro.train.synthesis import KINDS, Dialogue, blueprints, everyday, generate, natural, smalltalk, tokens
from baltoro.train.synthesis.functions import VERBS
from baltoro.train.synthesis.split import RESERVED_VALUES, is_reserved, side
from baltoro.train.synthesis.tokens import dialogue_documents, write_tokens

CALLING = {"single": 1.0, "multi": 1.0, "result": 1.0, "conversation": 1.0}


@pytest.fixture(scope="module")
def train() -> list[Dialogue]:
    return list(islice(generate(11, "train", weights=CALLING), 300))


@pytest.fixture(scope="module")
def heldout() -> list[Dialogue]:
    return list(islice(generate(11, "heldout", weights=CALLING), 150))


def words(name: str) -> set[str]:
    """get_redLantern.find -> {get, red, lantern, find}"""
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def tools(dialogues: list[Dialogue], everyday_too: bool) -> list[Tool]:
    found = [tool for dialogue in dialogues for tool in dialogue.tools]
    return [tool for tool in found if everyday_too or not (everyday.is_everyday(tool.name) or is_real(tool.name))]


def is_real(name: str) -> bool:
    """Whether a function may be of blueprints.txt; a few invented names are taken for such."""
    parts = words(name.replace("_", " "))
    return any(blueprint.words <= parts for blueprint in blueprints.read())


def function_names(dialogues: list[Dialogue], everyday: bool = True) -> set[str]:
    return {tool.name for tool in tools(dialogues, everyday)}


def parameter_names(dialogues: list[Dialogue], everyday: bool = True) -> set[str]:
    return {name for tool in tools(dialogues, everyday) for name in tool.parameters["properties"]}


def calls(dialogues: list[Dialogue], real: bool = True) -> list[tuple[Dialogue, int, str, dict[str, object]]]:
    return [
        (d, position, call.name, json.loads(str(call.arguments)))
        for d in dialogues
        for position, message in enumerate(d.messages)
        for call in message.tool_calls
        if real or not is_real(call.name)
    ]


@pytest.mark.parametrize("names", [function_names, parameter_names])
def test_every_heldout_name_has_a_word_that_no_training_name_has(names, train, heldout) -> None:
    verbs = {word for verb in VERBS for word in verb.base.split()}  # shared on purpose
    known = {word for name in names(train) for word in words(name)} | verbs
    remembered = [name for name in names(heldout, everyday=False) if not words(name) - known]
    assert remembered == []


def test_invented_names_of_training_are_of_training_words(train) -> None:
    verbs = {word for verb in VERBS for word in verb.base.split()}
    invented = function_names(train, everyday=False) | parameter_names(train, everyday=False)
    assert all(side(word) == "train" for name in invented for word in words(name) - verbs if len(word) > 1)


def test_everyday_functions_of_the_heldout_split_are_never_trained_on(train, heldout) -> None:
    theirs = {name for domain in everyday.domains("heldout") for name in domain.names}
    ours = {name for domain in everyday.domains("train") for name in domain.names}
    assert not theirs & ours and not any(is_reserved(name) for name in theirs | ours)
    assert not {spelled_plainly(name) for name in theirs} & set(map(spelled_plainly, function_names(train)))
    assert {spelled_plainly(name) for name in theirs} & set(map(spelled_plainly, function_names(heldout)))
    assert 0.12 < len(everyday.domains("heldout")) / len(everyday.domains("train")) < 0.22


def spelled_plainly(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def test_values_of_training_contain_no_heldout_word(train) -> None:
    told = {word for *_, arguments in calls(train) for value in strings(arguments) for word in content_words(value)}
    assert len(told) > 300
    assert not {word for word in told if word in RESERVED_VALUES}


def test_names_in_heldout_values_are_unseen(train, heldout) -> None:
    def capitals(dialogues: list[Dialogue]) -> set[str]:
        return {
            word for *_, arguments in calls(dialogues, real=False) for value in strings(arguments)
            for word in re.findall(r"\b[A-Z][a-z]{3,}\b", value)
        } - CALENDAR  # fmt: skip

    assert capitals(heldout) and not capitals(heldout) & capitals(train)


CALENDAR = {
    "January", "February", "March", "April", "June", "July", "August", "September", "October", "November", "December",
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
    "Lake", "East", "Port", "Labs", "Group", "Systems", "Street", "Road", "Lane", "Avenue", "Square", "United", "City",
    "House", "Casa", "Chez", "Café", "Straße", "Grüße",
}  # fmt: skip


def strings(arguments: dict[str, object]) -> list[str]:
    nested = [list(value.values()) if isinstance(value, dict) else value for value in arguments.values()]
    flat = [item for value in nested for item in (value if isinstance(value, list) else [value])]
    return [value for value in flat if isinstance(value, str)]


def content_words(value: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W\d_]+", value)]


def test_reserved_functions_are_never_declared(train, heldout) -> None:
    assert is_reserved("getWeather") and is_reserved("weather.get") is False
    assert not any(is_reserved(name) for name in function_names(train) | function_names(heldout))


def test_every_argument_stands_verbatim_in_the_request(train, heldout) -> None:
    """Numbers may be written as words, booleans are said otherwise: they are compared loosely."""
    for dialogue, position, _, arguments in calls(train + heldout, real=False):
        request = str(dialogue.messages[position - 1].content)
        for value in strings(arguments):
            assert value in request, (value, request)


def test_arguments_are_valid_under_the_declared_schema(train, heldout) -> None:
    for dialogue, _, name, arguments in calls(train + heldout):
        schema = next(tool.parameters for tool in dialogue.tools if tool.name == name)
        jsonschema.Draft202012Validator(schema).validate(arguments)
        declared = list(schema["properties"])
        assert list(arguments) == [key for key in declared if key in arguments]  # keys in the schema's order


def test_calls_are_numbered_through_the_whole_conversation(train) -> None:
    for dialogue in train:
        ids = [call.id for message in dialogue.messages for call in message.tool_calls]
        names = [call.name for message in dialogue.messages for call in message.tool_calls]
        assert ids == [f"functions.{name}:{index}" for index, name in enumerate(names)]


def test_every_call_that_is_not_the_last_turn_has_its_result(train) -> None:
    for dialogue in train:
        for position, message in enumerate(dialogue.messages[:-1]):
            answered = dialogue.messages[position + 1 : position + 1 + len(message.tool_calls)]
            assert [m.tool_call_id for m in answered] == [call.id for call in message.tool_calls]


def test_functions_of_one_dialogue_are_told_apart_by_their_names(train) -> None:
    for dialogue in train:
        assert len({tool.name for tool in dialogue.tools}) == len(dialogue.tools)


def test_what_an_answer_must_mention_is_in_it() -> None:
    for dialogue in islice(generate(3, weights={"result": 1.0, "pick": 1.0}), 300):
        assert all(mention in str(dialogue.messages[-1].content) for mention in dialogue.mentions)


def test_recited_strings_are_in_the_request() -> None:
    for dialogue in islice(generate(4, weights={"recite": 1.0}), 200):
        turns = [m for m in dialogue.messages if m.role != "system"]
        for request, answer in zip(turns[::2], turns[1::2], strict=True):
            assert str(answer.content) in str(request.content)


def test_the_same_seed_gives_the_same_dialogues_from_any_start() -> None:
    whole = list(islice(generate(5), 30))
    assert list(islice(generate(5, start=10), 20)) == whole[10:]
    assert list(islice(generate(6), 30)) != whole


def test_every_kind_occurs_and_ends_with_the_assistant() -> None:
    dialogues = list(islice(generate(8), 400))
    assert {dialogue.kind for dialogue in dialogues} == set(KINDS)
    assert all(dialogue.messages[-1].role == "assistant" for dialogue in dialogues)


def test_token_files_hold_the_documents_and_their_targets(tmp_path: Path) -> None:
    vocabulary.write(vocabulary.train(["get the weather"], 300), tmp_path / "tiktoken.model")
    tokenizer = Tokenizer.open(tmp_path)
    dialogue = Dialogue("chat", (Message(role="user", content="Hi"), Message(role="assistant", content="Hello")))
    meta = write_tokens(tmp_path / "tokens", dialogue_documents([dialogue, dialogue], tokenizer), tokenizer)
    ids, mask, offsets = (np.load(tmp_path / "tokens" / f"{name}.npy") for name in ("ids", "mask", "offsets"))
    assert meta["documents"] == 2 and offsets.tolist() == [0, len(ids) // 2, len(ids)]
    second = slice(offsets[1], offsets[2])
    assert tokenizer.decode(ids[second][mask[second] == 1].tolist()) == "Hello<|im_end|>"
    assert ids.dtype == np.uint16 and json.loads((tmp_path / "tokens" / "meta.json").read_text())["kinds"] == ["chat"]


CARD = json.loads(files("baltoro.eval.tasks").joinpath("nano_card.json").read_text("utf-8"))


def test_no_everyday_phrase_can_become_a_request_of_the_hand_written_evaluation() -> None:
    def plain(text: str) -> str:
        return re.sub(r"[?.]", "", text).lower()

    asked = [plain(case["request"]) for case in CARD["cases"]]
    value = r"""(\S+|"[^"]+"|'[^']+')"""
    for domain in [*everyday.domains("train"), *everyday.domains("heldout")]:
        orders = natural.ORDERS + natural.WISHES
        said = {plain(order).replace("{c}", plain(clause.text)) for clause in domain.clauses for order in orders}
        for text in said | {plain(request.text) for request in domain.requests}:
            pattern = value.join(map(re.escape, re.split(r"\{\w+\}", text)))
            begun = [request for request in asked if request.startswith(text.partition("{")[0])]
            assert not any(re.fullmatch(pattern, request) for request in begun), text


def test_identity_questions_of_the_evaluation_are_not_asked_in_training() -> None:
    def plain(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    asked = {plain(question) for question in smalltalk.questions()}
    assert len(asked) > 100 and not asked & {plain(question) for question in CARD["identity"]}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_phrase_of_an_everyday_domain_gives_its_required_arguments_and_its_answers_know_all_they_tell(
    split,
) -> None:
    for domain in everyday.domains(split):
        required = {argument.key for argument in domain.arguments.values() if argument.required}
        assert len(domain.clauses) + len(domain.requests) >= 4, domain.topic
        for phrase in domain.clauses + domain.requests:
            assert required <= phrase.keys <= domain.arguments.keys(), (domain.topic, phrase)
        for answer in domain.answers:
            told = set(everyday.PLACEHOLDER.findall(answer.sentence))
            assert told and told <= domain.arguments.keys() | domain.returns.keys(), (domain.topic, answer)


def test_half_of_the_calls_are_to_real_functions_and_the_rest_to_everyday_and_invented_ones() -> None:
    names = [name for *_, name, _ in calls(list(islice(generate(12, weights=CALLING), 400)))]
    everyday_share = sum(map(everyday.is_everyday, names)) / len(names)
    real_share = sum(map(is_real, names)) / len(names)
    assert 0.1 < everyday_share < 0.25 and 0.45 < real_share < 0.65


def test_some_arguments_must_be_escaped() -> None:
    raw = [
        str(c.arguments) for d in islice(generate(13, weights=CALLING), 400) for m in d.messages for c in m.tool_calls
    ]
    assert any("\\" in text for text in raw) and any(not text.isascii() for text in raw)
    assert any("{" in text[1:] for text in raw)  # an object inside the arguments


def test_token_files_are_the_same_from_any_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 15)
    vocabulary.write(vocabulary.train(["get the weather"], 300), tmp_path / "tiktoken.model")
    tokenizer = Tokenizer.open(tmp_path)
    plain = dialogue_documents(islice(generate(2), 40), tokenizer)
    written = [write_tokens(tmp_path / "plain", plain, tokenizer, total=40)]
    for processes in (1, 2):
        documents = tokens.generated_documents(2, "train", 40, tmp_path, processes=processes)
        written.append(write_tokens(tmp_path / str(processes), documents, tokenizer, total=40))
    assert written[0] == written[1] == written[2] and written[0]["documents"] == 40
    for name in ("ids", "mask", "offsets", "kinds"):
        files = [(tmp_path / folder / f"{name}.npy").read_bytes() for folder in ("plain", "1", "2")]
        assert files[0] == files[1] == files[2], name
