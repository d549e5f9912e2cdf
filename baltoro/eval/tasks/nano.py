"""What the nano model must do with tools, words and values it has never seen.

Three files hold the examples. nano_heldout.jsonl.gz was written by the first edition's generator: invented functions of
words that training never shows as names or values, and everyday functions of fourteen topics kept out of training.
nano_schemas.jsonl.gz is the second edition's: fifty-odd functions as real interfaces declare them, none of which
training declares, one call (schema), several (parallel), objects among the arguments (nested), values that the request
says in other words (hint), and one of up to twenty functions (many).
nano_card.json is written by hand: the weather tool of Kimi K2's model card and ten more, asked for in ordinary
English, and questions about who it is.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from baltoro.chat.messages import ChatRequest, Message, Tool, ToolCall
from baltoro.chat.parser import Folded, Parser, fold
from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.eval.score import Example, Score, Truth, judge, summary

KINDS = (
    "recite", "pick", "single", "multi", "conversation", "none", "result", "identity", "card", "card_result",
    "schema", "parallel", "nested", "hint", "many",
)  # fmt: skip

# prompts' ids and their examples in, generated ids out (a stop id may end them)
Generate = Callable[[list[list[int]], list[Example]], list[list[int]]]


def examples(per_kind: int = 200, kinds: Sequence[str] = KINDS) -> list[Example]:
    """The first `per_kind` examples of each kind; the hand-written kinds have fewer (20, 33 and 33)."""
    taken: dict[str, list[Example]] = {kind: [] for kind in kinds}
    for example in [*_written("nano_heldout.jsonl.gz"), *_card(), *_written("nano_schemas.jsonl.gz")]:
        chosen = taken.get(example.kind)
        if chosen is not None and len(chosen) < per_kind:
            chosen.append(example)
    return [example for chosen in taken.values() for example in chosen]


def prompt(example: Example, tokenizer: Tokenizer) -> list[int]:
    """Ids up to and with the assistant's header, as a server would run them."""
    return render(example.request.messages, example.request.tools).ids(tokenizer)


def read(generated: Sequence[int], example: Example, tokenizer: Tokenizer) -> Folded:
    """The answer in generated ids: calls and text, up to the first stop id."""
    parser = Parser(tokenizer, next_index=num_calls(example))
    deltas = [
        delta for token in _until(generated, tokenizer.stop_ids) for delta in parser.push(token)
    ] + parser.finish()
    return fold(deltas, parser.malformed)


def num_calls(example: Example) -> int:
    """Calls made earlier in the conversation: the index of the next one."""
    return sum(len(message.tool_calls) for message in example.request.messages)


def evaluate(generate: Generate, tokenizer: Tokenizer, chosen: Sequence[Example]) -> list[Score]:
    """Scores in the order of the examples. Prompts go out longest first, so that batches are of one length."""
    order = sorted(range(len(chosen)), key=lambda index: -len(prompt(chosen[index], tokenizer)))
    ordered = [chosen[index] for index in order]
    generated = generate([prompt(example, tokenizer) for example in ordered], ordered)
    scores = {
        index: judge(chosen[index], read(ids, chosen[index], tokenizer))
        for index, ids in zip(order, generated, strict=True)
    }
    return [scores[index] for index in range(len(chosen))]


def table(scores: Iterable[Score]) -> str:
    """One line a kind: the verdict with its interval, and the shares of its checks."""
    lines: list[str] = []
    for kind, checks in summary(scores).items():
        parts = "  ".join(f"{name} {share.share:.1%}" for name, share in checks.items() if name != "right")
        lines.append(f"{kind:23s}{checks['right']}   {parts}")
    return "\n".join(lines)


def _until(ids: Sequence[int], stops: frozenset[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stops:
            return list(ids[:position])
    return list(ids)


def _written(name: str) -> list[Example]:
    with files("baltoro.eval.tasks").joinpath(name).open("rb") as raw, gzip.open(raw, "rt") as lines:
        return [_example(json.loads(line)) for line in lines]


def _card() -> list[Example]:
    card = json.loads(files("baltoro.eval.tasks").joinpath("nano_card.json").read_text("utf-8"))
    declared = {tool["function"]["name"]: tool for tool in card["tools"]}
    rows: list[dict[str, Any]] = []
    for number, question in enumerate(card["identity"]):
        asked = [{"role": "user", "content": question}]
        rows.append({"id": f"identity_{number}", "kind": "identity", "tools": [], "messages": asked,
                     "truth": {"mentions": ["Baltoro"]}})  # fmt: skip
    for number, case in enumerate(card["cases"]):
        tools = [declared[name] for name in case["tools"]]
        asked = [{"role": "user", "content": case["request"]}]
        row = {"id": f"card_{number}", "kind": "card", "tools": tools, "messages": asked}
        rows.append({**row, "truth": {"calls": [case["call"]]}})
        name, arguments = case["call"]["name"], json.dumps(case["call"]["arguments"], ensure_ascii=False)
        call = {"id": f"functions.{name}:0", "name": name, "arguments": arguments}
        answered = [
            *asked, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "name": name, "tool_call_id": call["id"],
             "content": json.dumps(case["result"], ensure_ascii=False)},
        ]  # fmt: skip
        row |= {"id": f"card_result_{number}", "kind": "card_result", "messages": answered}
        rows.append({**row, "truth": {"mentions": case["mentions"]}})
    return [_example(row) for row in rows]


def _example(row: Mapping[str, Any]) -> Example:
    tools = tuple(
        Tool(name=d["function"]["name"], parameters=d["function"].get("parameters", {}), declaration=d)
        for d in row["tools"]
    )
    messages = tuple(_message(message) for message in row["messages"])
    truth = row["truth"]
    calls = tuple(ToolCall(id="", name=c["name"], arguments=c["arguments"]) for c in truth.get("calls", ()))
    return Example(
        id=row["id"],
        kind=row["kind"],
        request=ChatRequest(messages=messages, tools=tools, temperature=0.0),
        truth=Truth(calls=calls, text=truth.get("text"), mentions=tuple(truth.get("mentions", ()))),
    )


def _message(row: Mapping[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in row.get("tool_calls", ()))
    return Message(
        role=row["role"],
        content=row["content"],
        name=row.get("name"),
        tool_call_id=row.get("tool_call_id"),
        tool_calls=calls,
    )
