"""Scores beside what was published of seven models: as lines, as data, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from baltoro.eval import card
from baltoro.eval.charts import BarRow, bars, page, table
from baltoro.eval.evaluate import Result

Json = Any


def deviations(result: Result) -> list[str]:
    """Where a result's protocol is not the card's; a number beside the published ones means nothing without this."""
    theirs = next((each for each in card.benchmarks() if each.task == result.task), None)
    if theirs is None:
        return []
    ours = result.protocol
    found = [
        f"{name} {getattr(ours, name)} instead of {getattr(theirs, name)}"
        for name in ("samples", "max_tokens", "temperature")
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if theirs.judge:
        found.append(f"whoever is not asked but plays a part need not be the card's: {theirs.judge}")
    return [*found, *([f"the first {ours.limit} questions of each kind"] if ours.limit is not None else [])]


def published(result: Result) -> dict[str, float]:
    """Percent by model; empty where the card has no such benchmark."""
    theirs = next((each for each in card.benchmarks() if each.task == result.task), None)
    return dict(card.published()[f"{theirs.benchmark}|{theirs.metric}"]) if theirs else {}


def document(model: str, results: Sequence[Result], open_ends: Sequence[str]) -> dict[str, Json]:
    rows = [{**asdict(each), "deviations": deviations(each), "published": published(each)} for each in results]
    return {"model": model, "results": rows, "open": list(open_ends)}


def lines(model: str, results: Sequence[Result], open_ends: Sequence[str]) -> list[str]:
    told = [f"{model}, 95 % intervals"]
    for each in results:
        share = f"{each.score:6.1%} [{each.low:.1%}, {each.high:.1%}] of {each.questions}"
        cost = "" if each.cost is None else f", cost {each.cost}"
        told.append(f"{each.task:18}{share}  protocol {each.protocol_hash}, "
                    f"{each.prompt_tokens + each.completion_tokens:,} tokens{cost}")  # fmt: skip
        notes = [f"{each.refused} refused"] * bool(each.refused) + [f"{each.cut} cut by max_tokens"] * bool(each.cut)
        if theirs := published(each):
            notes.append("published: " + ", ".join(f"{name} {value}" for name, value in theirs.items()))
            notes += [f"not the card's protocol: {', '.join(found)}"] if (found := deviations(each)) else []
        told += [f"  {note}" for note in notes]
    return [*told, *open_ends]


def html(model: str, results: Sequence[Result], open_ends: Sequence[str]) -> str:
    ours = [
        BarRow(each.task, each.score, f"{each.score:.1%} of {each.questions}", True, each.low, each.high)
        for each in results
    ]
    sections = [("All tasks", bars("scores", ours))]
    for each in results:
        theirs = published(each)
        if not theirs:
            continue
        row = BarRow(f"{model}, here", each.score, f"{each.score:.1%}", True, each.low, each.high)
        others = [BarRow(name, value / 100, f"{value}") for name, value in theirs.items()]
        found = deviations(each)
        note = f"<p>Not the card's protocol: {'; '.join(found)}.</p>" if found else "<p>By the card's protocol.</p>"
        sections.append((f"{each.task} beside the published numbers", bars(each.task, [row, *others]) + note))
    head = ["task", "score", "95 %", "questions", "refused", "cut", "tokens", "cost", "protocol"]
    cells = [
        [each.task, f"{each.score:.1%}", f"{each.low:.1%} to {each.high:.1%}", str(each.questions), str(each.refused),
         str(each.cut), f"{each.prompt_tokens + each.completion_tokens:,}", each.cost or "", each.protocol_hash]
        for each in results
    ]  # fmt: skip
    sections.append(("In numbers", table(head, cells)))
    if open_ends:
        sections.append(("Not done", table([""], [[each] for each in open_ends])))
    models = list(next(iter(card.published().values())))
    rows = [[f"{each.benchmark}, {each.metric}", *(_cell(each, name) for name in models)] for each in card.benchmarks()]
    sections.append(("The card: 32 benchmarks, seven models", table(["benchmark", *models], rows)))
    return page(f"{model} evaluated", sections)


def _cell(found: card.Benchmark, model: str) -> str:
    value = card.published()[f"{found.benchmark}|{found.metric}"].get(model)
    return "—" if value is None else str(value)
