"""Contrast, narrow screens, keyboards, and what those hear who do not see the page."""

from __future__ import annotations

import json
import re

import pytest

from baltoro.chat.messages import Finished, TextDelta
from baltoro.errors import QueueFull
from tests.server.script import USAGE, Script
from tests.server.web.tab import IDLE, REFUSED, TWO_CALLS, WEATHER, Tab, say

CONTRAST = """(() => {
    const light = (rgb) => {
      const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const ground = (element) => {
      for (let each = element; each; each = each.parentElement) {
        const color = parse(getComputedStyle(each).backgroundColor);
        if (color.length === 3 || color[3] === 1) return color;
      }
    };
    const poor = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let seen = 0;
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement;
      if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
      seen++;
      const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(texts.currentNode.data);
    }
    return { seen, poor };
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast_in_both_themes(page: Tab, script: Script, scheme: str) -> None:
    page.expected = REFUSED
    page.emulate(scheme=scheme, width=1100, height=800)
    script.deltas = [*TWO_CALLS[:6], Finished("length", USAGE)]
    page.ask("Weather?")
    say(script, "# Title\n\nText with `code`\n\n> quoted\n\n```py\nx = 1\n```\n\na|b\n-|-\n1|2", "length")
    page.ask("More")
    script.refusal = QueueFull("1024 wait", retry_after_s=7)
    page.ask("Again")
    page.set(tools="[")
    found = page.js(CONTRAST)
    assert found["seen"] > 40
    assert not found["poor"]
    background = page.js("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 60) == (scheme == "dark")


def test_a_phone_shows_everything_in_its_width(page: Tab, script: Script) -> None:
    page.emulate(scheme="light", width=360, height=640)
    say(script, f"{'long' * 60}\n\n```\n{'code ' * 60}\n```\n\n{'a|' * 30}\n{'-|' * 30}\n{'1|' * 30}")
    page.ask("word" * 60)
    script.deltas = TWO_CALLS
    page.ask("Weather?")
    for _ in range(2):
        assert page.js("document.documentElement.scrollWidth") <= 360
        assert page.js("document.querySelector('#scroll').scrollWidth <= document.querySelector('#scroll').clientWidth")
        page.js("document.querySelector('#open-settings').click()")
        assert page.js("document.querySelector('#settings').getBoundingClientRect().width") >= 340
        assert page.js("document.querySelector('#settings').scrollWidth") <= 360
        page.click("#close-settings")


def test_the_keyboard_is_enough(page: Tab, script: Script) -> None:
    assert page.js("document.activeElement.id") == "message"
    page.type("One")
    page.press("Enter", shift=True)
    page.type("two")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelector('.answer')")
    assert script.requests[-1].messages[0].content == "One\ntwo"
    page.press("Tab")
    assert page.js("document.activeElement.id") == "send"
    page.js("document.querySelector('#open-settings').focus()")
    page.press("Enter")
    assert page.js("document.activeElement.name") == "system"
    page.press("Escape")
    assert page.js("document.querySelector('#settings').hidden") is True
    assert page.js("document.activeElement.id") == "open-settings"
    page.press("Tab")
    assert "Conversation" not in page.js("document.activeElement.ariaLabel ?? ''")
    assert page.js("document.activeElement.closest('.question') !== null")  # the head, then the conversation


def test_everything_that_can_be_operated_has_a_name(page: Tab, script: Script) -> None:
    script.deltas = TWO_CALLS
    page.set(tools=json.dumps([WEATHER]))
    page.ask("Weather?")
    names = page.names()
    assert ("textbox", "Message") in names and ("textbox", "Result of get_weather") in names
    assert len(names) > 20
    assert not [role for role, name in names if not name.strip()]


def test_the_page_follows_an_answer_only_while_its_reader_does(page: Tab, script: Script) -> None:
    at_end = "document.querySelector('#scroll').scrollTop + document.querySelector('#scroll').clientHeight > " \
             "document.querySelector('#scroll').scrollHeight - 20"  # fmt: skip
    say(script, "line\n\n" * 60)
    page.ask("Long")
    page.until(at_end)
    script.deltas = [TextDelta("begun"), 0.3, TextDelta("\n\nline" * 40), Finished("stop", USAGE)]
    page.fill("#message", "More")
    page.press("Enter")
    page.until("document.querySelector('#log').innerText.includes('begun')")
    page.js("document.querySelector('#scroll').scrollTop = 0")
    page.until(IDLE)
    assert page.js("document.querySelector('#scroll').scrollTop") == 0
