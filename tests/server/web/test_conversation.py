"""Messages, answers and calls, as a person writes, stops, answers and edits them."""

from __future__ import annotations

import json
import re

from baltoro.chat.messages import ArgumentsDelta, Finished, TextDelta, Usage
from tests.server.script import USAGE, Script
from tests.server.web.tab import IDLE, NEVER, TWO_CALLS, WEATHER, Tab, say


def test_an_answer_streams_with_its_counts_and_speed(page: Tab, script: Script) -> None:
    usage = Usage(prompt_tokens=1200, completion_tokens=4, cached_tokens=1024)
    script.deltas = [TextDelta("Hel"), 0.05, TextDelta("lo"), Finished("stop", usage)]
    page.ask("Who are you?")
    assert page.text(".question .text") == "Who are you?"
    assert page.text(".answer .text") == "Hello"
    measured = page.text(".measured")
    assert "1,200 prompt tokens, 1,024 of them cached" in measured
    assert "4 generated" in measured
    assert re.search(r"first after \d+ ms", measured)
    assert re.search(r"[\d.]+ tokens/s", measured)
    assert page.text("#context") == "1,204 of 4,096 tokens"
    page.ask("And who am I?")
    assert [m.content for m in script.requests[-1].messages] == ["Who are you?", "Hello", "And who am I?"]
    assert page.body()["stream"] is True


def test_escape_stops_what_grows_and_continue_goes_on_behind_it(page: Tab, script: Script) -> None:
    script.deltas = [TextDelta("One, two"), NEVER]
    page.fill("#message", "Count")
    page.press("Enter")
    page.until("document.querySelector('.answer .text').innerText === 'One, two'")  # shown before its end
    assert page.js("document.querySelector('#log').ariaBusy") == "true"
    page.press("Escape")
    page.until(IDLE)
    assert script.closed.wait(20)  # the server cancelled it
    assert page.text(".measured").startswith("Stopped")
    say(script, ", three")
    page.click(".answer .actions button:last-child")
    page.until(f"{IDLE} && document.querySelector('.answer .text').innerText === 'One, two, three'")
    assert script.requests[-1].messages[-1].partial
    assert page.count("article") == 2


def test_the_stop_button_stops_too(page: Tab, script: Script) -> None:
    script.deltas = [NEVER]
    page.fill("#message", "Count")
    page.press("Enter")
    page.until("document.querySelector('.status')?.innerText.startsWith('Reading the prompt')")
    page.click("#stop")
    page.until(IDLE)
    assert script.closed.wait(20)
    assert page.js("document.activeElement.id") == "message"


def test_parallel_calls_are_answered_by_hand(page: Tab, script: Script) -> None:
    script.deltas = TWO_CALLS
    page.set(tools=json.dumps([WEATHER]))
    page.ask("Weather?")
    assert page.count(".call") == 2
    assert page.text(".call pre") == '{\n  "city": "Skardu"\n}'
    assert page.text(".pill") == "waiting for a result"
    page.until("document.activeElement.matches('.give textarea')")  # no click is needed
    page.type("clear")
    page.press("Enter")
    assert len(script.requests) == 1  # one result is missing
    assert page.js("document.activeElement.getAttribute('aria-label')") == "Result of get_weather"
    page.type("snow\n<b>and</b> wind")
    say(script, "Clear there, snow here.")
    page.click(".give .primary")
    page.until("document.querySelectorAll('.answer').length === 2 && " + IDLE)
    roles = [(m.role, m.content, m.tool_call_id) for m in script.requests[-1].messages]
    assert roles == [
        ("user", "Weather?", None),
        ("assistant", "I look.", None),
        ("tool", "clear", "functions.get_weather:0"),
        ("tool", "snow\n<b>and</b> wind", "functions.get_weather:1"),
    ]
    assert [c.arguments for c in script.requests[-1].messages[1].tool_calls] == [
        '{"city": "Skardu"}',
        '{"city": "Gilgit"}',
    ]
    assert page.js("[...document.querySelectorAll('.result pre')].map((e) => e.innerText)") == [
        "clear",
        "snow\n<b>and</b> wind",
    ]


def test_a_call_that_was_cut_off_is_shown_and_never_answered(page: Tab, script: Script) -> None:
    script.deltas = [*TWO_CALLS[:6], ArgumentsDelta(1, '{"city": "Gil'), Finished("length", USAGE)]
    page.ask("Weather?")
    assert page.js("[...document.querySelectorAll('.pill')].map((e) => e.innerText)") == [
        "waiting for a result",
        "cut off",
    ]
    say(script, "Clear.")
    page.fill(".give textarea", "clear")
    page.press("Enter")
    page.until("document.querySelectorAll('.answer').length === 2 && " + IDLE)
    assert [call.name for call in script.requests[-1].messages[1].tool_calls] == ["get_weather"]


def test_calls_may_be_left_without_a_result_and_answered_later(page: Tab, script: Script) -> None:
    script.deltas = TWO_CALLS
    page.ask("Weather?")
    say(script, "As you like.")
    page.ask("Never mind")
    assert page.text(".pill") == "not answered"
    page.click(".call .result button")
    page.fill(".give textarea", "clear")
    page.press("Enter")
    page.press("Enter")  # a tool may return nothing
    page.until(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    results = [(m.role, m.content) for m in script.requests[-1].messages[2:]]
    assert results == [("tool", "clear"), ("tool", "")]


def test_a_message_is_edited_and_an_answer_written_anew(page: Tab, script: Script) -> None:
    page.ask("Frist")
    page.ask("Second")
    page.click(".question .actions button:last-child")
    page.js("document.activeElement.select()")
    page.type("First")
    say(script, "Better.")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('article').length === 2")
    assert [m.content for m in script.requests[-1].messages] == ["First"]
    say(script, "Best.")
    page.js("[...document.querySelectorAll('.actions button')].find((b) => b.innerText === 'Regenerate').click()")
    page.until(f"{IDLE} && document.querySelector('.answer .text').innerText === 'Best.'")
    assert [m.content for m in script.requests[-1].messages] == ["First"]
    page.click("#notice button")  # undo
    assert page.text(".answer .text") == "Better."
    page.click(".answer .actions button:nth-child(2)")
    page.js("document.activeElement.select()")
    page.type("By hand.")
    page.press("Enter")
    assert page.text(".answer .text") == "By hand."
    page.ask("Go on")
    assert script.requests[-1].messages[1].content == "By hand."
