"""What is set reaches the request, or is told at its field."""

from __future__ import annotations

import json

import pytest

from baltoro.chat.messages import ToolChoice
from tests.server.script import Script
from tests.server.web.tab import WEATHER, Tab


def test_settings_reach_the_request(page: Tab, script: Script) -> None:
    page.ask("Plain")
    plain = page.body()
    assert set(plain) == {"model", "messages", "stream", "stream_options"}
    page.set(system="Be brief.", tools=json.dumps(WEATHER["function"]))  # a function alone is declared, too
    assert page.text("#tools-state") == "1 tool: get_weather"
    page.set(temperature="0.25", top_p="0.9", max_tokens="33", seed="-7")
    page.choose("tool_choice", "function:get_weather")
    page.click("[name=parallel_tool_calls]")
    page.ask("With all")
    request = script.requests[-1]
    assert (request.messages[0].role, request.messages[0].content) == ("system", "Be brief.")
    assert (request.temperature, request.top_p, request.max_tokens, request.seed) == (0.25, 0.9, 33, -7)
    assert request.tool_choice == ToolChoice(mode="named", name="get_weather")
    assert request.parallel_tool_calls is False
    assert request.tools[0].declaration == WEATHER


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tools", '[{"type"', "This is not JSON"),
        ("tools", '[{"type": "function", "function": {"name": "a b"}}]', "no good name"),
        ("tools", json.dumps([WEATHER, WEATHER]), "declared twice"),
        ("tools", '[{"type": "builtin_function", "function": {"name": "a"}}]', "builtin_function"),
        ("temperature", "3", None),
        ("seed", "1.5", None),
    ],
)
def test_what_cannot_be_sent_is_told_at_its_field(
    page: Tab, script: Script, field: str, value: str, words: str | None
) -> None:
    page.set(**{field: value})
    page.click("#close-settings")
    page.fill("#message", "Hi")
    page.press("Enter")
    page.until(f"document.activeElement.name === '{field}'")
    if words is not None:
        assert words in page.text("#tools-state")
    assert script.requests == []
    assert page.js("document.querySelector('#message').value") == "Hi"  # nothing is lost


def test_the_second_name_of_the_model_can_be_chosen(page: Tab, script: Script) -> None:
    page.until("document.querySelectorAll('#model option').length === 2")
    page.js("document.querySelector('#model').selectedIndex = 1")
    page.js("document.querySelector('#model').dispatchEvent(new Event('change'))")
    page.ask("Hi")
    assert page.body()["model"] == "moonshotai/Kimi-K2-Instruct"


def test_a_key_that_no_header_can_carry_is_told_at_its_field(page: Tab, script: Script) -> None:
    page.set(key="schlüssel")
    page.press("Tab")
    page.fill("#message", "Hi")
    page.press("Enter")
    page.until("document.activeElement.name === 'key'")
    assert script.requests == []
    page.set(key="sk-1")
    page.press("Tab")
    page.ask("Hi")
    assert len(script.requests) == 1
