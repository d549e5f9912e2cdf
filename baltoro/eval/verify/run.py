"""`baltoro verify`: samples and suites against one endpoint, into one folder.

    DIR/ledger.jsonl    every answer as it came, until the run is complete; then answers.jsonl
    DIR/results.jsonl   a row a sample, as K2-Vendor-Verifier writes it
    DIR/report.json     what was found; `baltoro serve --verified` shows its scores in /health
    DIR/report.html     the same as a page

A run that was killed or whose budget was spent goes on where it was; one that is complete is made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import BaltoroError
from baltoro.eval.budget import Budget, BudgetSpent
from baltoro.eval.display import Display
from baltoro.eval.document import text_at
from baltoro.eval.endpoint import Endpoint, connected
from baltoro.eval.ledger import Ledger
from baltoro.eval.verify import calls, ids, metrics, parameters, prompts, report, stream
from baltoro.eval.verify.check import Check, Suite
from baltoro.eval.verify.samples import Sample, foreign_ids

Json = Any
SUITES = ("calls", "stream", "parameters", "tokens", "template", "ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to verify, and what that may take."""

    url: str
    model: str | None
    key: str | None
    samples: Sequence[Sample]
    reference: Sequence[metrics.Row] | None
    suites: Sequence[str] = SUITES
    tokenizer: Tokenizer | None = None  # of the model; None: tokens and template are left out
    out: Path
    extra: Mapping[str, Json] = field(default_factory=dict[str, Json])
    concurrency: int = 5
    retries: int = 5
    timeout_s: float = 600.0
    budget: Budget = field(default_factory=Budget)


async def run(order: Order) -> dict[str, Json]:
    """The report, which lies in `order.out` too."""
    async with connected(order.url, key=order.key, model=order.model, timeout_s=order.timeout_s) as (client, model):
        owner = {"url": order.url, "model": model, "extra": dict(order.extra)}
        with Ledger(order.out / "ledger.jsonl", owner) as ledger, Display(order.budget) as display:
            if len(ledger):
                display.say(f"{len(ledger)} answers are in {order.out} already")
            endpoint = Endpoint(
                client, model, ledger=ledger, budget=order.budget, extra=order.extra,
                concurrency=order.concurrency, retries=order.retries,
            )  # fmt: skip
            found, whole = await _verify(endpoint, order, display)
    if whole:
        (order.out / "ledger.jsonl").replace(order.out / "answers.jsonl")
    return found


async def _verify(endpoint: Endpoint, order: Order, display: Display) -> tuple[dict[str, Json], bool]:
    open_ends: list[str] = []
    rows: list[calls.Row] = []
    spent: BudgetSpent | None = None
    if "calls" in order.suites:
        if crooked := sum(foreign_ids(sample.body) > 0 for sample in order.samples):
            open_ends.append(f"{crooked} samples have ids in their history that are not K2's: --canonical-ids renames")
        bar = display.begin("samples", len(order.samples))
        rows, spent = await calls.ask_all(endpoint, order.samples, lambda: display.advance(bar))
        if missing := len(order.samples) - len(rows):
            open_ends.append(f"{missing} of {len(order.samples)} samples were not asked")
    checks: list[Check] = []
    suites = _suites(order, open_ends)
    bar = display.begin("suites", len(suites))
    for suite in suites:
        try:
            checks += await suite(endpoint) if spent is None else ()
        except BudgetSpent as error:
            spent = error
        display.advance(bar)
    if spent is not None:
        open_ends += [spent.message, spent.hint]
    if endpoint.unanswered:
        open_ends.append(f"{endpoint.unanswered} requests had no answer: the same command asks them again")
    found = report.build(
        rows, order.reference, checks, target=order.url, model=endpoint.model, budget=order.budget, open_ends=open_ends
    )
    write(order.out / "results.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write(order.out / "report.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write(order.out / "report.html", report.html(found))
    return found, spent is None and not endpoint.unanswered


def _suites(order: Order, open_ends: list[str]) -> list[Suite]:
    """Those that were wanted and can be: in the order of SUITES."""
    chosen: list[Suite] = []
    for name, suite in (("stream", stream.suite), ("parameters", parameters.suite)):
        if name in order.suites:
            chosen.append(suite)
    for name, make in (("tokens", prompts.tokens), ("template", prompts.template)):
        if name in order.suites and order.tokenizer is not None:
            chosen.append(make(order.tokenizer))
        elif name in order.suites:
            open_ends.append(f"{name} was left out: --tokenizer DIR names K2's tiktoken.model")
    return [*chosen, ids.suite] if "ids" in order.suites else chosen


def recount(path: Path, reference: Sequence[metrics.Row] | None) -> dict[str, Json]:
    """The report on a file of results that somebody recorded; nobody is asked."""
    rows = metrics.read(path)
    if not rows:
        raise BaltoroError(f"{path} is empty", hint="expected results.jsonl of K2-Vendor-Verifier, or ours")
    model = text_at(rows[0], "request", "model") or "unknown"
    return report.build(rows, reference, (), target=str(path), model=model)


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)
