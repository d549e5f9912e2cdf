"""A prediction beside what was measured: by `baltoro doctor --json`, or by a running server (GET /stats).

doctor    tokens_per_s of one request, prompt tokens a second, seconds of loading
server    the means of its histograms: seconds a token of a request, seconds to the first token
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from baltoro.errors import PlanError
from baltoro.plan.efficiency import Band
from baltoro.plan.planner import Plan
from baltoro.plan.speed import per_second
from baltoro.plan.text import number


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    what: str
    predicted: Band
    measured: float

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted.expected

    @property
    def verdict(self) -> str:
        if self.measured < self.predicted.least:
            return "slower than it should be: `baltoro doctor` says why"
        return "faster than foreseen" if self.measured > self.predicted.most else "within the band"

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"predicted": self.predicted._asdict(), "ratio": self.ratio, "verdict": self.verdict}


def line(row: Row) -> str:
    band = f"{number(row.predicted.expected)} ({number(row.predicted.least)} to {number(row.predicted.most)})"
    return f"{row.what:28} predicted {band:32} measured {number(row.measured):>9}  {row.ratio:5.2f}x  {row.verdict}"


def read(path: str) -> dict[str, Any]:
    try:
        document: object = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(
            f"{path}: {error.strerror}", hint="--check takes a URL, or what `baltoro doctor --json` printed"
        ) from error
    except ValueError as error:
        raise PlanError(
            f"{path} is not JSON: {error}", hint="`baltoro doctor MODEL --json > FILE` writes one"
        ) from error
    if not isinstance(document, dict):
        raise PlanError(f"{path} holds {type(document).__name__}, expected an object")
    return cast("dict[str, Any]", document)


def compare(plan: Plan, measured: dict[str, Any]) -> list[Row]:
    facts: object = measured.get("facts")
    by_doctor = isinstance(facts, dict)
    rows = _of_doctor(plan, cast("dict[str, Any]", facts)) if by_doctor else _of_server(plan, measured)
    if not rows:
        raise PlanError("there is nothing to compare: no token was measured", hint="ask the server something first")
    return rows


def _of_doctor(plan: Plan, facts: dict[str, Any]) -> list[Row]:
    if facts.get("format") != plan.format.name:
        raise PlanError(
            f"doctor measured {facts.get('format')}, and the plan is for {plan.format.name}",
            hint=f"--format {facts.get('format')}, or run doctor with --format {plan.format.name}",
        )
    rows = [Row(what="decode, tokens/s", predicted=plan.tokens_per_s, measured=facts["tokens"] / facts["seconds"])]
    nearest = min(plan.prompts, key=lambda each: abs(each.tokens - facts["prompt_tokens"]))
    if facts["prompt_tokens"] >= nearest.tokens / 4:  # shorter prompts are other work
        rate = facts["prompt_tokens"] / facts["prompt_s"]
        rows.append(Row(what="prompt, tokens/s", predicted=nearest.tokens_per_s, measured=rate))
    loads = per_second(plan.weights.whole / 1e6, plan.load.seconds)
    rows.append(Row(what="loading, MB/s", predicted=loads, measured=plan.weights.whole / 1e6 / facts["load_s"]))
    return rows


def _of_server(plan: Plan, stats: dict[str, Any]) -> list[Row]:
    histograms = stats.get("engine", {}).get("histograms")
    if not isinstance(histograms, dict):
        raise PlanError(
            "what was measured has neither doctor's facts nor a server's histograms", hint="of this version?"
        )
    found = cast("dict[str, dict[str, float]]", histograms)
    rows: list[Row] = []
    each_token = found["request_time_per_output_token_seconds"]
    if each_token["count"] and each_token["sum"] > 0:
        rate = each_token["count"] / each_token["sum"]
        rows.append(Row(what="decode of a request, tokens/s", predicted=plan.tokens_per_s, measured=rate))
    first = found["time_to_first_token_seconds"]
    prefilled = stats["engine"].get("prefilled_tokens", 0)
    if first["count"] and first["sum"] > 0 and prefilled:
        shortest = plan.prompts[0]
        rows.append(Row(what="prompt, tokens/s", predicted=shortest.tokens_per_s, measured=prefilled / first["sum"]))
    return rows
