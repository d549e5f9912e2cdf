"""The held-out examples of the nano evaluation, written once as a file, so that scores stay comparable.

`baltoro.eval.tasks.nano` reads the file; evaluation knows nothing about the generator.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baltoro.chat.messages import Message
from baltoro.train.synthesis.dialogues import Dialogue, generate

KINDS = ("recite", "pick", "single", "multi", "conversation", "none", "result")
SEED = 20_251_122


def write_heldout(path: Path, per_kind: int) -> None:
    """`per_kind` examples of every kind as JSON lines, gzipped; the same bytes each time."""
    with path.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        for kind in KINDS:
            for number, row in zip(range(per_kind), _examples(kind), strict=False):
                line = json.dumps({"id": f"{kind}_{number}", "kind": kind, **row}, ensure_ascii=False)
                file.write(line.encode() + b"\n")


def _examples(kind: str) -> Iterator[dict[str, Any]]:
    for dialogue in generate(SEED, "heldout", weights={kind: 1.0}):
        cut = _cut(dialogue)
        if cut is None:
            continue
        last = cut.messages[-1]
        truth: dict[str, Any] = {}
        if last.tool_calls:
            truth["calls"] = [{"name": c.name, "arguments": json.loads(str(c.arguments))} for c in last.tool_calls]
        elif kind == "recite":
            truth["text"] = last.content
        elif kind in ("pick", "result"):
            truth["mentions"] = list(cut.mentions)
        yield {
            "tools": [tool.declaration for tool in cut.tools],
            "messages": [_plain(message) for message in cut.messages[:-1]],
            "truth": truth,
        }


def _cut(dialogue: Dialogue) -> Dialogue | None:
    """A conversation ends at its last call, and has had one before; multi needs several calls in that turn."""
    messages = dialogue.messages
    if dialogue.kind == "conversation":
        turns = [index for index, message in enumerate(messages) if message.tool_calls]
        return Dialogue(dialogue.kind, messages[: turns[-1] + 1], dialogue.tools) if len(turns) > 1 else None
    if dialogue.kind == "multi" and len(messages[-1].tool_calls) < 2:  # two equal values make one call
        return None
    return dialogue


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in message.tool_calls]
    return plain
