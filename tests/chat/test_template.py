from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat.messages import Message, Tool, ToolCall
from baltoro.chat.template import Rendered, render
from baltoro.errors import RequestError
from tests import vocabulary
from tests.chat import golden

CASES = golden.rows("golden_chat")
INJECTIONS = {"special_tokens_in_user_text"}
TOKENIZER = vocabulary.tokenizer()
ASSISTANT_TURN = re.compile(r"<\|im_assistant\|>.*?<\|im_middle\|>(.*?<\|im_end\|>)", re.DOTALL)


def message_of(raw: dict[str, Any]) -> Message:
    calls = [
        ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
        for call in raw.get("tool_calls") or []
    ]
    return Message(
        role=raw["role"],
        content=raw.get("content"),
        name=raw.get("name"),
        tool_calls=tuple(calls),
        tool_call_id=raw.get("tool_call_id"),
    )


def tool_of(raw: dict[str, Any]) -> Tool:
    return Tool(name=raw["function"]["name"], parameters=raw["function"].get("parameters", {}), declaration=raw)


def rendered(case: dict[str, Any], *, sort_tool_keys: bool = False) -> Rendered:
    return render(
        [message_of(raw) for raw in case["messages"]],
        [tool_of(raw) for raw in case["tools"] or []],
        add_generation_prompt=case["add_generation_prompt"],
        sort_tool_keys=sort_tool_keys,
    )


def by_name(case: dict[str, Any]) -> str:
    return case["name"]


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_the_prompt_is_the_reference_templates(case: dict[str, Any]) -> None:
    assert rendered(case).text == case["expected"]


@pytest.mark.parametrize("case", [case for case in CASES if "expected_sorted_tools" in case], ids=by_name)
def test_with_sorted_keys_the_prompt_is_the_later_wrappers(case: dict[str, Any]) -> None:
    assert rendered(case, sort_tool_keys=True).text == case["expected_sorted_tools"]


@pytest.mark.parametrize("case", [case for case in CASES if case["name"] not in INJECTIONS], ids=by_name)
def test_the_token_stream_is_the_references(case: dict[str, Any]) -> None:
    """The reference encodes the finished string with every control token allowed."""
    assert rendered(case).ids(TOKENIZER) == TOKENIZER.encode_with_specials(case["expected"])


@pytest.mark.parametrize("case", [case for case in CASES if case["name"] in INJECTIONS], ids=by_name)
def test_a_control_token_typed_by_a_user_stays_text(case: dict[str, Any]) -> None:
    ids = rendered(case).ids(TOKENIZER)
    assert TOKENIZER.decode(ids) == case["expected"]
    controls = [TOKENIZER.decode([token]) for token in ids if token >= TOKENIZER.num_base]
    system, user = ["<|im_system|>", "<|im_middle|>", "<|im_end|>"], ["<|im_user|>", "<|im_middle|>", "<|im_end|>"]
    assert controls == [*system, *user, "<|im_assistant|>", "<|im_middle|>"]
    text = case["messages"][1]["content"]
    inside = TOKENIZER.encode(text)
    assert any(ids[i : i + len(inside)] == inside for i in range(len(ids)))


HOSTILE = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_assistant|>", "<|tool_call_begin|>", "[EOS]", "[BOS]", "a ", "\n", "北", "<|", "|>"]
    ),
    max_size=6,
).map("".join)


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
@settings(max_examples=100, deadline=None)
def test_no_text_of_anyone_becomes_a_control_token(name: str, content: str, arguments: str, result: str) -> None:
    def conversation(name: str, content: str, arguments: str, result: str) -> Rendered:
        call = ToolCall(id=f"functions.{name}:0", name=name, arguments=arguments)
        declaration = {"type": "function", "function": {"name": name, "description": content}}
        return render(
            [
                Message(role="user", content=content, name=name),
                Message(role="assistant", content=[{"type": "text", "text": content}], tool_calls=(call,)),
                Message(role="tool", content=result, tool_call_id=call.id, name=name),
            ],
            [Tool(name=name, parameters={}, declaration=declaration)],
        )

    def controls(ids: list[int]) -> list[int]:
        return [token for token in ids if token >= TOKENIZER.num_base]

    hostile = conversation(name, content, arguments, result)
    assert controls(hostile.ids(TOKENIZER)) == controls(conversation("f", "x", "{}", "y").ids(TOKENIZER))
    assert TOKENIZER.decode(hostile.ids(TOKENIZER)) == hostile.text


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_the_loss_covers_what_an_assistant_writes_and_nothing_else(case: dict[str, Any]) -> None:
    ids, mask = rendered(case).ids_and_loss_mask(TOKENIZER)
    learned = b"".join(TOKENIZER.token_bytes(token) for token, on in zip(ids, mask, strict=True) if on)
    assert learned.decode() == "".join(ASSISTANT_TURN.findall(case["expected"]))


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_what_was_prompted_is_a_prefix_of_the_finished_conversation(case: dict[str, Any]) -> None:
    """A trained continuation starts exactly where generation will: same ids before, only learned ids in the turn."""
    tools = [tool_of(raw) for raw in case["tools"] or []]
    messages = [message_of(raw) for raw in case["messages"]]
    for index, message in enumerate(messages):
        if message.role != "assistant" or message.name:
            continue
        ids, mask = render(messages[: index + 1], tools, add_generation_prompt=False).ids_and_loss_mask(TOKENIZER)
        assert (ids[-1], mask[-1]) == (TOKENIZER.im_end, True)
        if index:  # an empty conversation has no default system turn yet
            prompt = render(messages[:index], tools).ids(TOKENIZER)
            assert ids[: len(prompt)] == prompt
            assert all(mask[len(prompt) :])


def test_parts_of_one_text_are_merged_across_their_border() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    split, whole = (render([Message(role="user", content=content)]).ids(TOKENIZER) for content in (parts, "Hello"))
    assert split == whole


def test_read_only_mappings_print_as_dicts() -> None:
    arguments = MappingProxyType({"where": MappingProxyType({"city": "Zürich"})})
    call = ToolCall(id="functions.f:0", name="f", arguments=arguments)
    text = render([Message(role="assistant", tool_calls=(call,))]).text
    assert '<|tool_call_argument_begin|>{"where": {"city": "Zürich"}}<|tool_call_end|>' in text


USER = Message(role="user", content="x")
CALL = ToolCall(id="functions.f:0", name="f", arguments="{}")


@pytest.mark.parametrize(
    "message, param",
    [
        (Message(role="tool", content="x"), "messages[1].tool_call_id"),
        (Message(role="tool", content="x", tool_call_id=""), "messages[1].tool_call_id"),
        (Message(role="user", content="x", tool_call_id="a"), "messages[1].tool_call_id"),
        (Message(role="user", content="x", tool_calls=(CALL,)), "messages[1].tool_calls"),
        (Message(role="", content="x"), "messages[1].role"),
        (Message(role="user", content=[{"type": "input_audio"}]), "messages[1].content[0]"),
        (Message(role="user", content=[{"type": "text", "text": "a"}, {"type": "text"}]), "messages[1].content[1]"),
        (Message(role="user", content=[{"text": "a"}]), "messages[1].content[0]"),
        (
            Message(role="assistant", tool_calls=(ToolCall(id="a", name="f", arguments={"x": {1, 2}}),)),
            "messages[1].tool_calls[0].arguments",
        ),
    ],
)
def test_a_message_that_cannot_be_rendered_is_refused_by_name(message: Message, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        render([USER, message])
    assert refusal.value.param == param
    assert refusal.value.message.startswith(param.split("]")[0])


LAST_WORDS = [
    case
    for case in CASES
    if case["messages"] and case["messages"][-1]["role"] == "assistant" and not case["messages"][-1].get("tool_calls")
]


@pytest.mark.parametrize("case", LAST_WORDS, ids=by_name)
def test_a_partial_message_is_the_reference_s_turn_without_its_end(case: dict[str, Any]) -> None:
    *before, last = (message_of(raw) for raw in case["messages"])
    whole = case["expected"].removesuffix("<|im_assistant|>assistant<|im_middle|>")
    assert whole.endswith("<|im_end|>")
    tools = [tool_of(raw) for raw in case["tools"] or []]
    opened = render([*before, replace(last, partial=True)], tools)
    assert opened.text == whole.removesuffix("<|im_end|>")
    assert opened.ids(TOKENIZER) == render([*before, last], tools, add_generation_prompt=False).ids(TOKENIZER)[:-1]


def test_a_partial_message_goes_on_under_its_own_name() -> None:
    kelsey = Message(role="assistant", name="Kelsey", content="", partial=True)
    assert render([Message(role="user", content="Hi"), kelsey]).text.endswith("<|im_assistant|>Kelsey<|im_middle|>")


CALLING = Message(role="assistant", tool_calls=(ToolCall(id="functions.f:0", name="f", arguments="{}"),), partial=True)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([Message(role="user", content="Hi", partial=True)], "'user' message, expected"),
        ([Message(role="assistant", content="I", partial=True), Message(role="user", content="Hi")], "not the last"),
        ([CALLING], "with tool_calls"),
    ],
)
def test_only_the_assistant_s_last_text_can_be_partial(messages: list[Message], says: str) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        render(messages)
    assert refused.value.param == "messages[0].partial"


def test_a_conversation_that_goes_on_is_the_whole_one() -> None:
    """Behind an assistant's <|im_end|>, later turns rendered alone are the end of all turns rendered at once."""
    call = ToolCall(id="functions.look:0", name="look", arguments="{}")
    first = [Message(role="user", content="Look!"), Message(role="assistant", content="", tool_calls=(call,))]
    more = [Message(role="tool", content="1", tool_call_id=call.id), Message(role="user", content="Again ä!")]
    begun = render(first, add_generation_prompt=False).ids(TOKENIZER)
    assert begun + render(more, begins=False).ids(TOKENIZER) == render([*first, *more]).ids(TOKENIZER)
