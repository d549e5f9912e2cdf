"""What outlives a page: reloads, new chats, files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from baltoro.chat.messages import TextDelta
from tests.server.conftest import Address
from tests.server.script import Script
from tests.server.web.tab import IDLE, NEVER, TWO_CALLS, WEATHER, Tab, say


def test_a_reload_keeps_conversation_settings_and_drafts(page: Tab, script: Script) -> None:
    script.deltas = TWO_CALLS
    page.set(system="Be brief.", tools=json.dumps([WEATHER]), seed="5")
    page.ask("Weather?")
    page.fill(".give textarea", "half a res")
    shown = page.text("#log")
    page.reload()
    assert page.text("#log") == shown
    assert page.js("document.querySelector('.give textarea').value") == "half a res"
    assert page.js("document.querySelector('[name=system]').value") == "Be brief."
    page.fill("#message", "Go on")
    say(script, "Well.")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    assert script.requests[-1].seed == 5


def test_a_reload_in_the_middle_of_an_answer_keeps_what_came(page: Tab, script: Script) -> None:
    script.deltas = [TextDelta("One, two"), NEVER]
    page.fill("#message", "Count")
    page.press("Enter")
    page.until("document.querySelector('.answer .text')?.innerText === 'One, two'")
    page.reload()
    assert script.closed.wait(20)
    assert page.text(".answer .text") == "One, two"
    assert page.text(".measured").startswith("Stopped")


def test_what_another_program_left_in_the_storage_does_no_harm(page: Tab, server: Address) -> None:
    for value in ("{", "null", "7", '{"turns": 7}', '{"turns": [{"role": "assistant"}]}', '{"turns": []}'):
        page.forget(f"{server.url}/", **{"chat.1": value})
        page.go(f"{server.url}/")
        page.ask("Hi")
        assert page.text(".answer .text") == "Hello"


def test_a_new_chat_keeps_the_settings_and_can_be_undone(page: Tab, script: Script) -> None:
    page.set(system="Be brief.")
    page.ask("Hi")
    page.click("#new")
    assert page.count("article") == 0
    page.click("#notice button")
    assert page.text(".answer .text") == "Hello"
    page.click("#new")
    page.ask("Anew")
    assert [m.content for m in script.requests[-1].messages] == ["Be brief.", "Anew"]


def test_an_export_is_a_request_and_comes_back_the_same(
    page: Tab, script: Script, server: Address, tmp_path: Path
) -> None:
    script.deltas = TWO_CALLS
    page.set(system="Be brief.", tools=json.dumps([WEATHER]), temperature="0.5", seed="9")
    page.ask("Weather?")
    page.fill(".give textarea", "clear")
    page.press("Enter")
    path = page.download("#export", tmp_path)
    exported = json.loads(path.read_text())
    assert server.http.post("/v1/chat/completions", json=exported).status_code == 200  # nothing in it is ours alone
    request = script.requests[-1]
    shown = page.text("#log").replace(page.text(".measured"), "")
    page.click("#new")
    page.set(system="", tools="", temperature="", seed="")
    page.choose_file("#file", path)
    page.until("document.querySelectorAll('article').length === 2")
    assert re.sub(r"\s+", " ", page.text("#log")) == re.sub(r"\s+", " ", shown)
    assert json.loads(page.download("#export", tmp_path / "again").read_text()) == exported
    say(script, "Done.")
    page.fill(".give textarea", "snow")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    last = script.requests[-1]
    assert last.messages[:-1] == request.messages
    assert (last.tools, last.temperature, last.seed) == (request.tools, 0.5, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "no “messages”"),
        ('{"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}', "without a call"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "other than text"),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(page: Tab, tmp_path: Path, text: str, words: str) -> None:
    page.ask("Hi")
    path = tmp_path / "bad.json"
    path.write_text(text)
    page.choose_file("#file", path)
    page.until("document.querySelector('#notice').innerText.includes('Nothing was imported')")
    assert words in page.text("#notice")
    assert page.count("article") == 2


def test_two_tabs_show_the_same_conversation(page: Tab, server: Address) -> None:
    other = Tab(page.browser)
    other.go(f"{server.url}/")
    page.ask("Hi")
    other.until("document.querySelector('.answer .text')?.innerText === 'Hello'")
    assert other.complaints() == []
    other.close()
