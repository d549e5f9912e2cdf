"""Messages and tools -> K2's prompt, as token ids and as text.

A turn is ROLE_TOKEN name <|im_middle|> body <|im_end|>, with nothing between turns. Control tokens come from this file
alone: names, contents, ids and arguments are encoded as ordinary text, so a user who types `<|im_end|>` has typed text.
(The reference template turns it into the control token.)

Source: chat_template.jinja of Kimi-K2-Instruct-0905 at ac6c49f, the same in Kimi-K2-Instruct from 0102674 on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

from baltoro.chat.messages import Json, Message, Tool, ToolCall
from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RequestError

DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
# K2 has no media tokens: in its vocabulary these names are ordinary text.
_IMAGE = "<|media_start|>image<|media_content|><|media_pad|><|media_end|>\n"
_ROLE_TOKENS = {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}
_OTHER_ROLE_TOKEN = "<|im_system|>"  # system, tool, and every role that K2 does not know


@dataclass(frozen=True, slots=True)
class Segment:
    """One control token by name, or a stretch of ordinary text."""

    text: str
    control: bool = False
    learned: bool = False  # an assistant must produce it: a target of training


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, still as segments: text to compare and log, ids to run, a mask to train on."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        return self.ids_and_loss_mask(tokenizer)[0]

    def ids_and_loss_mask(self, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Ids, and True where an assistant must produce them: its text, its calls and its <|im_end|>, no headers.

        Text between two control tokens is encoded in one piece, whatever parts it was put together from, because
        the reference encodes the whole prompt at once and merges across parts.
        """
        ids: list[int] = []
        mask: list[bool] = []
        for (control, learned), run in groupby(self.segments, key=lambda segment: (segment.control, segment.learned)):
            if control:
                new = [tokenizer.special_id(segment.text) for segment in run]
            else:
                new = tokenizer.encode("".join(segment.text for segment in run))
            ids += new
            mask += [learned] * len(new)
        return ids, mask


def render(
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool = True,
    sort_tool_keys: bool = False,
    begins: bool = True,
) -> Rendered:
    """The prompt of K2's own template, byte for byte.

    Call ids are printed as they are; `call_ids.canonicalize` comes before. Image parts print K2's placeholder as the
    template does, though the model cannot see: refusing images is the server's decision. `sort_tool_keys` orders the
    keys of declarations as later tokenizer wrappers of the family do. The reference has no `partial` messages: here
    such a turn stays open behind its text, under its own name, and no other is begun. Without `begins` the messages go
    on behind a conversation that is ids already, and there is no default system turn.
    """
    segments: list[Segment] = []
    if tools:
        segments += _turn(_OTHER_ROLE_TOKEN, "tool_declare", [Segment(_declarations(tools, sort_tool_keys))])
    if begins and messages and messages[0].role != "system":
        # The line break behind the default prompt is an artefact of the reference, and the model is served with it.
        segments += [*_turn(_OTHER_ROLE_TOKEN, "system", [Segment(DEFAULT_SYSTEM)]), Segment("\n")]
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        _check(message, where, is_last=index == len(messages) - 1)
        token = _ROLE_TOKENS.get(message.role, _OTHER_ROLE_TOKEN)
        learned = message.role == "assistant"
        turn = _turn(token, message.name or message.role, _body(message, where), learned=learned)
        segments += turn[:-1] if message.partial else turn  # without its <|im_end|>
    if add_generation_prompt and not (messages and messages[-1].partial):
        segments += _header("<|im_assistant|>", "assistant")
    return Rendered(tuple(segment for segment in segments if segment.text))


def _turn(token: str, name: str, body: Iterable[Segment], *, learned: bool = False) -> list[Segment]:
    parts = [Segment(part.text, part.control, learned) for part in body]
    return [*_header(token, name), *parts, Segment("<|im_end|>", control=True, learned=learned)]


def _header(token: str, name: str) -> list[Segment]:
    return [Segment(token, control=True), Segment(name), Segment("<|im_middle|>", control=True)]


def _body(message: Message, where: str) -> Iterator[Segment]:
    if message.role == "tool":
        yield Segment(f"## Return of {message.tool_call_id}\n")
    yield Segment(content_text(message.content, param=f"{where}.content"))
    if message.tool_calls:
        yield Segment("<|tool_calls_section_begin|>", control=True)
        for index, call in enumerate(message.tool_calls):
            yield Segment("<|tool_call_begin|>", control=True)
            yield Segment(call.id)
            yield Segment("<|tool_call_argument_begin|>", control=True)
            yield Segment(_arguments(call, f"{where}.tool_calls[{index}].arguments"))
            yield Segment("<|tool_call_end|>", control=True)
        yield Segment("<|tool_calls_section_end|>", control=True)


def content_text(content: str | Sequence[Mapping[str, Json]] | None, *, param: str = "content") -> str:
    """A message's content as the template prints it: parts joined without separators, images as placeholders."""
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for index, part in enumerate(content):
        kind, text = part.get("type"), part.get("text")
        if kind == "text" and isinstance(text, str):
            texts.append(text)
        elif kind in ("image", "image_url"):
            texts.append(_IMAGE)
        else:
            found = f"type {kind!r}" if kind != "text" else f"text {text!r}"
            raise RequestError(
                f"{param}[{index}] has {found}, expected a part {{'type': 'text', 'text': STRING}}",
                param=f"{param}[{index}]",
            )
    return "".join(texts)


def _arguments(call: ToolCall, param: str) -> str:
    return call.arguments if isinstance(call.arguments, str) else _json(call.arguments, param, ", ", ": ")


def _declarations(tools: Sequence[Tool], sort_keys: bool) -> str:
    return _json([tool.declaration for tool in tools], "tools", ",", ":", sort_keys=sort_keys)


def _json(value: Json, param: str, comma: str, colon: str, *, sort_keys: bool = False) -> str:
    """As the `tojson` filter of HF's templates prints it: no escapes but JSON's own, keys in the order given."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(comma, colon), sort_keys=sort_keys, default=as_dict)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{param} is not JSON: {error}", param=param) from error


def as_dict(value: object) -> dict[str, Any]:
    """For `json.dumps(default=)`."""
    if isinstance(value, Mapping):  # read-only mappings, which the json module does not know
        return dict(cast("Mapping[str, Any]", value))
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _check(message: Message, where: str, *, is_last: bool) -> None:
    """Refuse what the template would drop without a word, and an open turn that nothing can go on with."""
    if not message.role:
        raise RequestError(f"{where}.role is empty, expected system, user, assistant or tool", param=f"{where}.role")
    if message.role == "tool" and not message.tool_call_id:
        raise RequestError(
            f"{where} is a tool result without tool_call_id",
            hint="give the id of the assistant's call that it answers",
            param=f"{where}.tool_call_id",
        )
    if message.role != "tool" and message.tool_call_id is not None:
        raise RequestError(
            f"{where}.tool_call_id is set on a {message.role!r} message, expected role 'tool'",
            param=f"{where}.tool_call_id",
        )
    if message.role != "assistant" and message.tool_calls:
        raise RequestError(
            f"{where}.tool_calls is set on a {message.role!r} message, expected role 'assistant'",
            param=f"{where}.tool_calls",
        )
    if message.partial and (message.role != "assistant" or not is_last or message.tool_calls):
        found = f"{message.role!r} message" + " with tool_calls" * bool(message.tool_calls)
        place = "" if is_last else " that is not the last one"
        raise RequestError(
            f"{where}.partial is set on a {found}{place}, expected the last message, an assistant's text",
            param=f"{where}.partial",
        )
