"""Tasks x a model -> scores. Every answer goes through a ledger, so a run that was killed goes on, to the same result.

DIR/ledger.jsonl          answers; more samples or questions later pay only what is new
DIR/TASK.records.jsonl    a line an answer: what was said, whether it is right, and why not
DIR/results.json          scores with intervals, protocols and their hashes, cost
DIR/results.html          beside the published numbers
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from baltoro.chat.messages import ToolCall
from baltoro.errors import BaltoroError
from baltoro.eval import document
from baltoro.eval.budget import Budget, BudgetSpent
from baltoro.eval.code import Runner
from baltoro.eval.display import Display
from baltoro.eval.endpoint import Endpoint, Reply
from baltoro.eval.interval import interval
from baltoro.eval.score import Score
from baltoro.eval.task import Item, Said, Task, by_kind, verdict
from baltoro.server.prices import shown

Json = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a task's questions are asked."""

    samples: int  # answers to each question; the score is their mean
    max_tokens: int
    temperature: float
    limit: int | None = None  # questions of each kind; None: all

    def hash(self, task: Task, items: Sequence[Item]) -> str:
        """Equal where everything is that a score depends on, but for the model."""
        asked = [[item.id, item.body, item.truth] for item in items]
        whole = json.dumps(
            [task.name, task.version, asdict(self), asked], sort_keys=True, ensure_ascii=False, default=repr
        )
        return sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    task: str
    benchmark: str | None
    protocol: Protocol
    protocol_hash: str
    score: float
    low: float  # 95 %
    high: float
    questions: int
    refused: int  # answers that the endpoint would not give, as where a prompt does not fit: wrong
    cut: int  # answers that max_tokens ended
    prompt_tokens: int
    completion_tokens: int
    cost: str | None
    kinds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is asked, of whom, and where it is kept."""

    endpoint: Endpoint
    out: Path
    data: Path
    runner: Runner
    display: Display
    user: Endpoint | None = None  # plays the users of conversations; None: the model itself
    length_field: str = "max_tokens"  # max_completion_tokens is a bound that a context may cut, where it is known


async def run(work: Work, tasks: Sequence[tuple[Task, Protocol]]) -> tuple[list[Result], list[str]]:
    """The results of the tasks that are complete, and in words what is not."""
    results: list[Result] = []
    open_ends: list[str] = []
    for task, protocol in tasks:
        items = by_kind(task.items(work.data / task.data), protocol.limit)
        if not items:
            raise BaltoroError(f"{work.data / task.data} has no questions", hint="docs/eval.md says what lies where")
        try:
            answers = await _ask(work, task, protocol, items)
        except BudgetSpent as error:
            open_ends.append(f"{task.name}: {error.message}; {error.hint}")
            break
        if missing := sum(_unanswered(reply) for replies in answers for reply in replies):
            open_ends.append(f"{task.name}: {missing} requests had no answer; the same command asks them again")
            continue
        results.append(await asyncio.to_thread(_judge, work, task, protocol, items, answers))
    return results, open_ends


async def _ask(work: Work, task: Task, protocol: Protocol, items: Sequence[Item]) -> list[list[Reply]]:
    bar = work.display.begin(task.name, len(items) * protocol.samples)

    async def one(item: Item, sample: int) -> Reply:
        sampling = {"temperature": protocol.temperature, "seed": _seed(item, sample),
                    work.length_field: protocol.max_tokens}  # fmt: skip
        salt = [task.name, item.id, sample]
        try:
            if task.play is not None:
                user = work.user or work.endpoint
                return await task.play(
                    item,
                    lambda body: work.endpoint.ask({**body, **sampling}, salt=salt),
                    lambda body: user.ask({**body, **sampling}, salt=[*salt, "user"]),
                )
            return await work.endpoint.ask({**item.body, **sampling}, salt=salt)
        finally:
            work.display.advance(bar)

    asked = [asyncio.ensure_future(one(item, sample)) for item in items for sample in range(protocol.samples)]
    if asked:
        await asyncio.wait(asked)  # also where one has failed: what is under way is paid
    for error in [each.exception() for each in asked]:
        if error is not None:
            raise error
    replies = iter(each.result() for each in asked)
    return [[next(replies) for _ in range(protocol.samples)] for _ in items]


def _seed(item: Item, sample: int) -> int:
    """So that a run that is repeated says the same where seeds are honoured."""
    return int.from_bytes(sha256(f"{item.id} {sample}".encode()).digest()[:4], "big") >> 1


def _unanswered(reply: Reply) -> bool:
    return reply.status != 200 and not 400 <= reply.status < 500


def _judge(
    work: Work, task: Task, protocol: Protocol, items: Sequence[Item], answers: Sequence[Sequence[Reply]]
) -> Result:
    scores: list[list[Score]] = []
    records: list[str] = []
    for item, replies in zip(items, answers, strict=True):
        scores.append([])
        for sample, reply in enumerate(replies):
            heard = said(reply)
            score = task.score(item, heard, work.runner) if reply.status == 200 else verdict(item, reply.error)
            scores[-1].append(score)
            calls = [{"name": call.name, "arguments": call.arguments} for call in heard.calls]
            record = {
                "id": item.id, "kind": item.kind, "sample": sample, "right": score.right, "reason": score.reason,
                "checks": dict(score.checks), "text": heard.text, "calls": calls, "finish": heard.finish,
            }  # fmt: skip
            records.append(json.dumps(record, ensure_ascii=False) + "\n")
    write(work.out / f"{task.name}.records.jsonl", "".join(records))
    return _result(work, task, protocol, items, answers, scores)


def _result(
    work: Work, task: Task, protocol: Protocol, items: Sequence[Item], answers: Sequence[Sequence[Reply]],
    scores: Sequence[Sequence[Score]],
) -> Result:  # fmt: skip
    spent = Budget(price=work.endpoint.budget.price)
    replies = [reply for row in answers for reply in row]
    for reply in replies:
        spent.add(reply.usage)
    share = interval([[score.right for score in row] for row in scores])
    kinds: dict[str, list[list[bool]]] = {}
    for item, row in zip(items, scores, strict=True):
        kinds.setdefault(item.kind, []).append([score.right for score in row])
    return Result(
        task=task.name, benchmark=task.benchmark, protocol=protocol, protocol_hash=protocol.hash(task, items),
        score=share.share, low=share.low, high=share.high, questions=len(items),
        refused=sum(reply.status != 200 for reply in replies), cut=sum(said(r).finish == "length" for r in replies),
        prompt_tokens=spent.used.prompt_tokens, completion_tokens=spent.used.completion_tokens,
        cost=None if spent.cost is None else shown(spent.cost),
        kinds={kind: interval(rows).share for kind, rows in kinds.items()},
    )  # fmt: skip


def said(reply: Reply) -> Said:
    choice = document.at(reply.body, "choices", 0)
    calls = tuple(
        ToolCall(
            id=document.text_at(call, "id"), name=document.text_at(call, "function", "name"),
            arguments=document.text_at(call, "function", "arguments"),
        )
        for call in document.listed(choice, "message", "tool_calls")
    )  # fmt: skip
    text = document.text_at(choice, "message", "content")
    return Said(text=text, calls=calls, finish=document.text_at(choice, "finish_reason"))


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)
