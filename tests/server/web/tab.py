"""A tab that shows the chat page, and what its tests have the model say."""

from __future__ import annotations

import json
from typing import Any

from baltoro.chat.messages import ArgumentsDelta, CallBegun, CallEnded, Finished, TextDelta
from tests.server.script import USAGE, Script
from tests.server.web.browser import Page

NEVER = 60.0  # seconds; a test stops such an answer
IDLE = "!document.querySelector('#send').hidden"
REFUSED = "Failed to load resource"  # the browser's own line about a status of 400 and more
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TWO_CALLS = [
    TextDelta("I look."),
    CallBegun(0, "functions.get_weather:0", "get_weather"),
    ArgumentsDelta(0, '{"city": '),
    ArgumentsDelta(0, '"Skardu"}'),
    CallEnded(0),
    CallBegun(1, "functions.get_weather:1", "get_weather"),
    ArgumentsDelta(1, '{"city": "Gilgit"}'),
    CallEnded(1),
    Finished("tool_calls", USAGE),
]


class Tab(Page):
    """A page that says which of the console's lines its test expects."""

    expected: str | None = None

    def begin(self, url: str, *, scheme: str = "light", width: int = 1100, height: int = 800) -> None:
        """The page at `url` as somebody sees it who was never there. Starting a tab takes longer than most tests."""
        self.expected = None
        self.emulate(scheme=scheme, width=width, height=height)
        self.forget(url)
        self.browser.events.clear()
        self.go(url)

    def forget(self, url: str, **kept: str) -> None:
        """Leave the page, and its storage with nothing but `kept`."""
        self.send("Page.navigate", url=f"{url}web/icon.svg")  # of the same origin, and without a script
        self.until("location.pathname.endsWith('icon.svg') && document.readyState === 'complete'")
        self.js("localStorage.clear(), sessionStorage.clear()")
        for name, value in kept.items():
            self.js(f"localStorage.setItem('baltoro.{name}', {json.dumps(value)})")

    def choose(self, name: str, value: str) -> None:
        """An option of a select in the settings."""
        self.js(f"""(() => {{
            const field = document.querySelector('[name={name}]');
            field.value = {json.dumps(value)};
            field.dispatchEvent(new Event('input', {{ bubbles: true }}));
        }})()""")

    def ask(self, text: str) -> None:
        """Send a message and wait for the end of its answer."""
        self.fill("#message", text)
        self.press("Enter")
        self.until(f"{IDLE} && document.querySelector('#message').value === ''")

    def set(self, **fields: str) -> None:
        self.js("document.querySelector('#settings').hidden && document.querySelector('#open-settings').click()")
        for name, value in fields.items():
            self.fill(f"[name={name}]", value)

    def body(self) -> dict[str, Any]:
        """Of the last chat request."""
        posts = [each for each in self.requests() if each["method"] == "POST"]
        return json.loads(posts[-1]["postData"])


def say(script: Script, text: str, reason: Any = "stop") -> None:
    script.deltas = [TextDelta(text), Finished(reason, USAGE)]
