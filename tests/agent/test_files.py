from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baltoro.agent import files as files_module
from baltoro.agent.files import Files
from baltoro.agent.tool import by_name
from baltoro.agent.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    (root / "src" / "__pycache__").mkdir(parents=True)
    (root / "src" / "a.py").write_text("def one():\n    return 1\n\n\ndef two():\n    return 2\n")
    (root / "src" / "__pycache__" / "a.pyc").write_bytes(b"return")
    (root / "notes.txt").write_text("return to sender")
    (root / "empty").write_text("")
    (tmp_path / "outside.txt").write_text("return outside")
    (root / "link").symlink_to("../outside.txt")
    return root


def call(place: Path, name: str, **arguments: object) -> str:
    return by_name(Files(Workspace(place)).tools())[name](arguments).for_model


def test_reading_numbers_lines_and_says_what_is_left(place: Path) -> None:
    assert call(place, "read", path="src/a.py", first_line=2, num_lines=2) == (
        "2\t    return 1\n3\t\n[3 more lines; go on with first_line 4]"
    )
    assert call(place, "read", path="src/a.py", first_line=5) == "5\tdef two():\n6\t    return 2"
    assert call(place, "read", path="empty") == "[empty is empty]"
    assert "has 6 lines" in call(place, "read", path="src/a.py", first_line=7)


@given(text=st.text(alphabet="ab\n", max_size=60), size=st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_piece_by_piece_a_file_is_whole(place: Path, text: str, size: int) -> None:
    (place / "x").write_text(text)
    lines: list[str] = []
    first = 1
    while True:
        told = call(place, "read", path="x", first_line=first, num_lines=size)
        lines += [line.partition("\t")[2] for line in told.split("\n") if re.match(r"\d+\t", line)]
        if "more lines" not in told:
            break
        first += size
    assert "".join(line + "\n" for line in lines) == (text if text.endswith("\n") or not text else text + "\n")


def test_an_edit_replaces_what_is_there_once(place: Path) -> None:
    assert call(place, "edit", path="src/a.py", old="return 1", new="return 11") == "src/a.py: replaced at line 2"
    assert (place / "src/a.py").read_text() == "def one():\n    return 11\n\n\ndef two():\n    return 2\n"


@pytest.mark.parametrize(
    ("old", "told"), [("return 3", "old is not in"), ("return", "2 times"), ("", "old is not in"), ("def one", "same")]
)
def test_an_edit_that_is_not_clear_changes_nothing(place: Path, old: str, told: str) -> None:
    before = (place / "src/a.py").read_text()
    assert told in call(place, "edit", path="src/a.py", old=old, new="def one")
    assert (place / "src/a.py").read_text() == before


def test_everywhere_means_everywhere(place: Path) -> None:
    assert "2 times" in call(place, "edit", path="src/a.py", old="return", new="yield", everywhere=True)
    assert (place / "src/a.py").read_text().count("yield") == 2


@given(
    before=st.text(alphabet="ab\n", max_size=30),
    old=st.text(alphabet="ab\n", min_size=1, max_size=3),
    new=st.text(max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_edit_is_python_s_replace(place: Path, before: str, old: str, new: str) -> None:
    new = new.replace("\r", "")
    (place / "x").write_text(before)
    result = call(place, "edit", path="x", old=old, new=new, everywhere=True)
    expected = before if old == new else before.replace(old, new)
    assert (place / "x").read_text() == expected
    assert result.startswith("Error") == (old not in before or old == new)


def test_writing_makes_folders(place: Path) -> None:
    assert call(place, "write", path="new/deep/file.txt", content="one\ntwo\n") == "new/deep/file.txt: 2 lines written"
    assert (place / "new/deep/file.txt").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "link", ".git/config", "."])
def test_nothing_is_written_outside_or_into_git(place: Path, path: str) -> None:
    assert call(place, "write", path=path, content="x").startswith("Error")
    assert (place.parent / "outside.txt").read_text() == "return outside"
    assert sorted(each.name for each in place.parent.iterdir()) == ["outside.txt", "work"]


def test_search_finds_lines_and_not_what_is_outside_binary_or_a_cache(place: Path) -> None:
    assert call(place, "search", pattern="RETURN", ignore_case=True).split("\n") == [
        "notes.txt:1: return to sender",
        "src/a.py:2:     return 1",
        "src/a.py:6:     return 2",
    ]
    assert call(place, "search", pattern=r"return \d", files="*.txt") == "no line matches"
    assert call(place, "search", pattern="return", files="src/*.py").count("\n") == 1
    assert call(place, "search", pattern="two", path="src/a.py") == "src/a.py:5: def two():"
    assert "no regular expression" in call(place, "search", pattern="(")


def test_a_pattern_that_would_need_ages_is_stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "SEARCH_S", 0.2)
    (place / "a").write_text("a" * 60 + "b")
    assert "stopped after" in call(place, "search", pattern=r"(?:a|a|aa)+$", path="a")


def test_a_list_shows_links_as_links_and_sizes(place: Path) -> None:
    assert call(place, "list").split("\n") == [
        "empty  0",
        "link -> ../outside.txt",
        "notes.txt  16",
        "src/",
        "  a.py  50",
    ]
    assert call(place, "list", depth=1).endswith("src/")
    assert "is a file" in call(place, "list", path="notes.txt")
    assert "there is no 'nothing'" in call(place, "list", path="nothing")


def test_long_results_say_that_there_is_more(place: Path) -> None:
    for number in range(600):
        (place / f"f{number:03}").write_text("needle\n")
    assert "more than 500 entries" in call(place, "list")
    assert "more than 100 lines match" in call(place, "search", pattern="needle")
    (place / "long").write_text("x" * 5000)
    assert call(place, "read", path="long").endswith("[4,000 more characters]")
