"""One Chromium for all tests of the chat page. Where none is installed they are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.conftest import Address
from tests.server.web.browser import PROGRAM, Browser
from tests.server.web.tab import Tab


@pytest.fixture(scope="session")
def tab() -> Iterator[Tab]:
    if PROGRAM is None:
        pytest.skip("no chromium here")
    browser = Browser()
    yield Tab(browser)
    browser.close()


@pytest.fixture
def page(tab: Tab, server: Address) -> Iterator[Tab]:
    """The chat page, never visited before.

    After every test the console must be empty but for what the test announced, and no request may have left for
    another origin.
    """
    tab.begin(f"{server.url}/")
    yield tab
    assert not [line for line in tab.complaints() if tab.expected is None or tab.expected not in line]
    for request in tab.requests():
        assert request["url"].startswith((f"{server.url}/", f"blob:{server.url}/")), request["url"]
