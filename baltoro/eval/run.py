"""python -m baltoro.eval.run [MODEL] [--task nano] [--data DIR] [--examples 200] [--free] [--format int4] [--json FILE]

Held-out scores of a model by kind: tools, words and values that training never showed. Greedy; with the
grammar as the server uses it, or `--free`, where nothing helps the model. `--task bfcl --data DIR` asks the
questions of the Berkeley Function Calling Leaderboard, whose files lie in DIR; a prompt that the model has no
room for counts as wrong, and so does one of whose functions no grammar can be made.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from baltoro.chat.grammar import Grammar
from baltoro.chat.messages import ToolChoice
from baltoro.chat.tokenizer import Tokenizer
from baltoro.engine.config import EngineConfig
from baltoro.engine.engine import Engine
from baltoro.engine.request import Constraint, Request, SamplingParams, Step
from baltoro.errors import BaltoroError
from baltoro.eval.score import Example, Score, summary
from baltoro.eval.tasks import bfcl, nano
from baltoro.kernels.formats import FORMATS

ANSWER_TOKENS = 200  # the longest held-out answer has fewer
CACHE_BYTES = 256 * 2**20


def generate(
    engine: Engine,
    prompts: Sequence[list[int]],
    stop_ids: frozenset[int],
    constraints: Sequence[Constraint | None] = (),
) -> list[list[int]]:
    """Greedy continuations of all prompts, run side by side."""
    answers: list[list[int]] = [[] for _ in prompts]
    left = threading.Semaphore(0)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        engine.submit(
            Request(
                prompt=prompt,
                sampling=SamplingParams(max_tokens=ANSWER_TOKENS, stop_token_ids=stop_ids),
                sink=_sink(answer, left),
                constraint=constraints[index] if constraints else None,
            )
        )
    for _ in prompts:
        left.acquire()
    return answers


def _sink(answer: list[int], left: threading.Semaphore) -> Callable[[Step], None]:
    def sink(step: Step) -> None:
        if step.token is not None:
            answer.append(step.token)
        if step.finish is not None:
            left.release()

    return sink


def scores(engine: Engine, tokenizer: Tokenizer, examples: Sequence[Example], *, constrained: bool) -> list[Score]:
    """One verdict an example. `constrained`: calls follow the grammar, as they do in the server."""
    grammar = Grammar(tokenizer)
    refused = {e.id: why for e in examples if (why := _refused(engine, tokenizer, grammar if constrained else None, e))}
    asked = [e for e in examples if e.id not in refused]

    def answers(prompts: list[list[int]], asked: Sequence[Example]) -> list[list[int]]:
        constraints = [
            grammar.compile(e.request.tools, ToolChoice(), next_index=nano.num_calls(e)) for e in asked if constrained
        ]
        return generate(engine, prompts, tokenizer.stop_ids, constraints)

    found = iter(nano.evaluate(answers, tokenizer, asked))
    return [
        Score(example=e.id, kind=e.kind, right=False, reason=refused[e.id]) if e.id in refused else next(found)
        for e in examples
    ]


def _refused(engine: Engine, tokenizer: Tokenizer, grammar: Grammar | None, example: Example) -> str:
    """Why a server would refuse the question; nothing if it would not."""
    tokens = len(nano.prompt(example, tokenizer))
    if tokens >= engine.max_context:
        return f"a prompt of {tokens} tokens, the model reads {engine.max_context - 1}"
    try:
        if grammar:
            grammar.compile(example.request.tools, ToolChoice(), next_index=nano.num_calls(example))
    except BaltoroError as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m baltoro.eval.run", description="Held-out scores by kind.")
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--task", choices=("nano", "bfcl"), default="nano")
    parser.add_argument("--data", type=Path, help="folder of the task's questions, for bfcl")
    parser.add_argument("--examples", type=int, default=200, help="of each kind")
    parser.add_argument("--free", action="store_true", help="without the grammar")
    parser.add_argument("--format", choices=FORMATS, help="keep the projections so")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers a kind")
    parser.add_argument("--json", type=Path, help="write the scores there too")
    args = parser.parse_args()
    if (args.task == "bfcl") != (args.data is not None):
        parser.error("--task bfcl needs --data DIR, and no other task has it")
    asked = bfcl.examples(args.data, args.examples) if args.data else nano.examples(args.examples)
    from baltoro.config import resolve
    from baltoro.model.load import load

    directory = resolve(args.model)
    tokenizer = Tokenizer.open(directory)
    import torch

    with Engine(
        load(directory, format=args.format), EngineConfig(cache_bytes=CACHE_BYTES, cache_dtype=torch.float32)
    ) as engine:
        found = scores(engine, tokenizer, asked, constrained=not args.free)
    print(nano.table(found))
    shown: dict[str, int] = {}
    for score in found:
        shown[score.kind] = shown.get(score.kind, 0) + (not score.right)
        if not score.right and shown[score.kind] <= args.wrong:
            print(f"{score.example}: {score.reason}", file=sys.stderr)
    if args.json:
        table = {k: {name: share._asdict() for name, share in checks.items()} for k, checks in summary(found).items()}
        args.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
