"""Answers in Anthropic's form: what its own client folds from events is the whole message."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from baltoro.chat.messages import ArgumentsDelta, CallBegun, Delta, Finished, FinishReason, PromptRead, TextDelta, Usage
from baltoro.chat.parser import TextParser
from baltoro.errors import EngineError
from baltoro.server import anthropic_writer
from baltoro.server.anthropic_writer import Writer

USAGE = Usage(prompt_tokens=11, completion_tokens=4, cached_tokens=2)
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


async def play(deltas: Iterable[Delta]) -> AsyncGenerator[Delta]:
    for delta in (PromptRead(Usage(prompt_tokens=11, completion_tokens=0, cached_tokens=2)), *deltas):
        yield delta


def written(writer: Writer, deltas: Iterable[Delta]) -> list[dict[str, Any]]:
    async def read() -> list[str]:
        return [event async for event in writer.events(play(deltas))]

    parsed: list[dict[str, Any]] = []
    for event in asyncio.run(read()):
        name, data, *rest = event.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {parsed[-1]['type']}" and rest == ["", ""]
    return parsed


def folded(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """By the accumulator of Anthropic's own client."""
    message, pieces = None, {}
    for event in events:
        message = accumulate_event(event=EVENTS.validate_python(event), current_snapshot=message, json_bufs=pieces)
    assert message is not None
    return message.to_dict(mode="json", exclude_unset=False, warnings=False)


def whole(writer: Writer, deltas: Iterable[Delta]) -> dict[str, Any]:
    message = Message.model_validate(asyncio.run(writer.whole(play(deltas))))
    return message.to_dict(mode="json", exclude_unset=False)


def spoken(text: str, cuts: Iterable[int], reason: FinishReason) -> list[Delta]:
    """`text` through the parser, in pieces that end at `cuts`."""
    parser = TextParser()
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    deltas = [d for start, end in zip(edges, edges[1:], strict=False) for d in parser.push(text[start:end])]
    return [*deltas, *parser.finish(), Finished(reason, USAGE)]


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=6)
ARGUMENTS = st.dictionaries(
    st.text(max_size=4), SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS)
)
CALLS = st.lists(st.tuples(st.sampled_from(["get_weather", "a-b", "x"]), ARGUMENTS, st.booleans()), max_size=3)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def answer(text: str, calls: Iterable[tuple[str, Any, bool]]) -> str:
    said = [
        f"<|tool_call_begin|>functions.{name}:{at}<|tool_call_argument_begin|>"
        f"{json.dumps(arguments, ensure_ascii=escaped)}<|tool_call_end|>"
        for at, (name, arguments, escaped) in enumerate(calls)
    ]
    return text + f"<|tool_calls_section_begin|>{''.join(said)}<|tool_calls_section_end|>" * bool(said)


@settings(max_examples=150, deadline=None)
@given(
    text=TEXTS,
    calls=CALLS,
    tail=TEXTS.filter(lambda text: text.strip()) | st.just(""),
    cuts=st.lists(st.integers(0, 999), max_size=8),
    cut_off=st.integers(0, 999),
)
def test_an_answer_cut_anywhere_and_ended_anywhere_folds_to_the_whole_message(
    text: str, calls: list[Any], tail: str, cuts: list[int], cut_off: int
) -> None:
    said = answer(text, calls) + tail
    writer = Writer("tiny", max_tokens=4)
    plain = whole(writer, spoken(said, [], "tool_calls" if calls else "stop"))
    assert folded(written(writer, spoken(said, cuts, "tool_calls" if calls else "stop"))) == plain
    assert [block["input"] for block in plain["content"] if block["type"] == "tool_use"] == [call[1] for call in calls]
    assert "".join(block["text"] for block in plain["content"] if block["type"] == "text") == text + tail
    short = said[: cut_off % (len(said) + 1)]  # max_tokens in the middle of a word, a marker, a call
    assert folded(written(writer, spoken(short, cuts, "length"))) == whole(writer, spoken(short, [], "length"))


@given(text=TEXTS, calls=CALLS, tail=TEXTS)
@settings(max_examples=30, deadline=None)
def test_blocks_begin_and_end_one_after_the_other(text: str, calls: list[Any], tail: str) -> None:
    events = written(Writer("tiny", max_tokens=4), spoken(answer(text, calls) + tail, range(0, 99, 3), "stop"))
    assert events[0]["type"] == "message_start"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    opened, next_index = None, 0
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert opened is None and event["index"] == next_index
            opened, next_index = next_index, next_index + 1
        else:
            assert event["index"] == opened
            opened = None if event["type"] == "content_block_stop" else opened
    assert opened is None


def test_ids_of_calls_are_what_anthropic_allows_and_never_come_twice() -> None:
    deltas = spoken(answer("", [("a.b:c", {}, False), ("a.b:c", {}, False)]), [], "tool_calls")
    ids = [block["id"] for _ in range(2) for block in whole(Writer("tiny", max_tokens=4), deltas)["content"]]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", each) for each in ids)
    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    ("finished", "reason", "sequence"),
    [
        (Finished("stop", USAGE), "end_turn", None),
        (Finished("stop", USAGE, "\n\nHuman:"), "stop_sequence", "\n\nHuman:"),
        (Finished("tool_calls", USAGE), "tool_use", None),
        (Finished("length", USAGE), "max_tokens", None),
        (
            Finished("length", Usage(prompt_tokens=11, completion_tokens=3, cached_tokens=2)),
            "model_context_window_exceeded",
            None,
        ),
    ],
)
def test_every_end_has_its_stop_reason(finished: Finished, reason: str, sequence: str | None) -> None:
    writer = Writer("tiny", max_tokens=4)
    for message in (whole(writer, [finished]), folded(written(writer, [finished]))):
        assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
        assert message["usage"]["input_tokens"] == 9  # of 11, 2 from the cache
        assert message["usage"]["cache_read_input_tokens"] == 2
        assert message["usage"]["output_tokens"] == finished.usage.completion_tokens


def test_the_start_tells_what_the_prompt_costs_before_anything_is_said() -> None:
    start = written(Writer("tiny", max_tokens=4), [TextDelta("x"), Finished("stop", USAGE)])[0]["message"]["usage"]
    assert (start["input_tokens"], start["cache_read_input_tokens"], start["output_tokens"]) == (9, 2, 0)


def test_arguments_that_are_no_json_are_an_error_and_not_an_empty_call() -> None:
    deltas = [CallBegun(0, "functions.f:0", "f"), ArgumentsDelta(0, "{'a': 1}"), Finished("tool_calls", USAGE)]
    with pytest.raises(EngineError, match="not JSON"):
        asyncio.run(Writer("tiny", max_tokens=4).whole(play(deltas)))


def test_an_answer_that_was_cancelled_here_is_an_error() -> None:
    with pytest.raises(EngineError, match="cancelled"):
        asyncio.run(Writer("tiny", max_tokens=4).whole(play([Finished("cancelled", USAGE)])))


def test_pings_come_while_the_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anthropic_writer, "PING_S", 0.001)

    async def read() -> list[str]:
        go_on = asyncio.Event()

        async def slow() -> AsyncGenerator[Delta]:
            await go_on.wait()
            yield PromptRead(USAGE)
            yield Finished("stop", USAGE)

        names: list[str] = []
        async for event in Writer("tiny", max_tokens=4).events(slow()):
            names.append(event.split("\n")[0])
            if names.count("event: ping") == 2:
                go_on.set()
        return names

    names = asyncio.run(read())
    first = names.index("event: message_start")
    assert set(names[:first]) == {"event: ping"} and first >= 2
    assert names[first + 1 :] == ["event: message_delta", "event: message_stop"]


def test_a_stream_that_is_closed_before_its_first_delta_leaves_no_task() -> None:
    async def run() -> None:
        closed = asyncio.Event()

        async def never() -> AsyncGenerator[Delta]:
            try:
                await asyncio.Event().wait()
                yield PromptRead(USAGE)
            finally:
                closed.set()

        source = never()
        reading = asyncio.ensure_future(anext(Writer("tiny", max_tokens=4).events(source)))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await source.aclose()  # raises where the source still runs
        assert closed.is_set()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
