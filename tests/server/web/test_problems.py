"""What goes wrong, in words for the person in front of the page."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from baltoro.chat.messages import TextDelta
from baltoro.errors import ContextError, DeadlineError, EngineError, QueueFull
from tests.server.script import Script
from tests.server.web.tab import IDLE, REFUSED, Tab, say


@pytest.mark.parametrize(
    ("raised", "title", "words"),
    [
        (QueueFull("1024 wait", retry_after_s=7), "Too many requests at once", "Try again in 7 seconds"),
        (EngineError("it is made anew"), "The model is not available", "The server says: it is made anew"),
        (DeadlineError("60 s are over"), "The answer took longer", "60 s are over"),
        (ContextError("5000 of 4096", code="context_length_exceeded"), "longer than the model's context", "5000"),
        (ZeroDivisionError(), "The server failed", "Its log says why"),
    ],
)
def test_a_refusal_is_told_in_words_and_can_be_tried_again(
    page: Tab, script: Script, raised: Exception, title: str, words: str
) -> None:
    page.expected = REFUSED
    script.refusal = raised
    page.ask("Hi")
    assert title in page.text(".problem strong")
    assert words in page.text(".problem")
    assert page.js("document.querySelector('.problem').role") == "alert"
    script.refusal = None
    page.click(".problem button:last-child")
    page.until(f"{IDLE} && document.querySelector('.answer .text').innerText === 'Hello'")
    assert page.count("article") == 2
    assert [m.content for m in script.requests[-1].messages] == ["Hi"]


def test_a_server_with_keys_is_given_one_for_this_tab_alone(page: Tab, script: Script) -> None:
    page.expected = REFUSED
    script.refusal = HTTPException(401, "no key")
    page.ask("Hi")
    assert page.text(".problem strong") == "This server wants an API key"
    page.click(".problem button")
    assert page.js("document.activeElement.name") == "key"
    page.type("sk-secret")
    page.click("#close-settings")
    page.ask("Hi again")
    assert page.text("article:last-child .problem strong") == "The server does not know this API key"
    script.refusal = None
    page.click("article:last-child .problem button:last-child")
    page.until(IDLE + " && document.querySelectorAll('.problem').length === 1")
    posts = [each for each in page.requests() if each["method"] == "POST"]
    keys = [{name.lower(): value for name, value in each["headers"].items()}.get("authorization") for each in posts]
    assert keys == [None, "Bearer sk-secret", "Bearer sk-secret"]
    assert "sk-secret" not in page.js("JSON.stringify(localStorage)")
    page.reload()
    assert page.js("document.querySelector('[name=key]').value") == "sk-secret"


def test_an_error_in_the_middle_keeps_what_came(page: Tab, script: Script) -> None:
    script.deltas = [TextDelta("So far"), EngineError("the engine stopped")]
    page.ask("Hi")
    assert page.text(".answer .text") == "So far"
    assert page.text(".problem strong") == "The answer broke off"
    assert "the engine stopped" in page.text(".problem")
    page.reload()
    assert "the engine stopped" in page.text(".problem")
    say(script, " so good")
    page.click(".answer .actions button:last-child")
    page.until(f"{IDLE} && document.querySelector('.answer .text').innerText === 'So far so good'")
    assert page.count(".problem") == 0


def test_a_server_that_is_gone_is_told(page: Tab, script: Script) -> None:
    page.expected = "net::ERR"
    speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.send("Network.emulateNetworkConditions", offline=True, **speed)
    page.ask("Hi")
    page.send("Network.emulateNetworkConditions", offline=False, **speed)
    assert page.text(".problem strong") == "The server does not answer"
