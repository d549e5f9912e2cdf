"""How tokens are chosen, as OpenAI's and vLLM's clients ask for it: fields that chats and completions share.

`min_p`, `top_k`, `repetition_penalty`, `min_tokens`, `stop_token_ids`, `ignore_eos`
and `priority` are vLLM's names.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, cast

from pydantic import AfterValidator, Field, Tag
from pydantic_core import PydanticCustomError

from baltoro.chat.messages import Json, Likelihood
from baltoro.choices import MAX_CHOICES
from baltoro.errors import RequestError
from baltoro.server.body import Strict, by_type, only

MAX_BIASES = 300  # OpenAI's limit

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
MaxTokens = Annotated[int, Field(ge=1, le=2**31)]
StopText = Annotated[str, Field(min_length=1)]
Stop = Annotated[
    Annotated[StopText, Tag("str")] | Annotated[list[StopText], Field(max_length=4), Tag("list")],
    by_type("a string or a list of at most 4 strings"),
]


def _biases(value: dict[str, Json]) -> dict[str, Json]:
    if len(value) > MAX_BIASES:
        raise PydanticCustomError("invalid_value", "expected at most {most} token ids", {"most": MAX_BIASES})
    for key, bias in value.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", key):
            raise PydanticCustomError("invalid_value", "'{key}' is no token id", {"key": key})
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise PydanticCustomError("invalid_value", "token {key}: expected a number from -100 to 100", {"key": key})
    return value


class SamplingBody(Strict):
    """What both doors take. Ranges are OpenAI's where it has the field; `n` choices differ by their seeds."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None  # 0: no limit
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Json], AfterValidator(_biases)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    include_stop_str_in_output: Annotated[Json, only(False)] = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None  # lower runs first


def wishes(body: SamplingBody, max_tokens: int | None) -> dict[str, Any]:
    """The fields of `chat.messages.Wishes` that the client set, but for log-probabilities."""
    if body.min_tokens is not None and max_tokens is not None and body.min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens is {body.min_tokens}, expected at most max_tokens, {max_tokens}",
            param="min_tokens",
            code="invalid_value",
        )
    given: dict[str, Any] = {
        "max_tokens": max_tokens,
        "min_tokens": body.min_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": {int(token): float(cast(float, bias)) for token, bias in (body.logit_bias or {}).items()},
        "seed": body.seed,
        "stop": (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        "stop_token_ids": frozenset(body.stop_token_ids or ()),
        "ignore_eos": body.ignore_eos,
        "priority": body.priority,
    }
    return {name: value for name, value in given.items() if value is not None}


def token_text(token: Likelihood) -> str:
    """A token as text; bytes that are no whole characters in OpenAI's spelling of them, `bytes:\\xe5\\x8c`."""
    try:
        return token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def logprob(token: Likelihood) -> float:
    """JSON has no -inf; vLLM's stand-in."""
    return max(token.logprob, -9999.0)
