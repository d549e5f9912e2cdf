"""How the bytes of a request become a checked body, the same for every dialect.

A body passes three gates, and each refusal names the field: it is JSON that can be spoken about at
all, it has the dialect's fields and no others, and OpenAI's fields that this server cannot honour
stand at their neutral value.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from baltoro.chat.messages import Json
from baltoro.errors import RequestError

MAX_BODY_BYTES = 16 * 2**20  # a full 256K-token context is about 1 MB of text
BODY_TIMEOUT_S = 120.0  # for all of it; 16 MiB need 1.1 Mbit/s
MAX_DEPTH = 100  # levels of nesting; Python recurses about 1000 deep when such a value is printed or compiled


Checked = TypeVar("Checked", bound=BaseModel)


class BodyTooLarge(RequestError):
    """More bytes than any honest request has; answered with 413."""


class BodyTooSlow(RequestError):
    """A body that does not come to its end; answered with 408, and the connection is closed."""


class Strict(BaseModel):
    """A JSON object with these fields only; no "1" for 1 and no 1 for true."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _suggest(cls, value: Any) -> Any:
        """A misspelt field is told before all else; pydantic itself refuses the other unknown ones."""
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        for name in cast(dict[str, Any], value) if isinstance(value, dict) else ():
            near = [] if name in fields else difflib.get_close_matches(name, fields, n=1)
            if near:
                raise PydanticCustomError(
                    "misspelt", "unknown field '{name}'; did you mean '{near}'?", {"name": name, "near": near[0]}
                )
        return cast(Any, value)


def only(*neutral: Json, instead: str = "") -> AfterValidator:
    """A field of the vendor's API that this server honours at these values alone (and at null).

    instead: what does what the client wants
    """

    def check(value: Json) -> Json:
        if value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            return value
        expected = " or ".join(json.dumps(one) for one in neutral)
        raise PydanticCustomError(
            "unsupported_value",
            "not supported by this server; {expected}",
            {"expected": f"only {expected} is accepted" if neutral else instead or "leave it out"},
        )

    return AfterValidator(check)


def by_type(expected: str) -> Discriminator:
    """Choose a union's branch by the JSON type, so that only that branch reports errors. Tags are Python type names."""
    return Discriminator(
        lambda value: type(value).__name__,
        custom_error_type="invalid_type",
        custom_error_message=f"expected {expected}",
    )


# What by_type puts into an error's location. Tags of unions by another word stand in parentheses.
_TAGS = frozenset({"str", "list", "dict"})


def explain(errors: Sequence[Any]) -> RequestError:
    """The first of pydantic's errors in the words of ours."""
    first: Mapping[str, Any] = errors[0]
    kind: str = first["type"]
    steps: Sequence[str | int] = first["loc"][1:]  # [0] is "body"
    param = ""
    for place, step in enumerate(steps, 1):
        unknown = kind == "extra_forbidden" and place == len(steps)  # the client's word, whatever it looks like
        if isinstance(step, int):
            param += f"[{step}]"
        elif unknown or (step not in _TAGS and not step.startswith("(")):
            param += f".{step}" if param else step
    message: str = first["msg"]
    if kind == "extra_forbidden":
        return RequestError(f"unknown field '{param}'", param=param, code="unknown_parameter")
    if kind == "misspelt":
        param = f"{param}.{first['ctx']['name']}" if param else first["ctx"]["name"]
        return RequestError(message, param=param, code="unknown_parameter")
    if kind == "missing":
        return RequestError(
            f"{param or 'the body'} is required", param=param or None, code="missing_required_parameter"
        )
    shown = json.dumps(first["input"], ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    message = message.replace("Input should be", "expected").removeprefix("Value error, ")
    code = kind if kind in ("unsupported_value", "invalid_type") else "invalid_value"
    return RequestError(f"{param or 'the body'} is {shown}: {message}", param=param or None, code=code)


def checked(model: type[Checked], value: Json, *where: str | int) -> Checked:
    """`value` as such an object. where: names and places from the body down to it, for the error."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise explain([{**each, "loc": ("body", *where, *each["loc"])} for each in error.errors()]) from error


def parse_json(raw: bytes) -> Json:
    """A JSON value free of what breaks later: NaN, infinite numbers, halves of characters, endless nesting."""
    try:
        document = json.loads(raw)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: byte {error.start}", code="invalid_json") from error
    except RecursionError as error:
        raise RequestError(f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json") from error
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    level: list[Json] = [document]
    for _ in range(MAX_DEPTH):
        below: list[Json] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(cast(dict[str, Json], value).keys())
                below.extend(cast(dict[str, Json], value).values())
            elif isinstance(value, list):
                below.extend(cast(list[Json], value))
            elif isinstance(value, str):
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise RequestError(
                        "the body has half of a surrogate pair (a lone \\ud800 to \\udfff)", code="invalid_json"
                    ) from error
            elif isinstance(value, float) and not math.isfinite(value):
                raise RequestError(
                    f"the body has the number {value}; JSON has finite numbers only", code="invalid_json"
                )
        if not below:
            return document
        level = below
    raise RequestError(f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")


class _JsonRequest(Request):
    """A request whose body passed parse_json."""

    document: Json

    async def json(self) -> Json:
        return self.document

    async def read(self) -> None:
        kind = self.headers.get("content-type", "missing").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(f"content-type is {kind}; expected application/json", code="invalid_content_type")
        raw = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in self.stream():
                    raw += chunk
                    if len(raw) > MAX_BODY_BYTES:
                        raise BodyTooLarge(f"the body has more than {MAX_BODY_BYTES} bytes", code="request_too_large")
        except TimeoutError as error:
            raise BodyTooSlow(
                f"of the body {len(raw)} bytes came within {BODY_TIMEOUT_S:g} s, and not its end",
                code="request_timeout",
            ) from error
        if not raw:
            raise RequestError("the body is empty; expected a JSON object", code="invalid_json")
        self._body = bytes(raw)
        self.document = parse_json(self._body)


class JsonRoute(APIRoute):
    """A route whose POST bodies are read by our rules before FastAPI checks the fields."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            if request.method == "POST":
                request = _JsonRequest(request.scope, request.receive)
                await request.read()
            return await original(request)

        return handler
