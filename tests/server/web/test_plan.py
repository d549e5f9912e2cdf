"""The planner's page in a browser: what is chosen is asked of the server, and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.server.conftest import Address
from tests.server.web.tab import Tab

DRAWN = "document.querySelector('#headline')?.textContent && !document.querySelector('#result.old')"


@pytest.fixture
def planner(tab: Tab, server: Address) -> Iterator[Tab]:
    """/plan, never visited before; in the end its console is empty and it has asked this server alone."""
    tab.expected = None
    show(tab, f"{server.url}/plan", scheme="light")
    yield tab
    assert not [line for line in tab.complaints() if tab.expected is None or tab.expected not in line]
    for request in tab.requests():
        assert request["url"].startswith(f"{server.url}/"), request["url"]


def show(tab: Tab, url: str, *, scheme: str, width: int = 1100) -> None:
    tab.emulate(scheme=scheme, width=width, height=900)
    tab.send("Page.navigate", url="about:blank")
    tab.until("location.href === 'about:blank'")
    tab.browser.events.clear()
    tab.send("Page.navigate", url=url)
    tab.until(f"location.pathname === '/plan' && {DRAWN}")


def choose(tab: Tab, name: str, value: str) -> None:
    tab.js(f"""(() => {{
        const field = document.querySelector('[name={name}]');
        field.value = {json.dumps(value)};
        field.dispatchEvent(new Event("input", {{ bubbles: true }}));
        document.querySelector("#result").classList.add("old");
    }})()""")
    tab.until(DRAWN)


def bars(tab: Tab, kind: str) -> list[float]:
    """Widths in percent of their tracks."""
    return tab.js(f"[...document.querySelectorAll('#memory .track .{kind}')].map(bar => parseFloat(bar.style.width))")


def test_numbers_and_bars_change_with_what_is_chosen(planner: Tab, server: Address) -> None:
    assert "experts from the disk" in planner.text("#headline")  # of a desktop
    assert "9.21 GB" in planner.text("#figures")
    before = planner.text("#headline")
    choose(planner, "machine", "h200-x16")
    assert "all on GPUs, TP8+PP2" in planner.text("#headline") != before
    assert bars(planner, "experts")
    assert "vllm serve /models/kimi-k2-instruct" in planner.text("#commands")
    small = bars(planner, "cache")[0]
    choose(planner, "concurrency", "8")
    assert bars(planner, "cache")[0] > 7 * small
    choose(planner, "context", "15")
    assert planner.text("#context-now") == "32,768"
    assert bars(planner, "cache")[0] < 3 * small
    choose(planner, "format", "w4a16")
    assert "tokens/s in w4a16" in planner.text("#headline")


def test_the_page_says_what_the_server_says(planner: Tab, server: Address) -> None:
    choose(planner, "machine", "m3-ultra")
    choose(planner, "format", "int4")
    asked = {"model": "kimi-k2-instruct", "machine": "m3-ultra", "format": "int4", "context": "131072"}
    document = server.http.get("/plan.json", params=asked).json()
    shown = planner.text("#result")
    assert f"{document['tokens_per_s']['expected']:.2f} (" in shown
    assert document["binding"] in shown
    for each in document["advice"]:
        assert each["change"] in shown


def test_what_does_not_fit_is_said_with_the_bytes_that_are_missing(planner: Tab) -> None:
    choose(planner, "ram", "8GiB")
    assert "does not fit" in planner.text("#headline")
    assert "GB short" in planner.text("#problem")
    assert planner.count("#memory .track") == 0
    choose(planner, "ram", "")
    assert planner.count("#memory .track") > 0
    assert not planner.js("document.querySelector('#problem').checkVisibility()")


def test_a_mistake_in_a_field_is_explained_and_nothing_breaks(planner: Tab) -> None:
    planner.expected = "Failed to load resource"  # the browser's own line about a status of 400
    planner.js("document.querySelector('[name=ram]').value = 'much'")
    planner.js("document.querySelector('#wish').dispatchEvent(new Event('input'))")
    planner.until("document.querySelector('#problem').checkVisibility()")
    assert "a size of 'much'" in planner.text("#problem")


def test_a_plan_is_a_link(planner: Tab, server: Address) -> None:
    show(planner, f"{server.url}/plan?machine=b200-x8&context=32768&concurrency=4&format=fp8", scheme="light")
    assert "all on GPUs, TP8" in planner.text("#headline")
    assert planner.text("#context-now") == "32,768"
    assert planner.js("document.querySelector('[name=machine]').value") == "b200-x8"
    assert "machine=b200-x8" in planner.js("location.search")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_window_and_every_field_has_a_name(
    planner: Tab, server: Address, scheme: str, width: int
) -> None:
    show(planner, f"{server.url}/plan?machine=h200-x16", scheme=scheme, width=width)
    assert planner.js("document.documentElement.scrollWidth <= innerWidth")
    names = planner.names()
    assert all(name for _, name in names), names
    assert {"Model", "Machine", "RAM", "Format"} <= {name for _, name in names}
