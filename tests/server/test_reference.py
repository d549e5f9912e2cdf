"""The page at /docs."""

from __future__ import annotations

from html.parser import HTMLParser

from baltoro.server import reference
from tests.server.conftest import Address


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_names_every_route_and_field_and_nothing_of_another_host(server: Address) -> None:
    response = server.http.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    page = Page(response.text)
    document = server.http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in page.text
    for name in document["components"]["schemas"]["ChatBody"]["properties"]:
        assert name in page.text
    assert not any(tag == "script" or "src" in given for tag, given in page.tags)
    assert [given["href"] for tag, given in page.tags if "href" in given] == ["openapi.json"]
    assert "temperature" in page.text and "number from 0 to 2" in page.text
    assert server.http.get("/redoc").status_code == 404


def test_words_of_the_document_stay_text() -> None:
    hostile = "<script>alert(1)</script>"
    operation = {
        "description": hostile, "responses": {hostile: {}},
        "parameters": [{"name": hostile, "schema": {"type": hostile, "pattern": hostile}, "required": True}],
    }  # fmt: skip
    told = reference.page({"info": {"title": hostile, "summary": hostile}, "paths": {hostile: {hostile: operation}}})
    assert "script" not in {tag for tag, _ in Page(told).tags}
    assert told.count("&lt;script&gt;") == 8 + 1
