from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baltoro.agent import copies
from baltoro.agent.workspace import Workspace
from baltoro.errors import BaltoroError

names = st.sampled_from(["a", "b", "d", "d/a", "d/b", "e/f/g", "x.bin"])
contents = st.one_of(st.sampled_from(["", "one\n", "one\ntwo\n", "no newline", "->a"]), st.just(None))
trees = st.dictionaries(names, contents, max_size=6)


def lay_out(root: Path, tree: dict[str, str | None]) -> None:
    """None: a link."""
    root.mkdir()
    for name, text in tree.items():
        place = root / name
        if place.parent.is_file() or place.parent.is_symlink() or place.exists() or place.is_symlink():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            place.symlink_to("nowhere")
        else:
            place.write_text(text)


@given(trees, trees)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_what_is_applied_makes_one_tree_the_other(
    tmp_path: Path, before: dict[str, str | None], after: dict[str, str | None]
) -> None:
    for each in ("work", "copy"):
        shutil.rmtree(tmp_path / each, ignore_errors=True)
    lay_out(tmp_path / "work", before)
    lay_out(tmp_path / "copy", after)
    base = copies.state(tmp_path / "work")
    found = copies.changes(base, copies.state(tmp_path / "copy"))
    copies.apply(found, tmp_path / "copy", Workspace(tmp_path / "work"), base)
    assert copies.state(tmp_path / "work") == copies.state(tmp_path / "copy")


def test_a_diff_is_one_that_patch_understands(tmp_path: Path) -> None:
    if shutil.which("patch") is None:
        pytest.skip("patch is not installed")
    lay_out(tmp_path / "a", {"x": "one\ntwo\nthree\n", "gone": "1\n", "same": "s\n", "n": "no newline"})
    lay_out(tmp_path / "b", {"x": "one\n2\nthree\n", "new": "n\n", "same": "s\n", "n": "no newline\nbut now\n"})
    found = copies.changes(copies.state(tmp_path / "a"), copies.state(tmp_path / "b"))
    told = copies.diff(tmp_path / "a", tmp_path / "b", found)
    subprocess.run(["patch", "-p1", "-s", "-E"], input=told, text=True, cwd=tmp_path / "a", check=True)
    assert copies.state(tmp_path / "a") == copies.state(tmp_path / "b")


def test_links_are_never_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("hunter2")
    lay_out(tmp_path / "work", {"d/a": "one\n"})
    copies.copy(tmp_path / "work", tmp_path / "copy")
    (tmp_path / "copy" / "leak").symlink_to(tmp_path / "outside" / "secret")
    (tmp_path / "copy" / "folder").symlink_to(tmp_path / "outside")
    base = copies.state(tmp_path / "work")
    found = copies.changes(base, copies.state(tmp_path / "copy"))
    assert [each.path for each in found] == ["folder", "leak"]
    assert "hunter2" not in copies.diff(tmp_path / "work", tmp_path / "copy", found)
    copies.apply(found, tmp_path / "copy", Workspace(tmp_path / "work"), base)
    assert (tmp_path / "work" / "leak").is_symlink()


def test_nothing_is_applied_over_what_changed_meanwhile_or_is_protected(tmp_path: Path) -> None:
    lay_out(tmp_path / "work", {"a": "one\n", "b": "one\n"})
    copies.copy(tmp_path / "work", tmp_path / "copy")
    base = copies.state(tmp_path / "work")
    (tmp_path / "copy" / "a").write_text("two\n")
    (tmp_path / "copy" / "b").write_text("two\n")
    found = copies.changes(base, copies.state(tmp_path / "copy"))
    with pytest.raises(BaltoroError, match="protected"):
        copies.apply(found, tmp_path / "copy", Workspace(tmp_path / "work", ("b",)), base)
    (tmp_path / "work" / "b").write_text("mine\n")
    with pytest.raises(BaltoroError, match="meanwhile"):
        copies.apply(found, tmp_path / "copy", Workspace(tmp_path / "work"), base)
    assert (tmp_path / "work" / "a").read_text() == "one\n"


def test_git_and_caches_are_copied_or_left_and_never_compared(tmp_path: Path) -> None:
    lay_out(tmp_path / "work", {"a": "", ".git/config": "x", "__pycache__/a.pyc": "x"})
    os.mkfifo(tmp_path / "work" / "pipe")
    copies.copy(tmp_path / "work", tmp_path / "copy")
    assert sorted(each.name for each in (tmp_path / "copy").iterdir()) == [".git", "a"]
    assert list(copies.state(tmp_path / "work")) == ["a"]
