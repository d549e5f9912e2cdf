"""Openly licensed tool sets as training conversations.

    python -m baltoro.train.synthesis.toolsets OUT.jsonl.gz --from DIR --without EVALUATION [--without ...]

DIR holds seal-tools/, toolalpaca/ and api-bank/ as their repositories have them (data/LICENSES.md). Kept is what a model can
know: every argument stands in what was said before. TaskBench comes without calls, every request of NESTFUL needs one
call's result for the next. What is left after decontaminate.py is written one a line: source, tools, messages.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any, cast

from baltoro.chat.messages import Message, Tool, ToolCall
from baltoro.train.synthesis import toolset_sources
from baltoro.train.synthesis.decontaminate import Evaluations, Repetitions
from baltoro.train.synthesis.dialogues import Dialogue
from baltoro.train.synthesis.toolset_sources import Conversation


def read(path: Path) -> Iterator[Dialogue]:
    """The conversations of a file that this module wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            tools = tuple(_tool(declaration) for declaration in row["tools"])
            yield Dialogue("toolset", tuple(_message(m) for m in row["messages"]), tools)


def _tool(declaration: Mapping[str, Any]) -> Tool:
    function = declaration["function"]
    return Tool(name=function["name"], parameters=function["parameters"], declaration=declaration)


def _message(row: Mapping[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in row.get("tool_calls", ()))
    return Message(role=row["role"], content=row["content"], tool_call_id=row.get("tool_call_id"), tool_calls=calls)


def convert(directory: Path, evaluations: Evaluations) -> tuple[list[Conversation], str]:
    """What is kept, and a table of what was dropped and why."""
    kept: list[Conversation] = []
    dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    repetitions = Repetitions()
    for source, items in toolset_sources.SOURCES.items():
        for item in items(directory / source, Random(source)):
            if isinstance(item, str):
                dropped[source][item] += 1
                continue
            functions = [(t["function"]["name"], t["function"]["parameters"]["properties"]) for t in item.tools]
            texts = [m["content"] for m in item.messages if m["role"] == "user"]
            reason = evaluations.reason(functions, texts) or repetitions.repeats("\n".join(texts))
            if reason:
                dropped[source][reason] += 1
            else:
                kept.append(item)
    return kept, _table(kept, dropped)


def _table(kept: list[Conversation], dropped: Mapping[str, Counter[str]]) -> str:
    lines = [f"{'source':12s} {'kept':>6s} {'chars':>6s} {'tools':>6s} {'calls a turn':>13s} {'unique':>7s}  dropped"]
    for source in toolset_sources.SOURCES:
        mine = [item for item in kept if item.source == source]
        if not mine:
            lines.append(f"{source:12s} {0:6d}  {dict(dropped[source])}")
            continue
        calls = [len(m["tool_calls"]) for item in mine for m in item.messages if m.get("tool_calls")]
        requests = [m["content"] for item in mine for m in item.messages if m["role"] == "user"]
        chars = mean(len(json.dumps(item.row())) for item in mine)
        lines.append(
            f"{source:12s} {len(mine):6d} {chars:6.0f} {mean(len(i.tools) for i in mine):6.1f} {mean(calls or [0]):13.2f} "
            f"{len(set(requests)) / len(requests):7.1%}  {dict(dropped[source])}"
        )
    return "\n".join(lines)


def write(conversations: list[Conversation], path: Path) -> None:
    """One a line, gzipped, the same bytes each time; whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        for conversation in conversations:
            file.write(json.dumps(conversation.row(), ensure_ascii=False).encode() + b"\n")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Openly licensed tool sets as training conversations.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="directory of the tool sets")
    parser.add_argument(
        "--without", type=Path, action="append", required=True, help="an evaluation's file or directory"
    )
    args = parser.parse_args()
    evaluations = Evaluations()
    for path in cast("list[Path]", args.without):
        evaluations.read(path)
    kept, table = convert(args.source, evaluations)
    write(kept, args.out)
    print(table)


if __name__ == "__main__":
    main()
