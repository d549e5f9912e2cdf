"""GET /docs: what `GET /openapi.json` says, for people. No script, and nothing from another host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Response

from baltoro.chat.messages import Json

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, h2 { font-family: ui-monospace, monospace }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid #8886; padding: .2rem .6rem .2rem 0; vertical-align: top }
"""
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_DEPTH = 3  # of a type that is told; what lies deeper is in openapi.json


def router(document: Callable[[], Mapping[str, Json]]) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def docs() -> Response:
        return Response(page(document()), headers=_HEADERS, media_type="text/html")

    return routes


def page(document: Mapping[str, Any]) -> str:
    title = escape(document["info"]["title"])
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
        f"<h1>{title}</h1><p>{escape(document['info'].get('summary', ''))} ",
        'The same for programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(document, path, method, operation)
    return "\n".join(parts) + "\n</html>\n"


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{escape(method.upper())} {escape(path)}</h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p><table>"
    for each in operation.get("parameters", ()):
        yield _row(each["name"], _kind(document, each["schema"]), bool(each.get("required")))
    content: Mapping[str, Any] = operation.get("requestBody", {}).get("content", {})
    body: Mapping[str, Any] = _followed(document, content["application/json"]["schema"]) if content else {}
    for name, schema in body.get("properties", {}).items():
        yield _row(name, _kind(document, schema), name in body.get("required", ()))
    yield f"</table><p>Answers: {escape(', '.join(operation['responses']))}</p>"


def _row(name: str, kind: str, required: bool) -> str:
    return f"<tr><td><code>{escape(name)}</code>{' *' * required}<td>{escape(kind)}"


def _followed(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _kind(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = _DEPTH) -> str:
    """A schema in a few words."""
    schema = _followed(document, schema)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(_kind(document, each, depth) for each in choices))
    if "enum" in schema or "const" in schema:
        return " or ".join(f'"{each}"' for each in schema.get("enum") or [schema["const"]])
    kind = schema.get("type", "any value")
    if kind == "array" and depth:
        return f"list of ({_kind(document, schema.get('items', {}), depth - 1)})"
    if kind == "object" and depth and schema.get("properties"):
        return "{" + ", ".join(schema["properties"]) + "}"
    bounds = [f"{word} {_shown(schema[key])}" for key, word in _BOUNDS.items() if key in schema]
    return " ".join([kind, *bounds])


def _shown(bound: Any) -> str:
    return str(int(bound) if isinstance(bound, float) and bound.is_integer() else bound)


_BOUNDS = {
    "minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below", "pattern": "like",
}  # fmt: skip
