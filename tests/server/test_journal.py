"""The journal on disk: what is appended is read again, whatever happens to the process or the disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.errors import BaltoroError
from baltoro.server import journal
from baltoro.server.journal import Journal, Retention

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def written(folder: Path, records: list[dict], **options: Any) -> list[dict]:
    """What is read after `records` were written."""
    keeping = Journal(folder, **options)
    for each in records:
        keeping.append(lambda each=each: each)
    keeping.close()
    return list(journal.read(folder))


@settings(max_examples=30, deadline=None)  # each begins and ends a thread, and forces a file to disk
@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), min_size=1, max_size=5))
def test_records_are_read_as_they_were_written(records: list[dict]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert written(Path(folder), records) == records


def test_segments_are_full_at_their_size_and_belong_to_their_owner_alone(tmp_path: Path) -> None:
    records = [{"id": number, "text": "x" * 80} for number in range(20)]
    assert written(tmp_path / "journal", records, segment_bytes=300) == records
    files = journal.segments(tmp_path / "journal")
    assert len(files) == 7 and all(path.stat().st_size <= 300 for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700


def test_the_oldest_segments_go_when_there_are_too_many_bytes(tmp_path: Path) -> None:
    records = [{"id": number, "text": "x" * 80} for number in range(40)]
    left = written(tmp_path, records, segment_bytes=300, retention=Retention(most_bytes=1000))
    assert left == records[-len(left) :] and left
    assert sum(path.stat().st_size for path in journal.segments(tmp_path)) <= 1000 + 300


def test_what_is_too_old_goes_and_the_rest_stays(tmp_path: Path) -> None:
    for name, age_s in (("20200101T000000.000000Z-1", 9000.0), ("20200102T000000.000000Z-1", 10.0)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"id": name}) + "\n")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age_s))
    left = written(tmp_path, [{"id": "new"}], retention=Retention(most_age_s=3600.0))
    assert [each["id"] for each in left] == ["20200102T000000.000000Z-1", "new"]


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_torn_line_is_passed_over_and_the_next_process_begins_a_segment(tmp_path: Path, cut: int) -> None:
    written(tmp_path, [{"id": 1}, {"id": 2, "text": "torn in the middle of it"}])
    (segment,) = journal.segments(tmp_path)
    segment.write_bytes(segment.read_bytes()[:-cut])
    assert list(journal.read(segment)) == [{"id": 1}]
    assert written(tmp_path, [{"id": 3}]) == [{"id": 1}, {"id": 3}]


def test_a_process_that_is_killed_loses_nothing_that_it_wrote(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from baltoro.server.journal import Journal
keeping = Journal(Path(sys.argv[1]))
for number in range(100):
    keeping.append(lambda number=number: {"id": number})
keeping.append(lambda: os.kill(os.getpid(), 9))
keeping.close()
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == -9
    assert [each["id"] for each in journal.read(tmp_path)] == list(range(100))


def test_a_record_can_be_changed_and_left_out_before_it_is_written(tmp_path: Path) -> None:
    def redact(record: dict) -> dict | None:
        return None if record["id"] == 2 else {"id": record["id"], "text": "***"}

    records = [{"id": number, "text": "secret"} for number in (1, 2, 3)]
    assert written(tmp_path, records, redact=redact) == [{"id": 1, "text": "***"}, {"id": 3, "text": "***"}]
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_redaction_that_fails_writes_nothing_and_says_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def redact(record: dict) -> dict:
        raise ValueError(record["text"])

    assert journal.segments(tmp_path) == []
    keeping = Journal(tmp_path, redact=redact)
    keeping.append(lambda: {"text": "secret"})
    keeping.close()
    assert journal.segments(tmp_path) == []
    assert "ValueError" in caplog.text and "secret" not in caplog.text


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BaltoroError, match="File exists"):
        Journal(tmp_path / "file")
    with pytest.raises(BaltoroError, match="no journal"):
        list(journal.read(tmp_path / "nothing"))
