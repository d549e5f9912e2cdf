"""K2-Vendor-Verifier's counts, by its names: of the summary that its program writes, and of its README's tables.

`tool_call_f1`: does this endpoint call a tool where the reference did? `schema_accuracy`: of the answers that ended
with tool_calls, those whose every call is valid. What failed or ended otherwise is in neither.

Source: https://github.com/MoonshotAI/K2-Vendor-Verifier at 0bc5061, README.md, "Evaluation Metrics".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from baltoro.errors import BaltoroError
from baltoro.eval.document import at

Json = Any
Row = Mapping[str, Json]


def read(path: Path) -> list[Row]:
    """results.jsonl, theirs or ours; of several rows of one index the latest counts."""
    latest: dict[int, Row] = {}
    hint = "expected results.jsonl of K2-Vendor-Verifier, or ours"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BaltoroError(f"{path}: {error}", hint=hint) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = cast("Row", json.loads(line))
        except ValueError as error:
            raise BaltoroError(f"{path}, line {number}: {error}", hint=hint) from error
        index = at(row, "data_index")
        if not isinstance(index, int):
            raise BaltoroError(f"{path}, line {number} has no data_index", hint=hint)
        before = latest.get(index)
        if before is None or str(row.get("last_run_at")) > str(before.get("last_run_at")):
            latest[index] = row
    return [latest[index] for index in sorted(latest)]


def summary(rows: Sequence[Row], model: str) -> dict[str, Json]:
    """The counts of a file of results."""
    finish = [row.get("finish_reason") for row in rows]
    called = [row for row in rows if row.get("finish_reason") == "tool_calls"]
    good = sum(bool(row.get("tool_calls_valid")) for row in called)
    others = Counter(cast("str", reason) for reason in finish if reason and reason not in ("stop", "tool_calls"))
    succeeded = sum(row.get("status") == "success" for row in rows)
    usage = {name: sum(_tokens(row, name) for row in rows) for name in _USAGE}
    return {
        "model": model,
        "success_count": succeeded,
        "failure_count": len(rows) - succeeded,
        "finish_stop": finish.count("stop"),
        "finish_tool_calls": len(called),
        "finish_others": others.total(),
        "finish_others_detail": dict(others),
        "schema_validation_error_count": len(called) - good,
        "successful_tool_call_count": good,
        "usage": usage,
        "count_finish_reason_tool_calls": len(called),
        "count_successful_tool_call": good,
        "schema_accuracy": good / len(called) if called else None,
    }


def similarity(rows: Sequence[Row], reference: Sequence[Row]) -> dict[str, Json]:
    """How alike two files of results are in whether they call: TP, FP, FN, TN, precision, recall, tool_call_f1.

    Rows belong together by their index, and must have asked the same. A pair of which one failed tells nothing.
    """
    official = {row["data_index"]: row for row in reference}
    counts = Counter[str]()
    skipped = 0
    for row in rows:
        other = official.get(row["data_index"])
        if other is None or not row.get("finish_reason") or not other.get("finish_reason"):
            skipped += 1
            continue
        if _asked(row) != _asked(other):
            raise BaltoroError(
                f"request {row['data_index']} of the reference asked something else",
                hint="--reference takes the results to the same --samples",
            )
        here, there = row["finish_reason"] == "tool_calls", other["finish_reason"] == "tool_calls"
        counts[("T" if here == there else "F") + ("P" if here else "N")] += 1
    precision = _share(counts["TP"], counts["FP"])
    recall = _share(counts["TP"], counts["FN"])
    f1 = 2 * precision * recall / (precision + recall) if precision and recall else None
    if f1 is None and (counts["FP"] or counts["FN"]):
        f1 = 0.0
    return {
        **{name: counts[name] for name in ("TP", "FP", "FN", "TN")},
        "not_compared": skipped,
        "tool_call_precision": precision,
        "tool_call_recall": recall,
        "tool_call_f1": f1,
    }


_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def _tokens(row: Row, name: str) -> int:
    value = at(row, "response", "usage", name)
    return value if isinstance(value, int) else 0


def _asked(row: Row) -> Json:
    """The last turn: histories may differ in their ids, and so may models and sampling."""
    return at(row, "request", "messages", -1, "content")


def _share(part: int, other: int) -> float | None:
    return part / (part + other) if part + other else None
