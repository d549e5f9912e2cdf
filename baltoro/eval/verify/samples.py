"""Requests in K2-Vendor-Verifier's form: a body of /v1/chat/completions a line; a request's index is its line, from 1.

Our own 60 are made of BFCL's questions (Apache-2.0): one function, several, none that fits, calls in parallel, and
conversations with calls behind them. Moonshot's own 2,000, half of what it asks, are a download:
https://statics.moonshot.cn/k2vv/tool-calls.tar.gz has samples.jsonl and what the official API answered to them.

Format: https://github.com/MoonshotAI/K2-Vendor-Verifier at 0bc5061, README.md.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import md5
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from baltoro.errors import BaltoroError
from baltoro.eval.document import at, listed, text_at

Json = Any
_CANONICAL = re.compile(r"functions\..+:\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    index: int  # of its line, from 1
    raw: Mapping[str, Json]  # as it stands in the file
    body: Mapping[str, Json]  # as it is sent, but for the model

    def digest(self, model: str) -> str:
        """K2-Vendor-Verifier's `hash`, so that its --incremental takes our results for its own."""
        whole = json.dumps({**self.body, "model": model}, sort_keys=True, ensure_ascii=False)
        return md5(whole.encode(), usedforsecurity=False).hexdigest()


def own(overrides: Mapping[str, Json] | None = None) -> list[Sample]:
    with files("baltoro.eval.verify").joinpath("samples.jsonl.gz").open("rb") as raw, gzip.open(raw, "rt") as lines:
        return _samples(lines, "verify's own samples", overrides or {}, canonical_ids=False)


def read(path: Path, overrides: Mapping[str, Json] | None = None, *, canonical_ids: bool = False) -> list[Sample]:
    """overrides: fields that take the place of those in the file. canonical_ids: rename those of old calls."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            return _samples(lines, str(path), overrides or {}, canonical_ids=canonical_ids)
    except (OSError, UnicodeDecodeError) as error:
        raise BaltoroError(f"{path}: {error}", hint="--samples takes a body of /v1/chat/completions a line") from error


def foreign_ids(body: Mapping[str, Json]) -> int:
    """Calls in the history whose ids are not of the form functions.NAME:IDX, which makes K2 write crooked ids too."""
    return sum(
        _CANONICAL.fullmatch(text_at(call, "id")) is None
        for message in listed(body, "messages")
        for call in listed(message, "tool_calls")
    )


def _samples(lines: Iterable[str], name: str, overrides: Mapping[str, Json], *, canonical_ids: bool) -> list[Sample]:
    found: list[Sample] = []
    for index, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except json.JSONDecodeError as error:
            raise BaltoroError(f"{name}, line {index}: {error}", hint="expected a JSON object a line") from error
        if not isinstance(raw, dict) or not isinstance(cast("dict[str, Json]", raw).get("messages"), list):
            raise BaltoroError(f"{name}, line {index} has no list of messages", hint="expected a body of a chat")
        raw = cast("dict[str, Json]", raw)
        body = _sent(raw, overrides)
        found.append(Sample(index=index, raw=raw, body=_renamed(body) if canonical_ids else body))
    if not found:
        raise BaltoroError(f"{name} is empty", hint="expected a JSON object a line")
    return found


def _sent(raw: Mapping[str, Json], overrides: Mapping[str, Json]) -> dict[str, Json]:
    """The role `_input` of Moonshot's own records is a system's; a stream tells its usage."""
    messages = [{**each, "role": "system"} if each.get("role") == "_input" else each for each in raw["messages"]]
    body = {name: value for name, value in raw.items() if name != "model"} | {"messages": messages} | dict(overrides)
    if body.get("stream"):
        options = body.get("stream_options")
        given = cast("dict[str, Json]", options) if isinstance(options, dict) else {}
        body["stream_options"] = {"include_usage": True, **given}
    return body


def _renamed(body: dict[str, Json]) -> dict[str, Json]:
    """Calls counted over the whole conversation, as K2 was trained on; a result belongs to the last call of its id."""
    names: dict[str, str] = {}
    messages: list[Json] = []
    count = 0
    for message in body["messages"]:
        if made := listed(message, "tool_calls"):
            calls: list[Json] = []
            for call in made:
                names[text_at(call, "id")] = f"functions.{text_at(call, 'function', 'name')}:{count}"
                calls.append({**call, "id": names[text_at(call, "id")]})
                count += 1
            message = {**message, "tool_calls": calls}
        elif at(message, "role") == "tool":
            client_id = text_at(message, "tool_call_id")
            message = {**message, "tool_call_id": names.get(client_id, client_id)}
        messages.append(message)
    return {**body, "messages": messages}
