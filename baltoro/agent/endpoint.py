"""A model behind an OpenAI-compatible URL, asked as one that runs here is. It tells no token ids."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any, Self, cast

import httpx2

from baltoro.answer import Answer
from baltoro.chat.messages import ChatRequest, FinishReason, Json, Message, ToolCall, Usage
from baltoro.errors import BaltoroError, EngineError, RequestError

TIMEOUT_S = 600.0  # of one answer
TRIES = 4
BUSY = frozenset({408, 429, 500, 502, 503, 504})
LONGEST_WAIT_S = 30.0
_SENT = frozenset({"messages", "tools", "temperature", "max_tokens", "seed", "answer_format", "clip_max_tokens"})
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}


class Endpoint:
    """May be used by several threads at once."""

    def __init__(
        self, url: str, *, model: str | None = None, key: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        """url: with or without /v1; model: what the server calls it, by default the first that it lists"""
        base = url.rstrip("/")
        base = base if base.rsplit("/", 1)[-1].startswith("v") and base.count("/") > 2 else f"{base}/v1"
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._client = httpx2.Client(
            base_url=base, headers=headers, timeout=httpx2.Timeout(timeout_s, connect=10.0), trust_env=False
        )
        self.url = base
        self.name = model or self._first_model()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def complete(self, request: ChatRequest) -> Answer:
        return _answer(self._sent("POST", "/chat/completions", self._body(request)), self.url)

    def _first_model(self) -> str:
        try:
            return str(self._sent("GET", "/models", None)["data"][0]["id"])
        except (LookupError, TypeError) as error:
            raise EngineError(f"{self.url}/models lists no model", hint="--model names the one to ask") from error

    def _body(self, request: ChatRequest) -> dict[str, Json]:
        plain = ChatRequest(messages=())
        for each in fields(ChatRequest):
            if each.name not in _SENT and getattr(request, each.name) != getattr(plain, each.name):
                raise RequestError(
                    f"{each.name} is {getattr(request, each.name)!r}",
                    hint="an endpoint is not asked for that; leave it out",
                )
        body: dict[str, Json] = {
            "model": self.name,
            "messages": [_message(each) for each in request.messages],
            "temperature": request.temperature,
        }
        if request.tools:
            body["tools"] = [each.declaration for each in request.tools]
        if request.max_tokens is not None:
            body["max_completion_tokens"] = request.max_tokens
        if request.seed is not None:
            body["seed"] = request.seed
        if (wanted := request.answer_format) is not None:
            schema = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
            json_schema = {"type": "json_schema", "json_schema": schema}
            body["response_format"] = {"type": "json_object"} if wanted.schema is None else json_schema
        return body

    def _sent(self, method: str, path: str, body: Json) -> Any:
        """The answer's JSON. What may go by itself is tried again, later each time."""
        for attempt in range(TRIES):
            wait_s = min(LONGEST_WAIT_S, 2.0**attempt)
            last = attempt == TRIES - 1
            try:
                response = self._client.request(method, path, json=body)
            except httpx2.TransportError as error:
                if last or isinstance(
                    error, httpx2.ReadTimeout
                ):  # it was at work on it: asked again, it would be twice
                    raise EngineError(f"{self.url}{path}: {error!r}", hint="is the server there?") from error
                time.sleep(wait_s)
                continue
            if response.status_code in BUSY and not last:
                told = response.headers.get("retry-after", "")
                time.sleep(min(LONGEST_WAIT_S, float(told)) if told.isdecimal() else wait_s)
                continue
            if response.status_code != 200:
                raise EngineError(f"{self.url}{path} answers {response.status_code}: {response.text[:500]}")
            try:
                return response.json()
            except ValueError as error:
                raise EngineError(f"{self.url}{path} answers with what is no JSON", hint="is it an API?") from error
        raise AssertionError("the last attempt returns or raises")


def _message(message: Message) -> dict[str, Json]:
    body: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.name is not None:
        body["name"] = message.name
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": each.arguments}}
            for each in message.tool_calls
        ]
    return body


def _answer(body: Any, url: str) -> Answer:
    try:
        choice = body["choices"][0]
        message = choice["message"]
        calls = tuple(
            ToolCall(id=each["id"], name=each["function"]["name"], arguments=each["function"]["arguments"])
            for each in message.get("tool_calls") or ()
        )
        counted = cast("dict[str, Any]", body.get("usage") or {})
        cached = cast("dict[str, Any]", counted.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Answer(
            content=message.get("content") or None,
            tool_calls=calls,
            incomplete=(),
            reason=_REASONS.get(choice.get("finish_reason"), "stop"),
            usage=Usage(
                prompt_tokens=counted.get("prompt_tokens", 0),
                completion_tokens=counted.get("completion_tokens", 0),
                cached_tokens=cached,
            ),
            prompt_ids=(),
            token_ids=(),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise EngineError(f"{url} answers with what is no chat completion: {error!r}") from error


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def open_endpoint(url: str, *, model: str | None, key: str | None) -> Endpoint:
    if not is_url(url):
        raise BaltoroError(f"--url is {url!r}", hint="expected http://HOST:PORT or https://...")
    return Endpoint(url, model=model, key=key)
