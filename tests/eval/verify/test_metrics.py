"""K2-Vendor-Verifier's counts, against a second way of counting that starts from the responses themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.errors import BaltoroError
from baltoro.eval.endpoint import Endpoint, Reply
from baltoro.eval.verify import calls, metrics
from baltoro.eval.verify.samples import Sample
from tests.eval.endpoints import Scripted, document, endpoint

TOOL = {"type": "function", "function": {"name": "f", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}  # fmt: skip
ARGUMENTS = ['{"a": 1}', '{"a": 1, "b": 2}', '{"a": "1"}', '{"a":', "{}", "[]", '{"a": 1.0}']
NAMES = ["f", "g"]
ANSWERS = st.one_of(
    st.tuples(st.just("calls"), st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(ARGUMENTS)), max_size=3)),
    st.tuples(st.sampled_from(["stop", "length", "content_filter", "failed"]), st.just([])),
)


def recorded(folder: Path, answers: list[Any]) -> list[dict[str, Any]]:
    """Rows as a run would write them, of answers as drawn above."""
    asking: Endpoint
    asking, ledger = endpoint(Scripted(lambda _: (200, {})), folder)
    with ledger:
        rows = []
        for index, (finish, made) in enumerate(answers, 1):
            body = {"messages": [{"role": "user", "content": f"question {index}"}], "tools": [TOOL]}
            sample = Sample(index=index, raw=body, body=body)
            told = document("", made, "tool_calls" if finish == "calls" else finish, usage=(index, 2))
            reply = Reply(400, None, "no", 0.1) if finish == "failed" else Reply(200, told, "", 0.1)
            rows.append(json.loads(json.dumps(calls.row(sample, reply, asking))))
    return rows


def good(call: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(call["function"]["arguments"]), TOOL["function"]["parameters"])  # type: ignore[index]
    except (ValueError, jsonschema.ValidationError):
        return False
    return call["function"]["name"] == "f"


@given(answers=st.lists(ANSWERS, max_size=12))
def test_the_summary_counts_what_the_responses_say(
    tmp_path_factory: pytest.TempPathFactory, answers: list[Any]
) -> None:
    rows = recorded(tmp_path_factory.mktemp("rows"), answers)
    choices = [row["response"]["choices"][0] for row in rows if "choices" in row["response"]]
    reasons = [choice["finish_reason"] for choice in choices]
    made = [choice["message"].get("tool_calls", []) for choice in choices if choice["finish_reason"] == "tool_calls"]
    valid = len([each for each in made if each and all(map(good, each))])
    found = metrics.summary(rows, "kimi")
    assert found["success_count"] == len(choices)
    assert found["failure_count"] == len(rows) - len(choices)
    assert found["finish_stop"] == reasons.count("stop")
    assert found["finish_tool_calls"] == found["count_finish_reason_tool_calls"] == len(made)
    assert found["finish_others"] == len([r for r in reasons if r not in ("stop", "tool_calls")])
    assert found["finish_others_detail"] == {r: reasons.count(r) for r in reasons if r not in ("stop", "tool_calls")}
    assert found["successful_tool_call_count"] == found["count_successful_tool_call"] == valid
    assert found["schema_validation_error_count"] == len(made) - valid
    assert found["schema_accuracy"] == (valid / len(made) if made else None)
    prompt = sum(index for index, (finish, _) in enumerate(answers, 1) if finish != "failed")
    assert found["usage"] == {"prompt_tokens": prompt, "completion_tokens": 2 * len(choices),
                              "total_tokens": prompt + 2 * len(choices)}  # fmt: skip


@given(pairs=st.lists(st.tuples(st.sampled_from(["tool_calls", "stop", "length", None]),
                                st.sampled_from(["tool_calls", "stop", "length", None])), max_size=20))  # fmt: skip
def test_f1_is_the_harmonic_mean_of_precision_and_recall_over_answers_that_both_have(pairs: list[Any]) -> None:
    def rows(place: int) -> list[dict[str, Any]]:
        return [{"data_index": i, "finish_reason": pair[place], "request": {}} for i, pair in enumerate(pairs)]

    whole = [pair for pair in pairs if None not in pair]
    here = {i for i, pair in enumerate(whole) if pair[0] == "tool_calls"}
    there = {i for i, pair in enumerate(whole) if pair[1] == "tool_calls"}
    found = metrics.similarity(rows(0), rows(1))
    assert (found["TP"], found["FP"], found["FN"]) == (len(here & there), len(here - there), len(there - here))
    assert found["TN"] == len(whole) - len(here | there)
    assert found["not_compared"] == len(pairs) - len(whole)
    dice = 2 * len(here & there) / (len(here) + len(there)) if here or there else None  # the same by another formula
    assert found["tool_call_f1"] == (None if dice is None else pytest.approx(dice))


def test_a_reference_to_other_questions_is_refused() -> None:
    row = {"data_index": 1, "finish_reason": "stop", "request": {"messages": [{"content": "a"}]}}
    other = {**row, "request": {"messages": [{"content": "b"}]}}
    with pytest.raises(BaltoroError, match="request 1 of the reference asked something else"):
        metrics.similarity([row], [other])


def test_of_rows_of_one_index_the_latest_counts(tmp_path: Path) -> None:
    rows = [
        {"data_index": 2, "last_run_at": "2026-01-01T00:00:02", "status": "success"},
        {"data_index": 1, "last_run_at": "2026-01-01T00:00:09", "status": "success"},
        {"data_index": 2, "last_run_at": "2026-01-01T00:00:01", "status": "failed"},
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert metrics.read(path) == [rows[1], rows[0]]


@pytest.mark.parametrize(
    ("text", "told"), [('{"a"', "line 1"), ("[]\n", "line 1 has no data_index"), ("{}\n", "no data_index")]
)
def test_a_file_that_is_no_result_is_told_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(BaltoroError, match=told):
        metrics.read(path)
