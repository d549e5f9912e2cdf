"""The chat page's files as HTTP serves them. What they do is tested in a browser: test_page_browser.py."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import baltoro.server
from tests.server.conftest import Address

WEB = Path(baltoro.server.__file__).parent / "web"
FILES = sorted(path.name for path in WEB.iterdir())
PATHS = ["/", "/plan", *(f"/web/{name}" for name in FILES)]
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@pytest.mark.parametrize("path", PATHS)
def test_every_file_has_its_type_and_the_policy(server: Address, path: str) -> None:
    name = {"/": "index.html", "/plan": "plan.html"}.get(path, path.removeprefix("/web/"))
    response = server.http.get(path)
    assert response.status_code == 200
    assert response.content == (WEB / name).read_bytes()
    assert response.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    policy = dict(each.strip().split(" ", 1) for each in response.headers["content-security-policy"].split(";"))
    sources = {name: value for name, value in policy.items() if name.endswith("-src")}
    assert sources.pop("default-src") == "'none'"
    assert set(sources.values()) == {"'self'"}  # no other origin, no unsafe-inline, no unsafe-eval
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_its_content(server: Address, path: str) -> None:
    head, get = server.http.head(path), server.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(get.content)
    for name in ("etag", "content-type", "content-security-policy"):
        assert head.headers[name] == get.headers[name]


def test_a_file_that_the_browser_has_is_not_sent_again(server: Address) -> None:
    etag = server.http.get("/").headers["etag"]
    assert etag != server.http.get("/web/main.js").headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = server.http.get("/", headers={"if-none-match": known})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    assert server.http.get("/", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/web/nope.js", "/web/", "/web/../page.py", "/web/..%2Fpage.py", "/web/%2e%2e/app.py"]
)
def test_nothing_else_is_a_file_of_the_page(server: Address, path: str) -> None:
    response = server.http.get(path)
    assert response.status_code == 404
    assert "error" in response.json()
    assert server.http.post("/", json={}).status_code == 405


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host(name: str) -> None:
    text = (WEB / name).read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(?:https?|wss?)://|[\"'(]//\w", text)


def test_the_page_has_no_inline_script_or_style_and_every_file_is_used() -> None:
    used = {"index.html", "plan.html"}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named = dict(attrs)
            assert not [name for name in named if name.startswith("on") or name == "style"]
            assert tag != "style" and (tag != "script" or named.get("src"))
            used.update(Path(value or "").name for name, value in attrs if name in ("src", "href"))

    for page in WEB.glob("*.html"):
        Reader().feed(page.read_text())
    for path in WEB.glob("*.js"):
        used.update(re.findall(r'(?:from |import\()"\./([\w.]+)"', path.read_text()))
    assert used - {"", "plan"} == set(FILES)  # the pages' links to each other are no files


def test_no_script_makes_html_of_text() -> None:
    """The policy would stop it; a reader should not even find it."""
    for path in WEB.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|DOMParser", path.read_text()
        )
