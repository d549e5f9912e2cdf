"""OpenAI's plain completions: a prompt in text or token ids goes on, without template, tools or grammar.

Several prompts in one body run beside each other; choice i belongs to prompt i. `return_token_ids` is
vLLM's: every choice then says which ids it read and made.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError, ValidationError

from baltoro.chat.messages import CompletionRequest, Finished, FinishReason, Json, TokenDelta, Usage
from baltoro.server.body import Strict, only
from baltoro.server.openai import (
    MaxTokens,
    Seed,
    Stop,
    StreamOptions,
    Temperature,
    TopK,
    TopP,
    check_stream_options,
    event,
    stop_texts,
    usage_json,
)

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Pieces = AsyncGenerator[TokenDelta | Finished]
MAX_PROMPTS = 128


class CompletionBody(Strict):
    """What POST /v1/completions takes."""

    model: str
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    max_tokens: MaxTokens = 16  # OpenAI's and vLLM's default
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    user: str | None = None
    # Honoured at these values alone.
    n: Annotated[Json, only(1)] = None
    best_of: Annotated[Json, only(1)] = None
    echo: Annotated[Json, only(False)] = None
    logprobs: Annotated[Json, only()] = None
    suffix: Annotated[Json, only()] = None
    frequency_penalty: Annotated[Json, only(0)] = None
    presence_penalty: Annotated[Json, only(0)] = None
    logit_bias: Annotated[Json, only({})] = None

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _one_kind_of_prompt(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            prompt = handler(value)
        except ValidationError as error:
            raise PydanticCustomError(
                "invalid_type", "expected text, a list of token ids, or a list of either"
            ) from error
        prompts = as_prompts(prompt)
        if not prompts or not all(prompts) or len(prompts) > MAX_PROMPTS:
            raise PydanticCustomError(
                "invalid_value", "expected 1 to {most} prompts, none of them empty", {"most": MAX_PROMPTS}
            )
        return prompt

    @field_validator("max_tokens", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any) -> Any:
        return 16 if value is None else value


def as_prompts(prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    several: list[str | list[int]] = []
    single: list[int] = []
    for part in prompt:
        if isinstance(part, int):
            single.append(part)
        else:
            several.append(part if isinstance(part, str) else list(part))
    return [single] if single else several


def completion_requests(body: CompletionBody) -> list[CompletionRequest]:
    """One request a prompt, in our own words."""
    check_stream_options(body.stream, body.stream_options)
    wishes: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
    }
    given = {name: value for name, value in wishes.items() if value is not None}
    stop = stop_texts(body.stop)
    return [
        CompletionRequest(prompt=prompt, max_tokens=body.max_tokens, stop=stop, **given)
        for prompt in as_prompts(body.prompt)
    ]


async def merge(sources: Sequence[Pieces]) -> AsyncGenerator[tuple[int, TokenDelta | Finished]]:
    """The pieces of all sources as they come, each with the index of its source."""
    waiting = {asyncio.ensure_future(anext(source)): index for index, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                piece = task.result()
                if not isinstance(piece, Finished):
                    waiting[asyncio.ensure_future(anext(sources[index]))] = index
                yield index, piece
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


class Writer:
    """Writes the answer of one body: whole, or as the events of a stream."""

    def __init__(self, model: str, fingerprint: str, prompt_ids: list[list[int]] | None) -> None:
        """`prompt_ids`: a list for each prompt where the client wants ids, else None."""
        self.prompt_ids = prompt_ids
        self._envelope: dict[str, Json] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def _choice(
        self, index: int, text: str, reason: FinishReason | None, prompt_ids: list[int] | None, ids: list[int]
    ) -> dict[str, Json]:
        choice: dict[str, Json] = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        return choice if self.prompt_ids is None else choice | {"prompt_token_ids": prompt_ids, "token_ids": ids}

    async def whole(self, sources: Sequence[Pieces]) -> dict[str, Json]:
        texts = [""] * len(sources)
        ids: list[list[int]] = [[] for _ in sources]
        ends: dict[int, Finished] = {}
        async with aclosing(merge(sources)) as pieces:
            async for index, piece in pieces:
                if isinstance(piece, Finished):
                    ends[index] = piece
                    continue
                texts[index] += piece.text
                if piece.token is not None:
                    ids[index].append(piece.token)
        prompts = self.prompt_ids or [None] * len(sources)
        choices = [self._choice(i, texts[i], ends[i].reason, prompts[i], ids[i]) for i in range(len(sources))]
        return self._envelope | {"choices": choices, "usage": _sum(end.usage for end in ends.values())}

    async def events(self, sources: Sequence[Pieces], *, include_usage: bool) -> AsyncGenerator[str]:
        untold = dict(enumerate(self.prompt_ids or []))  # prompts' ids, told with the first chunk of their choice
        usages: list[Usage] = []
        async with aclosing(merge(sources)) as pieces:
            async for index, piece in pieces:
                if isinstance(piece, Finished):
                    usages.append(piece.usage)
                    choice = self._choice(index, "", piece.reason, untold.pop(index, None), [])
                elif piece.text or self.prompt_ids is not None:
                    ids = [] if piece.token is None else [piece.token]
                    choice = self._choice(index, piece.text, None, untold.pop(index, None), ids)
                else:
                    continue
                yield event(self._envelope | {"choices": [choice]} | ({"usage": None} if include_usage else {}))
        if include_usage:
            yield event(self._envelope | {"choices": [], "usage": _sum(usages)})
        yield "data: [DONE]\n\n"


def _sum(usages: Iterable[Usage]) -> dict[str, Json]:
    each = list(usages)
    return usage_json(
        Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in each),
            completion_tokens=sum(usage.completion_tokens for usage in each),
            cached_tokens=sum(usage.cached_tokens for usage in each),
        )
    )
