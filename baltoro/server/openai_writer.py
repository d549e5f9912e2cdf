"""Answers in OpenAI's chat form: Deltas -> one JSON object or server-sent events.

Log-probabilities are told for every token that was generated, as vLLM does: those of calls and the one that ended
the answer too, so there are as many as usage counts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from baltoro import choices
from baltoro.chat.messages import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    Delta,
    Finished,
    Json,
    Likelihood,
    Likelihoods,
    PromptRead,
    TextDelta,
    Usage,
)
from baltoro.server.openai import event, usage_json
from baltoro.server.sampling import logprob, token_text
from baltoro.server.web_search import call_type


class _Whole:
    """One choice as it grows."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.calls: list[dict[str, Json]] = []
        self.tokens: list[Json] = []
        self.end: Finished | None = None

    def add(self, delta: Delta) -> None:
        match delta:
            case TextDelta():
                self.text.append(delta.text)
            case CallBegun():
                function = {"name": delta.name, "arguments": ""}
                self.calls.append({"id": delta.id, "type": call_type(delta.name), "function": function})
            case ArgumentsDelta():
                self.calls[delta.index]["function"]["arguments"] += delta.text
            case Finished():
                self.end = delta
            case PromptRead() | CallEnded() | Likelihoods():
                pass

    def message(self) -> dict[str, Json]:
        message: dict[str, Json] = {"role": "assistant", "content": "".join(self.text), "refusal": None}
        return message | {"content": message["content"] or None, "tool_calls": self.calls} if self.calls else message


class Writer:
    """Writes one answer: whole, or as the events of a stream. Both say the same when a client folds the stream."""

    def __init__(self, model: str, fingerprint: str, num_top: int | None = None) -> None:
        """num_top: likeliest tokens at every place; None: no log-probabilities at all"""
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.fingerprint = fingerprint
        self.num_top = num_top

    def _envelope(self, kind: str, told: list[Json]) -> dict[str, Json]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": told,
        }

    async def whole(self, sources: Sequence[AsyncGenerator[Delta]]) -> dict[str, Json]:
        """sources: one a choice"""
        answers = [_Whole() for _ in sources]
        async with aclosing(choices.merge(sources)) as deltas:
            async for index, delta in deltas:
                answers[index].add(delta)
                if isinstance(delta, Likelihoods):
                    answers[index].tokens.append(token_json(delta, self.num_top))
        told: list[Json] = []
        usages: list[Usage] = []
        for index, answer in enumerate(answers):
            assert answer.end is not None, "a stream of Deltas ends with Finished"
            logprobs = None if self.num_top is None else _logprobs(answer.tokens)
            reason = answer.end.reason
            told.append({"index": index, "message": answer.message(), "logprobs": logprobs, "finish_reason": reason})
            usages.append(answer.end.usage)
        usage = usage_json(choices.usage(usages, len(usages)))
        return self._envelope("chat.completion", told) | {"usage": usage}

    async def events(self, sources: Sequence[AsyncGenerator[Delta]], *, include_usage: bool) -> AsyncGenerator[str]:
        """sources: one a choice; each piece tells which it belongs to. Log-probabilities come with the next piece."""
        begun = [False] * len(sources)
        tokens: list[list[Json]] = [[] for _ in sources]  # not told yet
        usages: dict[int, Usage] = {}
        async with aclosing(choices.merge(sources)) as deltas:
            async for index, delta in deltas:
                piece: dict[str, Json] = {}
                match delta:
                    case TextDelta():
                        piece = {"content": delta.text}
                    case CallBegun():
                        function: dict[str, Json] = {"name": delta.name, "arguments": ""}
                        call = {
                            "index": delta.index,
                            "id": delta.id,
                            "type": call_type(delta.name),
                            "function": function,
                        }
                        piece = {"tool_calls": [call]}
                    case ArgumentsDelta():
                        piece = {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}
                    case PromptRead() | CallEnded():
                        continue
                    case Likelihoods():
                        tokens[index].append(token_json(delta, self.num_top))
                        continue
                    case Finished():
                        usages[index] = delta.usage
                if not begun[index]:  # OpenAI's first chunk: the role, and null content where a call comes first
                    begun[index] = True
                    content = None if isinstance(delta, CallBegun) else ""
                    first = {"role": "assistant", "content": content, "refusal": None}
                    yield self._event(index, first, None, [], include_usage)
                reason = delta.reason if isinstance(delta, Finished) else None
                yield self._event(index, piece, reason, tokens[index], include_usage)
                tokens[index] = []
        if include_usage:
            usage = choices.usage([usages[index] for index in range(len(sources))], len(sources))
            yield event(self._envelope("chat.completion.chunk", []) | {"usage": usage_json(usage)})
        yield "data: [DONE]\n\n"

    def _event(
        self, index: int, piece: dict[str, Json], finish_reason: str | None, tokens: list[Json], include_usage: bool
    ) -> str:
        logprobs = _logprobs(tokens) if tokens else None
        choice = {"index": index, "delta": piece, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = self._envelope("chat.completion.chunk", [choice])
        return event(chunk | {"usage": None} if include_usage else chunk)


def _logprobs(tokens: list[Json]) -> dict[str, Json]:
    return {"content": tokens, "refusal": None}


def token_json(likelihoods: Likelihoods, num_top: int | None) -> dict[str, Json]:
    """A token with the `num_top` likeliest in its place; None: with all that were reported."""
    top = [_likelihood(each) for each in likelihoods.top[:num_top]]
    return _likelihood(likelihoods.chosen) | {"top_logprobs": top}


def _likelihood(token: Likelihood) -> dict[str, Json]:
    return {"token": token_text(token), "logprob": logprob(token), "bytes": list(token.bytes)}
