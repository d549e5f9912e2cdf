"""What a verification found, as data, as lines for people, as a page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from baltoro.eval.budget import Budget
from baltoro.eval.charts import BarRow, bars, page, table
from baltoro.eval.verify import metrics
from baltoro.eval.verify.check import Check, Verdict
from baltoro.server.prices import shown

Json = Any
VERDICTS: tuple[Verdict, ...] = ("pass", "fail", "refused", "unknown")


def build(
    rows: Sequence[metrics.Row],
    reference: Sequence[metrics.Row] | None,
    checks: Sequence[Check],
    *,
    target: str,
    model: str,
    budget: Budget | None = None,
    open_ends: Sequence[str] = (),
) -> dict[str, Json]:
    """open_ends: what was not asked or could not be, in words."""
    alike = metrics.similarity(rows, reference) if reference is not None else {"tool_call_f1": None}
    cost = budget.cost if budget else None
    return {
        "target": target,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **metrics.summary(rows, model),
        **alike,
        "checks": [asdict(check) for check in checks],
        "verdicts": {verdict: sum(check.verdict == verdict for check in checks) for verdict in VERDICTS},
        "cost": None if cost is None else shown(cost),
        "open": list(open_ends),
    }


def lines(report: dict[str, Json]) -> list[str]:
    told = [f"{report['model']} at {report['target']}, {report['at']}"]
    if report["success_count"] or report["failure_count"]:
        told += [
            f"schema_accuracy   {_percent(report['schema_accuracy'])}  "
            f"{report['count_successful_tool_call']} of {report['count_finish_reason_tool_calls']} that called",
            f"tool_call_f1      {_percent(report['tool_call_f1'])}  {_against(report)}",
            f"requests          {report['success_count']} answered, {report['failure_count']} failed; finish: "
            f"{report['finish_stop']} stop, {report['finish_tool_calls']} tool_calls, {report['finish_others']} others",
        ]
    for suite, counts in _suites(report).items():
        told.append(f"{suite:<17} " + ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v]))
    told += [
        f"  {check['verdict']:8}{check['suite']}: {check['name']}: {check['detail']}"
        for check in report["checks"]
        if check["verdict"] != "pass"
    ]
    if report["cost"] is not None:
        told.append(f"cost              {report['cost']}")
    return [*told, *report["open"]]


def html(report: dict[str, Json]) -> str:
    vendors = json.loads(files("baltoro.eval.verify").joinpath("vendors.json").read_text("utf-8"))
    sections = [("What was asked", table(["", ""], _facts(report)))]
    if report["schema_accuracy"] is not None:
        here = BarRow(
            f"{report['model']}, here", report["schema_accuracy"], _percent(report["schema_accuracy"]), ours=True
        )
        theirs = [
            BarRow(row["name"], row["valid"] / row["called"], _percent(row["valid"] / row["called"]))
            for row in vendors["rows"]
        ]
        note = (
            f"<p>Others: {vendors['source']}. Their requests are not these, unless Moonshot's samples were asked.</p>"
        )
        sections.append(("schema_accuracy", bars("schema accuracy", [here, *theirs]) + note))
    if report["tool_call_f1"] is not None:
        names = ("tool_call_f1", "tool_call_precision", "tool_call_recall")
        shares = [BarRow(name, report[name], _percent(report[name]), ours=True) for name in names]
        wanted = BarRow("wanted of K2 0905", vendors["tool_call_f1_wanted"], "80.00%")
        sections.append(("tool_call_f1", bars("whether tools are called", [*shares, wanted])))
    if report["checks"]:
        rows = [
            BarRow(suite, counts["pass"] / counts.total(), f"{counts['pass']} of {counts.total()}", ours=True)
            for suite, counts in _suites(report).items()
        ]
        listed = table(
            ["", "suite", "check", "what was seen"],
            [[check[name] for name in ("verdict", "suite", "name", "detail")] for check in report["checks"]],
        )
        sections.append(("Suites", bars("checks passed", rows) + listed))
    return page(f"{report['model']} verified", sections)


def _facts(report: dict[str, Json]) -> list[list[str]]:
    names = ("target", "model", "at", "success_count", "failure_count", "finish_stop", "finish_tool_calls",
             "finish_others", "count_successful_tool_call", "schema_validation_error_count", "cost")  # fmt: skip
    facts = [[name, str(report[name])] for name in names if report[name] is not None]
    return [*facts, ["tokens", f"{report['usage']['total_tokens']:,}"], *(["open", each] for each in report["open"])]


def _suites(report: dict[str, Json]) -> dict[str, Counter[str]]:
    suites: dict[str, Counter[str]] = {}
    for check in report["checks"]:
        suites.setdefault(check["suite"], Counter())[check["verdict"]] += 1
    return suites


def _against(report: dict[str, Json]) -> str:
    if report["tool_call_f1"] is None and "TP" not in report:
        return "needs --reference: the official API's results"
    return ", ".join(f"{name} {report[name]}" for name in ("TP", "FP", "FN", "TN", "not_compared"))


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.2%}"
