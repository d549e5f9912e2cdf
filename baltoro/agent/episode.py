"""An episode as data, and its journal: one JSON object a line, from which everything can be run again.

Lines: `episode` (model, task, tools, settings), then for every step `answer` (what was generated: text, calls, token
ids, log-probs) and a `result` for each of its calls, at last `end`. A line is one write to a file that is only appended
to, so an episode that is killed has all that came before, and at most one torn line, which readers pass over. A
prompt's ids begin as the last prompt and its answer did, so a line has how many these are and the rest.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from baltoro.agent.tool import ToolResult
from baltoro.answer import Answer
from baltoro.chat.messages import Json, Message, ToolCall, Usage
from baltoro.chat.parser import IncompleteCall
from baltoro.errors import BaltoroError

VERSION = 1
# done: an answer without calls. length: one that was cut off. steps, tokens, seconds: the budget. error: of the model.
End = Literal["done", "length", "steps", "tokens", "seconds", "interrupted", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    call: ToolCall
    result: ToolResult  # as the model read it
    seconds: float


@dataclass(slots=True, kw_only=True)
class Turn:
    """One answer of the model and what became of its calls. Training takes its ids; it never encodes text again."""

    answer: Answer
    seconds: float
    results: list[CallResult] = field(default_factory=list[CallResult])


@dataclass(slots=True, kw_only=True)
class Episode:
    """A task, and what was said and done about it."""

    id: str
    task: str
    model: str
    facts: dict[str, Json]  # tools as declared, settings, budget, sandbox, workspace: what it takes to run it again
    messages: list[Message]  # the whole conversation, system and task included
    turns: list[Turn] = field(default_factory=list[Turn])
    end: End | None = None  # None: it was killed
    error: str = ""  # of `error`
    tokens: int = 0  # as budgets count them
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """What was said last."""
        return (self.turns[-1].answer.content or "") if self.turns else ""


def new_id() -> str:
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{secrets.token_hex(4)}"


class Recorder:
    """Writes one episode down while it happens. With no path it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: tuple[int, ...] = ()  # ids of the last prompt and its answer
        if path is not None:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError as error:
                raise BaltoroError(f"{path} is there", hint="every episode has a journal of its own") from error
            except OSError as error:
                raise BaltoroError(f"{path}: {error.strerror}", hint="--journal names a new file") from error

    def begin(self, episode: Episode) -> None:
        self._write(
            "episode",
            {
                "version": VERSION, "id": episode.id, "task": episode.task, "model": episode.model,
                "facts": episode.facts, "messages": [_message(each) for each in episode.messages],
            },
        )  # fmt: skip

    def answered(self, turn: Turn) -> None:
        told = asdict(turn.answer)
        prompt: tuple[int, ...] = told.pop("prompt_ids")
        shared = 0
        for ours, theirs in zip(self._known, prompt, strict=False):
            if ours != theirs:
                break
            shared += 1
        self._known = prompt + turn.answer.token_ids
        self._write("answer", told | {"shared": shared, "prompt_rest": prompt[shared:], "seconds": turn.seconds})

    def resulted(self, found: CallResult) -> None:
        self._write("result", asdict(found))

    def ended(self, episode: Episode) -> None:
        self._write(
            "end",
            {"end": episode.end, "error": episode.error, "tokens": episode.tokens, "seconds": episode.seconds},
        )

    def _write(self, kind: str, record: dict[str, Json]) -> None:
        if self.path is None:
            return
        line = json.dumps({"type": kind} | record, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.write(descriptor, line) < len(line):
                raise BaltoroError(f"{self.path}: the disk is full", hint="an episode that is not recorded ends")
        finally:
            os.close(descriptor)


def read(path: Path) -> Episode:
    """What a Recorder wrote; `end` is None where the process was killed."""
    episode: Episode | None = None
    known: tuple[int, ...] = ()
    try:
        for record in _records(path):
            kind = record["type"]
            if kind == "episode":
                if record["version"] != VERSION:
                    raise BaltoroError(f"{path} is of version {record['version']}", hint=f"we read version {VERSION}")
                messages = [_message_of(each) for each in record["messages"]]
                episode = Episode(
                    id=record["id"], task=record["task"], model=record["model"], facts=record["facts"],
                    messages=messages,
                )  # fmt: skip
            elif episode is None:
                break
            elif kind == "answer":
                answer = _answer(record, known)
                known = answer.prompt_ids + answer.token_ids
                episode.turns.append(Turn(answer=answer, seconds=record["seconds"]))
                episode.messages += after(answer)
            elif kind == "result":
                found = CallResult(
                    call=ToolCall(**record["call"]), result=ToolResult(**record["result"]), seconds=record["seconds"]
                )
                episode.turns[-1].results.append(found)
                episode.messages.append(told(found))
            elif kind == "end":
                episode.end, episode.error = record["end"], record["error"]
                episode.tokens, episode.seconds = record["tokens"], record["seconds"]
    except (LookupError, TypeError, AttributeError) as error:
        raise BaltoroError(
            f"{path} is no journal of an episode: {error!r}", hint="`baltoro agent` writes one"
        ) from error
    if episode is None:
        raise BaltoroError(f"{path} is no journal of an episode", hint="`baltoro agent` writes one")
    return episode


def after(answer: Answer) -> list[Message]:
    """What an answer adds to the conversation, its calls' results apart."""
    said = Message(role="assistant", content=answer.content or "", tool_calls=answer.tool_calls)
    if answer.tool_calls or not answer.incomplete or answer.reason == "length":
        return [said]
    complaint = "Your last call was malformed and did not run. Call the tool again, or answer in words."
    return [said, Message(role="user", content=complaint)]


def told(found: CallResult) -> Message:
    """A result as the model reads it."""
    return Message(role="tool", tool_call_id=found.call.id, name=found.call.name, content=found.result.for_model)


def _records(path: Path) -> Sequence[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BaltoroError(f"{path}: {error.strerror}", hint="name the journal of an episode") from error
    found: list[dict[str, Any]] = []
    for line in lines[:-1]:  # behind the last newline is nothing, or a torn line
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(cast("dict[str, Any]", record))
    return found


def _answer(record: dict[str, Any], known: tuple[int, ...]) -> Answer:
    return Answer(
        content=record["content"],
        tool_calls=tuple(ToolCall(**each) for each in record["tool_calls"]),
        incomplete=tuple(IncompleteCall(**each) for each in record["incomplete"]),
        reason=record["reason"],
        usage=Usage(**record["usage"]),
        prompt_ids=(*known[: record["shared"]], *record["prompt_rest"]),
        token_ids=tuple(record["token_ids"]),
        logprobs=tuple(record["logprobs"]),
    )


def _message(message: Message) -> dict[str, Json]:
    return {"role": message.role, "content": message.content}


def _message_of(record: dict[str, Any]) -> Message:
    return Message(role=record["role"], content=record["content"])
