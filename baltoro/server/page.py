"""The chat page at `/` and the planner at `/plan`: files of `web/`, as they are, for a browser that asks nobody else.

The pages are clients of /v1/chat/completions and /plan.json like any other. They need no build step, and their
Content-Security-Policy holds what they promise: no request leaves for another origin, no inline script runs, and with
`trusted-types` no text of a model can become HTML, whatever a page's own code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

_FOLDER = Path(__file__).parent / "web"
# By suffix and not from the system's table, which may call scripts text/plain; browsers run no such module.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # kept, and asked about each time: the files of one page belong together
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> _File:
        content = path.read_bytes()
        return cls(content, _TYPES[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        headers = _HEADERS | {"etag": self.etag}
        known = request.headers.get("if-none-match", "")
        if known == "*" or self.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return Response(status_code=304, headers=headers)
        # uvicorn sends no content with an answer to HEAD, and leaves its length as it is.
        return Response(self.content, headers=headers, media_type=self.media_type)


def router() -> APIRouter:
    """GET and HEAD of `/`, `/plan` and `/web/NAME`. HEAD / is also what Claude Code asks before its first request."""
    files = {path.name: _File.read(path) for path in sorted(_FOLDER.iterdir())}
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return files["index.html"].answer(request)

    @routes.api_route("/plan", methods=["GET", "HEAD"])
    async def plan(request: Request) -> Response:
        return files["plan.html"].answer(request)

    @routes.api_route("/web/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "no such file of the pages")
        return files[name].answer(request)

    return routes
