"""What constrained decoding costs: ours (llguidance) beside xgrammar, in one run. Prints one JSON line.

    python bench/grammar.py                                  the nano model's vocabulary
    python bench/grammar.py --vocabulary FILE --ranks 163584 any tiktoken file, cut to K2's size

The first ranks of a byte-pair vocabulary are a vocabulary, so OpenAI's o200k_base cut to 163,584 stands in for K2's.
xgrammar is measured where it is installed; it needs torch and transformers.
Ours includes what the engine needs: the state machine around the arguments, and the mask as one bool a token.
Seconds are processor time, microseconds the best mean of three passes over a tool's arguments.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from baltoro.chat.grammar import Grammar, ToolConstraint
from baltoro.chat.messages import Tool, ToolChoice
from baltoro.chat.tokenizer import Tokenizer, read_ranks
from baltoro.errors import SchemaError


def of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


TODO = {
    "type": "object",
    "properties": {
        "content": {"type": "string", "minLength": 1, "maxLength": 500},
        "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
        "id": {"type": "string", "pattern": "^[a-z]{2}-[0-9]+$"},
        "due": {"type": "string", "format": "date-time"},
        "parent": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["content", "status", "id"],
    "additionalProperties": False,
}
NODE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    "required": ["name"],
    "additionalProperties": False,
}
ITEM = {"content": "Write and measure it", "status": "in_progress", "id": "ab-12", "due": "2026-11-22T10:00:00Z"}
TOOLS: dict[str, tuple[dict[str, Any], Any]] = {  # kind of tool -> its schema, arguments as a model writes them
    "weather": (
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
        },
        {"city": "Beijing", "unit": "celsius"},
    ),
    "any object": ({"type": "object"}, {"city": "Beijing", "x": [1, 2, {"a": None}], "note": "a longer string"}),
    "write file": (
        {
            "type": "object",
            "properties": {"file_path": {"type": "string"}, "content": {"type": "string"}},
            "required": ["file_path", "content"],
            "additionalProperties": False,
        },
        {"file_path": "/home/u/a.py", "content": "import os\n\ndef main():\n    print('hello', os.getcwd())\n" * 6},
    ),
    "todo list": (
        of({"type": "array", "maxItems": 50, "items": TODO}),
        {"a": [ITEM | {"parent": None}, ITEM | {"parent": "ab-1"}, ITEM]},
    ),
    "tree": (
        of({"$ref": "#/$defs/node"}) | {"$defs": {"node": NODE}},
        {"a": {"name": "a", "children": [{"name": "b", "children": []}, {"name": "c"}]}},
    ),
}
# Keyword -> schema of `a`, a value that it accepts, one that it must refuse.
KEYWORDS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "type": ({"type": "integer"}, 1, "1"),
    "enum": ({"enum": ["x", 2]}, "x", "y"),
    "const": ({"const": "x"}, "x", "y"),
    "items": ({"type": "array", "items": {"type": "integer"}}, [1], ["1"]),
    "minItems": ({"type": "array", "minItems": 2}, [1, 2], [1]),
    "maxItems": ({"type": "array", "maxItems": 1}, [1], [1, 2]),
    "minimum": ({"type": "integer", "minimum": 5}, 5, 4),
    "maximum": ({"type": "number", "maximum": 5}, 5, 5.5),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 5}, 6, 5),
    "minLength": ({"type": "string", "minLength": 2}, "ab", "a"),
    "maxLength": ({"type": "string", "maxLength": 2}, "ab", "abc"),
    "pattern": ({"type": "string", "pattern": "^[a-c]+$"}, "abc", "abd"),
    "format": ({"type": "string", "format": "date"}, "2026-11-22", "tomorrow"),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, "x"),
    "required": ({"type": "object", "properties": {"b": {}}, "required": ["b"]}, {"b": 1}, {}),
    "additionalProperties": ({"type": "object", "properties": {}, "additionalProperties": False}, {}, {"b": 1}),
    "propertyNames": ({"type": "object", "propertyNames": {"enum": ["b"]}}, {"b": 1}, {"c": 1}),
    "$ref": ({"$ref": "#/$defs/d"}, 1, "x"),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, None, "x"),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, 3, 2),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, [1, 2], [1, 1]),
    "not": ({"not": {"type": "string"}}, 1, "x"),
}
DEFS = {"$defs": {"d": {"type": "integer"}}}


class Ours:
    def __init__(self, tokenizer: Tokenizer) -> None:
        began = time.process_time()  # of this process alone: a busy machine must not show in seconds of work
        self.grammar = Grammar(tokenizer)
        self.startup_s = time.process_time() - began
        self.tokenizer = tokenizer

    def compile(self, schema: dict[str, Any]) -> Callable[[], ToolConstraint]:
        tool = Tool(name="f", parameters=schema, declaration={})
        self.grammar.compile([tool], ToolChoice(mode="required"), next_index=0)

        def start() -> ToolConstraint:
            constraint = self.grammar.compile([tool], ToolChoice(mode="required"), next_index=0)
            head = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
            for token in self.tokenizer.encode_with_specials(head):
                constraint.advance(token)
            return constraint

        return start

    def accepts(self, schema: dict[str, Any], text: str) -> bool:
        constraint = self.compile(schema)()
        for token in [*self.tokenizer.encode(text), self.tokenizer.tool_call_end]:
            if not constraint.mask()[token]:
                return False
            constraint.advance(token)
        return True


class _Matcher:
    """xgrammar's matcher with our two verbs."""

    def __init__(self, xgrammar: Any, compiled: Any, vocab_size: int) -> None:
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bits = xgrammar.allocate_token_bitmask(1, vocab_size)

    def mask(self) -> None:
        self._matcher.fill_next_token_bitmask(self._bits)

    def advance(self, token: int) -> None:
        assert self._matcher.accept_token(token)


class Xgrammar:
    def __init__(self, tokenizer: Tokenizer) -> None:
        import torch
        import xgrammar

        torch.set_num_threads(1)
        self.xgrammar = xgrammar
        self.vocab_size = tokenizer.vocab_size
        tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        began = time.process_time()
        info = xgrammar.TokenizerInfo(
            tokens, xgrammar.VocabType.RAW, vocab_size=tokenizer.vocab_size, stop_token_ids=[tokenizer.tool_call_end]
        )
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self.startup_s = time.process_time() - began

    def _compiled(self, schema: dict[str, Any]) -> Any:
        return self.compiler.compile_json_schema(json.dumps(schema), any_whitespace=False, strict_mode=False)

    def compile(self, schema: dict[str, Any]) -> Callable[[], _Matcher]:
        compiled = self._compiled(schema)
        return lambda: _Matcher(self.xgrammar, compiled, self.vocab_size)

    def accepts(self, schema: dict[str, Any], text: str) -> bool:
        matcher = self.xgrammar.GrammarMatcher(self._compiled(schema))
        return matcher.accept_string(text) and matcher.is_completed()


def tool_costs(library: Ours | Xgrammar, ids: dict[str, list[int]]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, (schema, _) in TOOLS.items():
        began = time.process_time()
        start = library.compile(schema)
        compile_ms = (time.process_time() - began) * 1e3
        passes = [token_times(start(), ids[name]) for _ in range(3)]
        rows[name] = {
            "compile_ms": round(compile_ms, 2),
            "tokens": len(ids[name]),
            "first_mean_us": round(statistics.mean(passes[0]), 1),
            "mean_us": round(min(map(statistics.mean, passes)), 1),
            "max_us": round(min(map(max, passes)), 1),
        }
    return rows


def turn_costs(tokenizer: Tokenizer, num_tools: int, num_properties: int) -> dict[str, Any]:
    """What an agent's tools cost, which come again every turn: compiled once, looked up ever after."""
    text = {"type": "string", "description": "What this is for, in so many words. " * 3}
    schemas = [
        {"type": "object", "properties": {f"p{place}_{i}": text for place in range(num_properties)} | {"todo": TODO}}
        for i in range(num_tools)
    ]
    tools = [Tool(name=f"mcp__server__tool_{i}", parameters=each, declaration={}) for i, each in enumerate(schemas)]
    grammar = Grammar(tokenizer)
    times: list[float] = []
    for _ in range(6):
        began = time.process_time()
        grammar.compile(tools, ToolChoice(), next_index=0)
        times.append((time.process_time() - began) * 1e3)
    return {
        "tools": num_tools,
        "characters": sum(len(json.dumps(each)) for each in schemas),
        "first_turn_ms": round(times[0], 1),
        "later_turn_ms": round(min(times[1:]), 2),
    }


def token_times(constraint: ToolConstraint | _Matcher, tokens: Sequence[int]) -> list[float]:
    """Microseconds of mask and advance, for each token."""
    times: list[float] = []
    for token in tokens:
        began = time.perf_counter()
        constraint.mask()
        constraint.advance(token)
        times.append((time.perf_counter() - began) * 1e6)
    return times


def keyword(library: Ours | Xgrammar, word: str) -> str:
    """enforced, ignored (accepts what it must not), strict (refuses what it must accept), or refused."""
    schema, good, bad = KEYWORDS[word]
    schema = of(schema) | DEFS
    try:
        if library.accepts(schema, json.dumps({"a": bad})):
            return "ignored"
        return "enforced" if library.accepts(schema, json.dumps({"a": good})) else "strict"
    except (SchemaError, RuntimeError, ValueError):
        return "refused"


def import_s(module: str) -> float:
    """Processor seconds that importing takes in a fresh interpreter."""
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    return round(min(float(run.stdout) for run in runs), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, default=Path(__file__).parents[1] / "baltoro/nano/tiktoken.model")
    parser.add_argument("--ranks", type=int, help="use only the first ranks of the vocabulary")
    options = parser.parse_args()
    ranks = read_ranks(options.vocabulary)
    tokenizer = Tokenizer({token: rank for token, rank in ranks.items() if rank < (options.ranks or len(ranks))})
    ids = {name: tokenizer.encode(json.dumps(arguments)) for name, (_, arguments) in TOOLS.items()}

    report: dict[str, Any] = {"bench": "grammar", "vocab_size": tokenizer.vocab_size}
    ours = Ours(tokenizer)
    free = ours.grammar.compile([Tool(name="f", parameters={}, declaration={})], ToolChoice(), next_index=0)
    report["text_us"] = round(min(statistics.mean(token_times(free, range(1000))) for _ in range(5)), 2)
    report["turns"] = [turn_costs(tokenizer, 24, 14), turn_costs(tokenizer, 300, 2)]
    libraries: dict[str, tuple[str, Ours | Xgrammar]] = {"ours": ("baltoro.chat.grammar", ours)}
    if find_spec("xgrammar"):
        libraries["xgrammar"] = ("xgrammar", Xgrammar(tokenizer))
    for name, (module, library) in libraries.items():
        costs = tool_costs(library, ids)  # first: the keywords' schemas would warm the caches
        verdicts = {word: keyword(library, word) for word in KEYWORDS}
        report[name] = {
            "import_s": import_s(module),
            "startup_s": round(library.startup_s, 3),
            "tools": costs,
            "keywords": {"enforced": sum(verdict == "enforced" for verdict in verdicts.values())}
            | {word: verdict for word, verdict in verdicts.items() if verdict != "enforced"},
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
