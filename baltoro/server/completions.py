"""OpenAI's plain completions: a prompt in text or token ids goes on, without template, tools or grammar.

Several prompts in one body run beside each other; choice i belongs to prompt i // n. `return_token_ids` is
vLLM's: every choice then says which ids it read and made, and log-probabilities belong to these ids one by one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError, ValidationError

from baltoro.chat.messages import CompletionRequest, Echo, Finished, FinishReason, Json, Piece, TokenDelta, Usage
from baltoro.choices import merge, usage
from baltoro.errors import RequestError
from baltoro.server.body import only
from baltoro.server.openai import StreamOptions, check_stream_options, event, noted, usage_json
from baltoro.server.sampling import SamplingBody, TokenId, logprob, token_text, wishes

MAX_PROMPTS = 128
MAX_ANSWERS = 1024  # over all prompts
_Choice = dict[str, Json]


class CompletionBody(SamplingBody):
    """What POST /v1/completions takes."""

    model: str
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] = 16  # OpenAI's and vLLM's default
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None  # of so many likeliest tokens at every place
    echo: bool | None = None  # the prompt stands before its completion; with max_tokens 0 alone
    best_of: Annotated[int, Field(ge=1)] | None = None  # n, or left out: all answers are told
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    user: str | None = None
    # Honoured at these values alone.
    suffix: Annotated[Json, only()] = None

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
    n, prompts = body.n or 1, as_prompts(body.prompt)
    if body.best_of is not None and body.best_of != n:
        raise RequestError(
            f"best_of is {body.best_of}, expected n, {n}: all answers are told",
            param="best_of",
            code="unsupported_value",
        )
    if n * len(prompts) > MAX_ANSWERS:
        raise RequestError(
            f"n is {n} for {len(prompts)} prompts, expected at most {MAX_ANSWERS} answers in all",
            param="n",
            code="invalid_value",
        )
    if body.max_tokens == 0 and not body.echo:
        raise RequestError(
            "max_tokens is 0: expected at least 1 without echo", param="max_tokens", code="invalid_value"
        )
    wanted = wishes(body, body.max_tokens)
    return [
        CompletionRequest(prompt=prompt, echo=bool(body.echo), logprobs=body.logprobs, noted=noted(body), **wanted)
        for prompt in prompts
    ]


class Writer:
    """Writes the answer of one body: whole, or as the events of a stream."""

    def __init__(
        self, model: str, fingerprint: str, prompt_ids: list[list[int]] | None, *, n: int = 1, logprobs: bool = False
    ) -> None:
        """`prompt_ids`: a list for each prompt where the client wants ids, else None. `n`: answers to each prompt."""
        self.prompt_ids = prompt_ids
        self.n = n
        self.logprobs = logprobs
        self._envelope: dict[str, Json] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def _choice(self, index: int, piece: Echo | TokenDelta, reason: FinishReason | None, *, first: bool) -> _Choice:
        echoed = isinstance(piece, Echo)
        tokens = piece.tokens if echoed else (piece,)
        scores = [each for each in tokens if each.token is not None] if self.logprobs else []
        choice: dict[str, Json] = {
            "index": index,
            "text": "".join(each.text for each in tokens),
            "logprobs": _logprobs(scores) if scores else None,
            "finish_reason": reason,
        }
        if self.prompt_ids is not None:
            choice["prompt_token_ids"] = self.prompt_ids[index // self.n] if first else None
            choice["token_ids"] = [] if echoed else [each.token for each in tokens if each.token is not None]
        return choice

    async def whole(self, sources: Sequence[AsyncGenerator[Piece]]) -> dict[str, Json]:
        """sources: the first prompt's `n`, then the next one's"""
        choices = [self._choice(index, _NOTHING, None, first=True) for index in range(len(sources))]
        usages: dict[int, Usage] = {}
        async with aclosing(merge(sources)) as pieces:
            async for index, piece in pieces:
                if isinstance(piece, Finished):
                    choices[index]["finish_reason"] = piece.reason
                    usages[index] = piece.usage
                else:
                    _extend(choices[index], self._choice(index, piece, None, first=False))
        return self._envelope | {"choices": choices, "usage": self._usage(usages)}

    async def events(self, sources: Sequence[AsyncGenerator[Piece]], *, include_usage: bool) -> AsyncGenerator[str]:
        begun: set[int] = set()  # prompts' ids are told with the first chunk of their choice
        usages: dict[int, Usage] = {}
        async with aclosing(merge(sources)) as pieces:
            async for index, piece in pieces:
                reason = None
                if isinstance(piece, Finished):
                    usages[index] = piece.usage
                    piece, reason = _NOTHING, piece.reason
                elif isinstance(piece, TokenDelta) and not (piece.text or piece.likelihoods or self.prompt_ids):
                    continue
                choice = self._choice(index, piece, reason, first=index not in begun)
                begun.add(index)
                yield event(self._envelope | {"choices": [choice]} | ({"usage": None} if include_usage else {}))
        if include_usage:
            yield event(self._envelope | {"choices": [], "usage": self._usage(usages)})
        yield "data: [DONE]\n\n"

    def _usage(self, usages: dict[int, Usage]) -> dict[str, Json]:
        return usage_json(usage([usages[index] for index in range(len(usages))], self.n))


_NOTHING = TokenDelta(None, "")


def _extend(choice: _Choice, piece: _Choice) -> None:
    choice["text"] += piece["text"]
    if choice["logprobs"] is None:
        choice["logprobs"] = piece["logprobs"]
    elif piece["logprobs"] is not None:
        for name, values in piece["logprobs"].items():
            choice["logprobs"][name] += values
    if "token_ids" in choice:
        choice["token_ids"] += piece["token_ids"]


def _logprobs(tokens: Sequence[TokenDelta]) -> dict[str, list[Json]]:
    """The legacy form: four lists, an entry a token; null where a prompt's first token has no probability."""
    told = [(each, each.likelihoods) for each in tokens]
    return {
        "tokens": [each.text if scores is None else token_text(scores.chosen) for each, scores in told],
        "token_logprobs": [None if scores is None else logprob(scores.chosen) for _, scores in told],
        "top_logprobs": [
            None if scores is None else {token_text(each): logprob(each) for each in scores.top} for _, scores in told
        ],
        "text_offset": [each.offset for each in tokens],
    }
