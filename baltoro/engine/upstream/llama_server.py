"""llama.cpp's llama-server: POST /completion with token ids.

It ends where its own vocabulary says, not where a request does: an answer that is to go on is asked for again from
there, and one that is to end is cut by closing the connection (draft.py decides both). It streams whole characters, so
the ids of tokens that end inside of one never come; its count of tokens tells, and what is asked for again then
is short enough to be told at once and completely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
)
from baltoro.engine.upstream.draft import SHORT
from baltoro.errors import RequestError
from baltoro.structure import Document

MAX_ALTERNATIVES = 1000  # ids in a grammar; more are cheaper to forbid than to allow


class LlamaServer:
    name = "llama-server"
    path = "/completion"
    health = "/health"

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def check(self, sampling: SamplingParams) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(sampling, name):
                raise RequestError(
                    f"{name} is {getattr(sampling, name)}, expected 0: llama-server counts the prompt's tokens too",
                    param=name,
                )

    def body(self, ask: Ask) -> dict[str, Any]:
        s = ask.sampling
        body: dict[str, Any] = {
            "prompt": list(ask.prompt),
            "n_predict": s.max_tokens,
            "samplers": ["penalties", "temperature", "min_p", "top_k", "top_p"],  # our order
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "min_p": s.min_p,
            "repeat_penalty": s.repetition_penalty,
            "repeat_last_n": len(ask.prompt) + s.max_tokens,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": s.max_tokens > SHORT,
        }
        bias: list[list[Any]] = [[token, value] for token, value in s.logit_bias.items()]
        if ask.allowed is not None and len(ask.allowed) <= MAX_ALTERNATIVES:
            body["grammar"] = "root ::= " + " | ".join(f"<[{token}]>" for token in ask.allowed)
        elif ask.allowed is not None:
            bias += [[token, False] for token in sorted(set(range(self._vocab_size)).difference(ask.allowed))]
        elif isinstance(ask.structure, Document):
            body["json_schema"] = dict(ask.structure.schema)
        # Of free text with tags it is told nothing: its grammars spell control tokens, which a tag is made of.
        if bias:
            body["logit_bias"] = bias
        if s.seed is not None:
            body["seed"] = s.seed % (2**32 - 1)  # the last one means "any"
        if s.logprobs is not None:
            body["n_probs"] = max(1, s.logprobs)
        return body

    def reader(self) -> Callable[[Event], Chunk]:
        seen = 0

        def read(event: Event) -> Chunk:
            nonlocal seen
            look_for_error(event)
            tokens, over, total = ids_of(event.get("tokens")), event.get("stop") is True, event.get("tokens_predicted")
            if not isinstance(total, int):
                raise Malformed(f"tokens_predicted is {total!r}, expected a count")
            seen += len(tokens)
            if seen < total:
                return Chunk((), over=over, missed=True)
            probabilities = event.get("completion_probabilities")
            scores = _scores(tokens, probabilities) if probabilities else [None] * len(tokens)
            return Chunk([Heard(token, score) for token, score in zip(tokens, scores, strict=True)], over=over)

        return read


def _scores(tokens: list[int], probabilities: Any) -> list[Scored]:
    if not isinstance(probabilities, list) or len(cast("list[object]", probabilities)) != len(tokens):
        raise Malformed("log-probabilities and token ids of an event differ in number")
    found: list[Scored] = []
    for token, each in zip(tokens, cast("list[Mapping[str, Any]]", probabilities), strict=True):
        top = [(int(other["id"]), number_of(other["logprob"])) for other in each.get("top_logprobs", ())]
        found.append(scored(token, number_of(each["logprob"]), top, len(top)))
    return found
