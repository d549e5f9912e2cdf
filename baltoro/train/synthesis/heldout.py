"""The held-out examples of the nano evaluation, written once as a file, so that scores stay comparable.

`baltoro.eval.tasks.nano` reads two files; evaluation knows nothing about the generator. nano_heldout.jsonl.gz is of the
first edition's generator and is never written again; nano_schemas.jsonl.gz holds what the second edition added.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baltoro.chat.messages import Message
from baltoro.train.synthesis.dialogues import generate

KINDS = ("schema", "parallel", "nested", "hint", "many")
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
        last = dialogue.messages[-1]
        calls = [{"name": c.name, "arguments": json.loads(str(c.arguments))} for c in last.tool_calls]
        yield {
            "tools": [tool.declaration for tool in dialogue.tools],
            "messages": [_plain(message) for message in dialogue.messages[:-1]],
            "truth": {"calls": calls},
        }


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in message.tool_calls]
    return plain
