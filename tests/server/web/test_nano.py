"""The page with a real server and the embedded model behind it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.server.web.tab import IDLE, Tab


@pytest.fixture(scope="module")
def nano() -> Iterator[str]:
    command = [sys.executable, "-m", "baltoro", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if line.startswith("serving")).split(" on ")[1].split()[0]
        url = url.removesuffix("v1")
        with httpx.Client(transport=httpx.HTTPTransport(retries=20), timeout=60) as client:
            assert client.get(f"{url}health").status_code == 200
        yield url
        process.send_signal(signal.SIGTERM)


def test_nano_answers_and_calls_a_tool(tab: Tab, nano: str) -> None:
    page = tab
    page.begin(nano)
    page.ask("Who are you?")
    assert page.text(".answer .text")
    assert re.search(r"\d+ prompt tokens.* · \d+ generated · first after \d", page.text(".measured"))
    page.click("#new")
    page.click(".welcome button")
    page.choose("tool_choice", "required")
    page.press("Enter")
    page.until("document.querySelector('.pill')?.innerText === 'waiting for a result'")
    assert page.text(".call .name") == "get_weather"
    assert json.loads(page.text(".call pre")).keys() == {"city"}
    page.set(seed="1")
    page.choose("tool_choice", "none")
    page.fill(".give textarea", '{"temperature": 12}')
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    assert page.text("article:last-child .text")
    assert page.complaints() == []
