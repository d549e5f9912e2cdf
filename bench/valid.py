"""Whether every tool call that a server lets out is valid, over BFCL's functions in every mode, and what that costs.

    python bench/valid.py DIR [--model nano | --random | --url http://127.0.0.1:8000] [--upstream URL] [--items 300]
        [--streams 32] [--max-tokens 400] [--cost]

DIR: the folder of BFCL_v4_*.json files. Each item's functions are declared as OpenAI's tools (types by BFCL's own
table, dots in names replaced), its first question is asked, and each call that comes back is parsed and compared with
its schema by `jsonschema`: under `auto`, `required`, by name, `none`, and `required` without parallel calls. A call
that max_tokens cut is no call: its answer says "length". `--random`: nano's shape with untrained weights, the hardest
case, for it hardly ever closes a string by itself. `--cost`: chats with tools beside completions of the same ids.
Prints a JSON line; the exit code is 1 where a call was not valid.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).parent))
import load
import serve

from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.config import resolve
from baltoro.server.openai import ChatBody, chat_request

Json = Any
TYPES = {
    "dict": "object", "HashMap": "object", "Hashtable": "object", "float": "number", "double": "number",
    "long": "integer", "byte": "integer", "short": "integer", "char": "string", "String": "string", "Bigint": "integer",
    "Boolean": "boolean", "tuple": "array", "list": "array", "Array": "array", "ArrayList": "array", "Set": "array",
    "Queue": "array", "Stack": "array", "any": None, "": None,
}  # fmt: skip
MODES = ("auto", "required", "named", "none", "one at a time")


def schema_of(node: Json) -> Json:
    """BFCL's words for types in JSON Schema's; a type of anything is left out."""
    if isinstance(node, list):
        return [schema_of(each) for each in node]
    if not isinstance(node, dict):
        return node
    made: dict[str, Json] = {}
    for word, value in node.items():
        if word == "properties":
            made[word] = {name: schema_of(each) for name, each in value.items()}
        elif word == "type" and isinstance(value, str):
            kind = TYPES.get(value, value)
            made |= {} if kind is None else {"type": kind}
        elif word not in ("default", "optional"):
            made[word] = schema_of(value)
    return made


def items(folder: Path) -> Iterator[tuple[str, list[Json], list[Json]]]:
    """Name, messages of the first turn, tools."""
    for file in sorted(folder.glob("BFCL_v4_*")):
        raw = file.read_bytes()
        for line in (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode().splitlines():
            item = json.loads(line)
            tools: dict[str, Json] = {}
            for function in item.get("function", ()):
                name = function["name"].replace(".", "_")[:64]
                described = {"name": name, "description": function.get("description", "")}
                described["parameters"] = schema_of(function["parameters"])
                tools[name] = {"type": "function", "function": described}
            if tools:
                yield item["id"], item["question"][0], list(tools.values())


def body(messages: list[Json], tools: list[Json], mode: str, given: argparse.Namespace, seed: int) -> Json:
    choice: Json = {"none": "none", "auto": "auto"}.get(mode, "required")
    if mode == "named":
        choice = {"type": "function", "function": {"name": tools[0]["function"]["name"]}}
    return {
        "model": given.name, "messages": messages, "tools": tools, "tool_choice": choice, "seed": seed,
        "temperature": 1.0, "max_tokens": given.max_tokens,
    } | ({"parallel_tool_calls": False} if mode == "one at a time" else {})  # fmt: skip


def judge(answer: Json, tools: list[Json], mode: str, ends: Counter[str]) -> str | None:
    """What is wrong with it."""
    declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    choice = answer["choices"][0]
    calls = choice["message"].get("tool_calls") or []
    ends[choice["finish_reason"]] += 1
    if choice["finish_reason"] == "length":
        ends["calls before a cut"] += len(calls)
        calls = calls[:-1]  # the last one may lack its end
    for call in calls:
        function = call["function"]
        if function["name"] not in declared:
            return f"calls {function['name']!r}, which is not declared"
        try:
            jsonschema.Draft202012Validator(declared[function["name"]]).validate(json.loads(function["arguments"]))
        except (ValueError, jsonschema.ValidationError) as error:
            return f"{function['name']}({function['arguments'][:200]}): {str(error).splitlines()[0]}"
        ends["valid calls"] += 1
    expected = {"none": (0, 0), "one at a time": (1, 1), "named": (1, 1), "required": (1, 1000)}.get(mode, (0, 1000))
    if choice["finish_reason"] != "length" and not expected[0] <= len(calls) <= expected[1]:
        return f"{len(calls)} calls under {mode}"
    if mode == "named" and any(call["function"]["name"] != next(iter(declared)) for call in calls):
        return "calls another than the one that was named"
    return None


async def check(url: str, chosen: list[tuple[str, list[Json], list[Json]]], given: argparse.Namespace) -> Json:
    left = [(item, mode) for item in reversed(chosen) for mode in MODES]
    total, wrong = Counter[str](), list[str]()
    by_mode: dict[str, Counter[str]] = {mode: Counter() for mode in MODES}

    async def stream(chance: random.Random) -> None:
        while left:
            (name, messages, tools), mode = left.pop()
            answer = await load.ask(url, body(messages, tools, mode, given, chance.randrange(2**31)))
            told = json.loads(answer.events[0][5:])
            total["requests"] += 1
            if answer.status != 200:
                total[f"status {answer.status}"] += 1
                reason = told["error"]["message"]
                if answer.status >= 500 or "context holds" not in reason:
                    wrong.append(f"{name}, {mode}: {answer.status} {reason[:300]}")
                continue
            if (fault := judge(told, tools, mode, by_mode[mode])) is not None:
                wrong.append(f"{name}, {mode}: {fault}")

    await asyncio.gather(*(stream(random.Random(seed)) for seed in range(given.streams)))
    return {"total": dict(total), "modes": {mode: dict(ends) for mode, ends in by_mode.items()}, "wrong": wrong}


def cost(url: str, chosen: list[tuple[str, list[Json], list[Json]]], given: argparse.Namespace) -> Json:
    """Output tokens a second of answers that may become a call at any token, beside completions of the same ids."""
    words = Tokenizer.open(resolve(given.model))
    pairs: list[tuple[Json, Json]] = []
    for seed, (_, messages, tools) in enumerate(chosen[: 4 * given.streams]):
        asked = body(messages, tools, "auto", given, seed)
        asked |= {"max_tokens": 128, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        chat = ChatBody.model_validate(asked)
        prompt = render(chat_request(chat).messages, chat_request(chat).tools).ids(words)
        free = {name: value for name, value in asked.items() if name not in ("messages", "tools", "tool_choice")}
        pairs.append((asked, free | {"prompt": prompt}))
    paths = {"constrained": f"{url}/v1/chat/completions", "free": f"{url}/v1/completions"}
    found: dict[str, list[float]] = {kind: [] for kind in paths}
    for _ in range(6):  # the first computes the prompts, the others find them
        for place, (kind, path) in enumerate(paths.items()):
            report = load.run(path, [pair[place] for pair in pairs], given.streams).report()
            found[kind].append(report["output_tokens_per_s"])
    return {kind: median(rates[1:]) for kind, rates in found.items()}


def untrained(folder: Path) -> Path:
    from baltoro.config import ModelConfig
    from baltoro.model.load import initialise, save

    nano = resolve("nano")
    save(initialise(ModelConfig.open(nano), seed=0), folder)
    shutil.copy(nano / "tiktoken.model", folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--url")
    parser.add_argument("--upstream")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--port", type=int, default=8130)
    given = parser.parse_args()
    given.name = "baltoro"
    every = list(items(given.folder))
    random.Random(0).shuffle(every)
    with ExitStack() as opened:
        url = given.url
        if url is None:
            model = given.model
            if given.random:
                model = str(untrained(Path(opened.enter_context(tempfile.TemporaryDirectory()))))
            command = [sys.executable, "-m", "baltoro", "serve", model, "--port", str(given.port)]
            command += ["--upstream", given.upstream] if given.upstream else []
            url = opened.enter_context(serve.Server("baltoro", command, given.port).running())
        began = time.perf_counter()
        found = asyncio.run(check(f"{url}/v1/chat/completions", every[: given.items], given))
        seconds = time.perf_counter() - began
        costs = cost(url, every, given) if given.cost else None
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    asked = {"model": "untrained" if given.random else given.model, "items": len(every[: given.items])}
    when = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 1)}
    print(json.dumps(machine | asked | when | {"cost": costs} | found, indent=1))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
