"""vLLM: POST /v1/completions with token ids. The fields are the same in 0.12, 0.20 and 0.32."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from baltoro.engine.request import SamplingParams, Scored
from baltoro.engine.upstream.dialect import (
    Ask,
    Chunk,
    Event,
    Heard,
    Malformed,
    ids_of,
    look_for_error,
    number_of,
    scored,
    signed_seed,
)
from baltoro.engine.upstream.tags import structural_tag
from baltoro.errors import RequestError
from baltoro.structure import Document, Structure

LARGEST_BIAS = 100.0  # it cuts larger ones off without a word
MAX_LOGPROBS = 20  # unless it was started with another --max-logprobs
SPELLED = "token_id:"


class Vllm:
    name = "vllm"
    path = "/v1/completions"
    health = "/health"

    def __init__(self, model: str) -> None:
        """model: as the upstream names it"""
        self._model = model

    def check(self, sampling: SamplingParams) -> None:
        for bias in sampling.logit_bias.values():
            if abs(bias) > LARGEST_BIAS:
                raise RequestError(f"logit_bias has {bias:g}, expected -100 to 100 (vLLM's bound)", param="logit_bias")
        if sampling.logprobs is not None and sampling.logprobs > MAX_LOGPROBS:
            raise RequestError(
                f"logprobs is {sampling.logprobs}, expected at most {MAX_LOGPROBS} (vLLM's bound)", param="logprobs"
            )

    def body(self, ask: Ask) -> dict[str, Any]:
        s = ask.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(ask.prompt),
            "max_tokens": s.max_tokens,
            "min_tokens": s.min_tokens,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k or -1,
            "min_p": s.min_p,
            "repetition_penalty": s.repetition_penalty,
            "presence_penalty": s.presence_penalty,
            "frequency_penalty": s.frequency_penalty,
            "stop_token_ids": sorted(s.stop_token_ids),
            "ignore_eos": True,  # what ends an answer is in stop_token_ids, and nothing else
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "stream": True,
        }
        if s.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in s.logit_bias.items()}
        if s.seed is not None:
            body["seed"] = signed_seed(s.seed)
        if s.logprobs is not None:
            body |= {"logprobs": s.logprobs, "return_tokens_as_token_ids": True}
        if ask.allowed is not None:
            body["allowed_token_ids"] = list(ask.allowed)
        elif ask.structure is not None:
            body["structured_outputs"] = _structured(ask.structure)
        return body

    def reader(self) -> Callable[[Event], Chunk]:
        return _read


def _structured(structure: Structure) -> dict[str, Any]:
    if isinstance(structure, Document):
        return {"json": dict(structure.schema)}
    return {"structural_tag": json.dumps(structural_tag(structure), ensure_ascii=False)}


def _read(event: Event) -> Chunk:
    look_for_error(event)
    choices = event.get("choices")
    if not isinstance(choices, list):
        raise Malformed("an event without choices")
    if not choices:  # usage alone
        return Chunk((), over=False)
    choice = cast("dict[str, Any]", choices[0])
    tokens = ids_of(choice.get("token_ids") or [])
    scores = _scores(tokens, choice.get("logprobs")) if choice.get("logprobs") else [None] * len(tokens)
    heard = [Heard(token, score) for token, score in zip(tokens, scores, strict=True)]
    return Chunk(heard, over=choice.get("finish_reason") is not None)


def _scores(tokens: list[int], logprobs: Any) -> list[Scored]:
    own, tops = logprobs.get("token_logprobs"), logprobs.get("top_logprobs")
    if not isinstance(own, list) or len(cast("list[object]", own)) != len(tokens):
        raise Malformed("log-probabilities and token ids of an event differ in number")
    found: list[Scored] = []
    for place, token in enumerate(tokens):
        top: dict[str, Any] = (tops[place] if tops else None) or {}
        pairs = [(int(name.removeprefix(SPELLED)), number_of(value)) for name, value in top.items()]
        logprob = number_of(cast("list[object]", own)[place])
        # It lists the likeliest and the chosen one: as many as were asked for, or one more.
        found.append(scored(token, logprob, pairs, len(pairs)))
    return found
