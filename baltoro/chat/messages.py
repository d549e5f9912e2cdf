"""The words that every door speaks: messages, tools, requests and the pieces of an answer.

Free of any vendor's wire format. The dialects in `server/` translate to and from these; the
template turns them into token ids; the parser turns token ids back into `Delta`s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Any  # a value that json.loads may return


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call that an assistant made: arguments are the raw JSON text, exactly as generated."""

    id: str  # canonical form functions.NAME:IDX; foreign ids are renamed by chat/call_ids.py
    name: str
    arguments: str | Mapping[str, Json]  # a client may send a dict; the template renders it as HF's tojson does


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation, as the K2 template sees it."""

    role: str  # system, user, assistant, tool; any other role is rendered as a system turn
    content: str | Sequence[Mapping[str, Json]] | None = None  # text, or parts {"type": "text", "text": ...}
    name: str | None = None  # replaces the role in the turn's header
    tool_calls: tuple[ToolCall, ...] = ()  # assistant only
    tool_call_id: str | None = None  # tool only
    partial: bool = False  # the last message, an assistant's: the answer goes on behind its text


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One declared function. `declaration` is the dict as the client sent it; the template prints it unchanged."""

    name: str
    parameters: Mapping[str, Json]  # JSON schema of the arguments object; {} accepts any object
    declaration: Mapping[str, Json]  # {"type": "function", "function": {...}}
    strict: bool = False  # parameters are enforced to the letter or refused, even where schemas may be loose


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """auto: the model decides; none: no call; required: at least one call; named: one call of `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None
    allowed: tuple[str, ...] | None = None  # auto, required: only these may be called; None: all that are declared


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """The text of an answer is one JSON value, and nothing else."""

    schema: Json = None  # a JSON schema; None: any object
    strict: bool = False  # as of a Tool
    name: str = "response_format"  # the field that asks for it, as errors, the log and clients call it
    param: str = "response_format"  # where in the request its schema is, or else what asks for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How an answer's tokens are to be chosen; engine/request.py says what each of these does, and in which order."""

    max_tokens: int | None = None  # None: as many as the context leaves
    min_tokens: int = 0  # nothing ends the answer before
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int | None = None
    stop: tuple[str, ...] = ()  # strings that end the text; never part of it
    stop_token_ids: frozenset[int] = frozenset()  # end it beside [EOS] and <|im_end|>, and are no text either
    ignore_eos: bool = False  # [EOS] and <|im_end|> do not end it
    priority: int = 0  # lower runs first
    logprobs: int | None = None  # so many of the likeliest tokens at every place, and the chosen one; None: nothing
    noted: Mapping[str, Json] = field(default_factory=dict[str, Json])  # of the client's own books: changes nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Wishes):
    """What a client wants said."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True  # False: at most one call a turn
    answer_format: AnswerFormat | None = None  # of text; an answer that calls tools has none
    temperature: float = 0.6  # Moonshot's recommendation for K2-Instruct
    clip_max_tokens: bool = False  # to what the context leaves; False: more than that is refused
    tell_prompt: bool = False  # a PromptRead before all other deltas


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text; whole characters only."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call whose name is known. `index` counts this turn's calls from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """A piece of the raw JSON text of call `index`."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """Call `index` is complete. A call that never ends is incomplete and must not be dispatched."""

    index: int


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A token and the natural logarithm of its probability."""

    token: int
    bytes: bytes  # its text, maybe a part of a character; a control token's name
    logprob: float


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of a token and of the likeliest ones in its place. In an answer every token has one, told before what it adds."""

    chosen: Likelihood
    top: tuple[Likelihood, ...]  # falling, as many as were wished for; behind them `chosen`, if it is none of these


FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # prompt tokens that were not computed again


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The prompt was read and the answer begins. Told to those who asked: `ChatRequest.tell_prompt`."""

    usage: Usage  # no completion tokens yet


@dataclass(frozen=True, slots=True)
class Finished:
    """The last delta of every stream."""

    reason: FinishReason
    usage: Usage
    stop: str | None = None  # the stop string that ended the text


Delta = PromptRead | TextDelta | CallBegun | ArgumentsDelta | CallEnded | Likelihoods | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(Wishes):
    """A prompt to go on with, without template, tools or grammar."""

    prompt: str | Sequence[int]  # control tokens may be spelled out; or token ids
    echo: bool = False  # tell the prompt first; with max_tokens 0 nothing else


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """A token of a completion and the characters that it completes; the stop token has none."""

    token: int | None  # None: text that was held back until the end
    text: str
    offset: int = 0  # characters that the tokens before it completed, an echoed prompt's included
    likelihoods: Likelihoods | None = None


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt, told once and before its completion. Its first token has no likelihoods: nothing stood before it."""

    tokens: tuple[TokenDelta, ...]


Piece = Echo | TokenDelta | Finished  # of a completion
