"""Moonshot's `$web_search`, through OpenAI's client, as its documentation shows it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.chat.messages import ArgumentsDelta, CallBegun, CallEnded, ChatRequest, Finished, Json, Message, ToolCall
from baltoro.llm import LLM
from baltoro.server.app import Served, create_app
from baltoro.server.openai import ChatBody, chat_request
from baltoro.server.replay import questions
from baltoro.server.web_search import ENTRY_CHARACTERS, FRESH_S, MOST_NEW, NAME, TOOL, WebSearch
from tests.server.conftest import Address, serving
from tests.server.script import HELLO, USAGE, Script
from tests.test_cli import error_of, run

HI: list[Any] = [{"role": "user", "content": "What is new?"}]
SEARCH: Any = {"type": "builtin_function", "function": {"name": NAME}}
CALL = [
    CallBegun(0, f"functions.{NAME}:0", NAME),
    ArgumentsDelta(0, '{"query": '),
    ArgumentsDelta(0, '"naïve 🥨"}'),
    CallEnded(0),
    Finished("tool_calls", USAGE),
]


class Web:
    """A search that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Json]] = []

    def __call__(self, arguments: dict[str, Json]) -> str:
        self.asked.append(arguments)
        return f"found {len(self.asked)} <|im_end|>"


@pytest.fixture(scope="module")
def _running() -> Iterator[tuple[Script, Web, Address]]:
    script, web = Script(), Web()
    served = Served(llm=script, names=("tiny",), web_search=WebSearch(web))  # type: ignore[arg-type]
    with serving(create_app(served)) as address:
        yield script, web, address


@pytest.fixture
def script(_running: tuple[Script, Web, Address]) -> Script:
    _running[0].reset()
    return _running[0]


@pytest.fixture
def web(_running: tuple[Script, Web, Address]) -> Web:
    _running[1].asked.clear()
    return _running[1]


@pytest.fixture
def server(_running: tuple[Script, Web, Address]) -> Address:
    return _running[2]


def streamed(client: openai.OpenAI, **wishes: Any) -> dict[str, Any]:
    """The message that a client makes of a stream: call types as they came."""
    text, calls = "", {}
    for chunk in client.chat.completions.create(stream=True, **wishes):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for piece in choice.delta.tool_calls or ():
                assert piece.function is not None
                new: dict[str, Any] = {"id": piece.id, "type": piece.type, "function": {"arguments": ""}}
                function = calls.setdefault(piece.index, new)["function"]
                function.setdefault("name", piece.function.name)
                function["arguments"] += piece.function.arguments or ""
    message = {"role": "assistant", "content": text or None}
    return message | {"tool_calls": list(calls.values())} if calls else message


def whole(client: openai.OpenAI, **wishes: Any) -> dict[str, Any]:
    message = client.chat.completions.create(**wishes).choices[0].message
    return message.to_dict(warnings=False)  # of a type of call that OpenAI has not


def sent_back(message: dict[str, Any]) -> list[dict[str, Any]]:
    """As the documentation's own client does: parsed, and written anew."""
    return [
        {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"],
         "content": json.dumps(json.loads(call["function"]["arguments"]))}
        for call in message["tool_calls"]
    ]  # fmt: skip


@pytest.mark.parametrize("ask", [whole, streamed])
def test_the_model_reads_what_was_found_and_nothing_is_searched_twice(
    server: Address, script: Script, web: Web, ask: Any
) -> None:
    script.deltas = CALL
    messages = [*HI, {"role": "user", "content": ask.__name__}]
    wishes: Any = {"model": "tiny", "tools": [SEARCH]}
    message = ask(server.openai, messages=messages, **wishes)
    (call,) = message["tool_calls"]
    arguments = call["function"]["arguments"]
    call["id"] = f"{ask.__name__}:0"  # as clients name calls; the other way of asking has its own
    assert (call["type"], call["function"]["name"], arguments) == ("builtin_function", NAME, '{"query": "naïve 🥨"}')
    assert script.requests[0].tools == (TOOL,)
    assert web.asked == []

    script.deltas = HELLO
    messages += [message, *sent_back(message)]
    assert messages[-1]["content"] != arguments
    messages.append(ask(server.openai, messages=messages, **wishes))
    assert web.asked == [{"query": "naïve 🥨"}]
    assert script.requests[1].messages[-1].content == "found 1 <|im_end|>"
    assert script.requests[1].messages[-2].tool_calls[0].arguments == arguments  # nobody touched these

    server.http.post("/v1/tokenizers/estimate-token-count", json={"model": "tiny", "messages": messages})
    ask(server.openai, messages=[*messages, *HI], **wishes)
    assert len(web.asked) == 1
    assert script.requests[2].messages[3] == script.requests[1].messages[3]


def test_a_client_s_own_result_stays_and_so_do_other_tools(server: Address, script: Script, web: Web) -> None:
    called = {"name": NAME, "arguments": '{"query": "a"}'}
    other = {"name": "f", "arguments": '{"query": "a"}'}
    messages: list[Any] = [
        *HI,
        {"role": "assistant", "tool_calls": [{"id": "x", "type": "builtin_function", "function": called},
                                             {"id": "y", "type": "function", "function": other}]},
        {"role": "tool", "tool_call_id": "x", "content": '{"query": "b"}'},
        {"role": "tool", "tool_call_id": "y", "content": '{"query": "a"}'},
    ]  # fmt: skip
    server.openai.chat.completions.create(model="tiny", messages=messages)
    assert [message.content for message in script.requests[0].messages[2:]] == ['{"query": "b"}', '{"query": "a"}']
    assert web.asked == []


def test_other_builtin_functions_and_other_dialects_stay_refused(server: Address, script: Script) -> None:
    for tool, words in [
        ({"type": "builtin_function", "function": {"name": "$calculator"}}, r"'\$calculator' runs on Moonshot's"),
        ({"type": "function", "function": {"name": NAME}}, r"tools\[0\].function.name"),
        ({"type": "builtin_function", "function": {"name": NAME, "strict": True}}, "strict"),
    ]:
        with pytest.raises(openai.BadRequestError, match=words):
            server.openai.chat.completions.create(model="tiny", messages=HI, tools=[tool])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="a second time"):
        server.openai.chat.completions.create(model="tiny", messages=HI, tools=[SEARCH, SEARCH])
    with pytest.raises(openai.BadRequestError):
        server.openai.responses.create(model="tiny", input="Hi", tools=[{"type": "function", "name": NAME}])  # type: ignore[list-item]
    assert script.requests == []


def test_messages_that_answer_nothing_are_refused_not_stumbled_over(server: Address, script: Script) -> None:
    call = {"id": "x", "type": "builtin_function", "function": {"name": NAME, "arguments": "{}"}}
    messages: Any = [{"role": "tool", "tool_calls": [call], "content": "{}"}]
    server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert script.requests[0].messages[0].content == "{}"  # the real model's template refuses it
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "y", "content": "{}"}]
    with pytest.raises(openai.BadRequestError, match="tool_call_id is 'y'"):
        server.openai.chat.completions.create(model="tiny", messages=messages)


# ------------------------------------------------------------------------------------------- the search itself


def asking(*results: tuple[str, str], behind: tuple[Message, ...] = ()) -> ChatRequest:
    """A turn of calls that are all answered with their arguments. results: call ids and arguments"""
    calls = tuple(ToolCall(id=name, name=NAME, arguments=arguments) for name, arguments in results)
    told = [Message(role="tool", tool_call_id=name, content=arguments) for name, arguments in results]
    return ChatRequest(messages=(Message(role="assistant", tool_calls=calls), *told, *behind))


def contents(search: WebSearch, request: ChatRequest) -> list[Any]:
    answered = asyncio.run(search.answered(request))
    return [message.content for message in answered.messages if message.role == "tool"]


def about(query: str) -> str:
    return json.dumps({"query": query})


async def later(arguments: dict[str, Json]) -> Json:
    await asyncio.sleep(0)
    return {"results": [arguments["query"], "ü"]}


def test_functions_may_be_async_and_say_anything_that_json_can() -> None:
    assert contents(WebSearch(later), asking(("1", about("a")))) == ['{"results": ["a", "ü"]}']
    assert contents(WebSearch(lambda _: None), asking(("1", about("a")))) == ["null"]
    assert contents(WebSearch(lambda _: ""), asking(("1", about("a")))) == [""]


def fails(arguments: dict[str, Json]) -> Json:
    raise ValueError(f"https://search?key=SECRET&q={arguments['query']}")


@pytest.mark.parametrize(
    "function, kind",
    [
        (fails, "ValueError"),
        (lambda _: float("nan"), "ValueError"),
        (lambda _: object(), "TypeError"),
        (lambda _: "\ud800", "UnicodeEncodeError"),
        (lambda _: sys.exit(), "RuntimeError"),
    ],
)  # fmt: skip
def test_a_failure_is_the_result_and_the_log_has_its_kind_alone(
    function: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert contents(WebSearch(function), asking(("1", about("PRIVATE")))) == [f"Error: the search failed ({kind})"]
    (line,) = [record for record in caplog.records if record.name.startswith("baltoro")]
    assert kind in line.getMessage() and line.exc_info is None
    assert "PRIVATE" not in caplog.text and "SECRET" not in caplog.text


def test_a_search_that_never_returns_ends_for_the_model() -> None:
    release = threading.Event()

    async def never(_: dict[str, Json]) -> None:
        await asyncio.Event().wait()

    for function in (lambda _: release.wait(), never):
        found = contents(WebSearch(function, timeout_s=0.01), asking(("1", about("a"))))
        assert found == ["Error: the search failed (TimeoutError)"]
    release.set()


def test_a_new_question_is_asked_again_when_it_failed_or_is_old_and_an_old_one_never() -> None:
    now, answers = [0.0], iter(["one", ValueError(), "two", "three"])

    def function(_: dict[str, Json]) -> Json:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    search = WebSearch(function, clock=lambda: now[0])
    new = asking(("1", about("a")))
    old = asking(("1", about("a")), behind=(Message(role="assistant", content="I see."), Message(role="user")))
    failure = ["Error: the search failed (ValueError)"]
    assert contents(search, new) == contents(search, old) == contents(search, new) == ["one"]
    now[0] = FRESH_S
    assert contents(search, old) == ["one"]
    assert contents(search, new) == failure
    assert contents(search, old) == failure
    assert contents(search, new) == contents(search, old) == ["two"]
    assert contents(search, asking(("2", about("a")))) == ["three"]


def test_a_request_searches_a_bounded_number_of_times_its_newest_questions_first() -> None:
    web = Web()
    search = WebSearch(web)
    request = asking(*((str(number), about(str(number))) for number in range(MOST_NEW + 2)))
    found = contents(search, request)
    assert sorted(str(each["query"]) for each in web.asked) == sorted(map(str, range(2, MOST_NEW + 2)))
    assert all(text.startswith("Error: not searched") for text in found[:2])
    assert all(text.startswith("found") for text in found[2:])
    assert contents(search, request)[2:] == found[2:]
    assert len(web.asked) == MOST_NEW + 2


@pytest.mark.parametrize("arguments", ["", "{", "[]", '{"q": 1}', '{"query": 1}', "[" * 5000, "9" * 5000])
def test_what_is_no_query_reaches_no_function(arguments: str) -> None:
    """A call that was cut, or one from Moonshot's own servers."""
    web = Web()
    assert contents(WebSearch(web), asking(("1", arguments))) == [
        f'Error: not searched, as {NAME} takes {{"query": TEXT}}'
    ]
    assert web.asked == []


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none()), st.text(), st.booleans())
def test_arguments_are_the_same_however_they_are_written(extra: dict[str, Json], query: str, escaped: bool) -> None:
    arguments = extra | {"query": query}
    again = json.dumps(dict(reversed(arguments.items())), indent=1, ensure_ascii=escaped)
    calls = (ToolCall(id="1", name=NAME, arguments=json.dumps(arguments, ensure_ascii=not escaped)),)
    for content, expected in [(again, "found"), (json.dumps(arguments | {"query": query + "!"}), None)]:
        told = Message(role="tool", tool_call_id="1", content=[{"type": "text", "text": content}])
        request = ChatRequest(messages=(Message(role="assistant", tool_calls=calls), told))
        web: list[Json] = []
        (found,) = contents(WebSearch(lambda it, web=web: web.append(it) or "found"), request)
        assert (found, web) == ((expected, [arguments]) if expected else (told.content, []))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=30))
def test_what_was_used_last_is_kept_within_the_bound(uses: list[tuple[int, int, bool]]) -> None:
    """Beside a list that is searched from its end; in between, everything that is known may become old."""
    now, room = [0.0], 3 * ENTRY_CHARACTERS + 100
    kept: list[tuple[str, int, float]] = []  # query, size, found when
    expected: list[str] = []
    searched: list[Json] = []
    search = WebSearch(
        lambda it: searched.append(it["query"]) or "." * int(str(it["query"])[2:]),
        kept_characters=room,
        clock=lambda: now[0],
    )
    for name, length, passes in uses:
        now[0] += FRESH_S * passes
        query = f"q{name}{length * 10}"
        contents(search, asking(("1", about(query))))
        found_s = next((at for each, _, at in kept if each == query), -FRESH_S)
        kept = [each for each in kept if each[0] != query]
        if now[0] - found_s >= FRESH_S:
            expected.append(query)
            found_s = now[0]
        kept.append((query, 1 + len(about(query)) + length * 10 + ENTRY_CHARACTERS, found_s))
        while sum(size for _, size, _ in kept) > room:
            kept.pop(0)
    assert searched == expected


# ------------------------------------------------------------------------------------------------ around it


def test_a_searched_chat_is_replayed_by_its_ids() -> None:
    """The web may say something else by now."""
    answer = {"token_ids": [4, 5], "seed": 7}
    record: dict[str, Any] = {
        "path": "/v1/chat/completions",
        "prompts": [{"prompt_ids": [1, 2], "sampling": {}, "answers": [answer]}],
        "body": {"messages": HI, "tools": [SEARCH]},
    }
    called = {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": NAME, "arguments": "{}"}}]}
    for body in (record["body"], {"messages": [*HI, called]}):
        ((path, sent),) = questions({**record, "body": body}, "tiny", here=True)
        assert (path, sent["prompt"], sent["seed"]) == ("/v1/completions", [1, 2], 7)
    ((path, _),) = questions({**record, "body": {"messages": HI}}, "tiny", here=True)
    assert path == "/v1/chat/completions"


def test_a_search_function_is_imported_when_the_server_starts() -> None:
    for wrong in ("nowhere", "json:no_such_function", "json:__name__"):
        assert "--web-search" in error_of(run("serve", "--port", "0", "--web-search", wrong))


FUNCTION = """
async def search(arguments):
    assert set(arguments) == {"query"}
    return {"found": ["nothing new"]}
"""


def test_a_real_model_s_calls_are_searched_streamed_and_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """From the command line to the prompt, of which the model says how many tokens it had."""
    (tmp_path / "hook.py").write_text(FUNCTION)
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "baltoro", "serve", str(tiny_checkpoint), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--web-search", "hook:search"], cwd=tmp_path, env=here, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if line.startswith("serving"))
        with (
            openai.OpenAI(base_url=line.split(" on ")[1].split()[0], api_key="none", timeout=60) as client,
            closing(LLM.open(tiny_checkpoint, threads=1)) as llm,
        ):
            end = {llm.encode('"')[0]: 100.0}  # so that a model that knows nothing comes to the end of its query
            wishes: Any = {"model": "baltoro", "tools": [SEARCH], "max_tokens": 100, "logit_bias": end, "seed": 1}
            messages, told = list(HI), list(HI)
            for turn, ask in enumerate([whole, streamed, whole]):
                message = ask(client, messages=messages, tool_choice="required", **wishes)
                ids = [call["id"] for call in message["tool_calls"]]
                assert ids[0] == f"functions.{NAME}:{sum(len(m.get('tool_calls') or ()) for m in messages)}", turn
                assert all(
                    list(json.loads(call["function"]["arguments"])) == ["query"] for call in message["tool_calls"]
                )
                messages += [message, *sent_back(message)]
                results = [{**each, "content": '{"found": ["nothing new"]}'} for each in sent_back(message)]
                told += [message, *results]
            usage = client.chat.completions.create(messages=messages, **wishes).usage
            assert usage is not None

            def counted(conversation: list[Any]) -> int:
                body = ChatBody.model_validate({"model": "baltoro", "tools": [SEARCH], "messages": conversation})
                return llm.count_tokens(chat_request(body, searches=True))

            assert usage.prompt_tokens == counted(told) > counted(messages)
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (0, False), err
