from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baltoro.agent.workspace import Workspace, replace_file
from baltoro.errors import BaltoroError, ToolError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.py").write_text("print()\n")
    (root / ".git").mkdir()
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "work2").mkdir()  # begins with the workspace's name and is another folder
    return root


@pytest.mark.parametrize(
    "name",
    ["..", "../secret", "/etc/passwd", "src/../../secret", "../work2", "~/../../etc/passwd/../..", "//etc", "a\0b"],
)
def test_paths_that_leave_the_workspace_are_refused(place: Path, name: str) -> None:
    with pytest.raises(ToolError):
        Workspace(place).path(name)


@pytest.mark.parametrize("target", ["../secret", "/etc", "..", "/proc/self/root"])
def test_links_that_leave_it_are_refused_and_so_is_what_is_behind_them(place: Path, target: str) -> None:
    (place / "link").symlink_to(target)
    (place / "again").symlink_to("link")
    for name in ("link", "again", "link/x", "src/../link"):
        with pytest.raises(ToolError, match="outside"):
            Workspace(place).path(name)


def test_a_circle_of_links_is_refused(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with pytest.raises((ToolError, OSError)):
        Workspace(place).read_text(Workspace(place).path("a"))


def test_links_within_it_and_absolute_names_are_followed(place: Path) -> None:
    (place / "link").symlink_to("src")
    workspace = Workspace(place)
    assert workspace.path("link/a.py") == workspace.path(str(place / "src" / "a.py")) == (place / "src/a.py").resolve()


parts = st.sampled_from(["..", ".", "src", "a.py", "link", "up", "out", "/", "", "x"])


@given(st.lists(parts, max_size=7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leads_out(place: Path, names: list[str]) -> None:
    for link, target in {"link": "src", "up": "src/..", "out": "../.."}.items():
        if not (place / link).is_symlink():
            (place / link).symlink_to(target)
    name = "/".join(names)
    try:
        found = Workspace(place).path(name)
    except ToolError:
        return
    assert os.path.realpath(place / name) == str(found)
    assert os.path.commonpath([os.path.realpath(place), found]) == os.path.realpath(place)


def test_git_and_what_is_protected_can_be_read_and_not_written(place: Path) -> None:
    (place / "tests").mkdir()
    (place / "link").symlink_to("tests")
    workspace = Workspace(place, protected=("tests",))
    for name in (
        ".git/hooks/pre-commit",
        ".git",
        "src/.git/config",
        "tests/x.py",
        "link/x.py",
        "tests",
        "src/../tests/x",
    ):
        with pytest.raises(ToolError, match="protected"):
            workspace.writable(name)
    assert workspace.writable("tests2/x.py")


@pytest.mark.parametrize("root", ["/", str(Path.home())])
def test_no_workspace_has_the_home_folder_in_it(root: str) -> None:
    with pytest.raises(BaltoroError, match="home"):
        Workspace(Path(root))


def test_protected_names_must_be_there_and_within(place: Path) -> None:
    for name in ("nothing", "..", ".", "/etc"):
        with pytest.raises(BaltoroError, match="protected"):
            Workspace(place, protected=(name,))


def test_only_regular_text_is_read(place: Path) -> None:
    workspace = Workspace(place)
    os.mkfifo(place / "pipe")
    (place / "bytes").write_bytes(b"ok\xff")
    for name, told in {"pipe": "no regular file", "bytes": "byte 2", "src": "is a folder"}.items():
        with pytest.raises(ToolError, match=told):
            workspace.read_text(workspace.path(name))


def test_a_written_file_keeps_its_permissions_and_leaves_nothing_beside_it(place: Path) -> None:
    script = place / "run.sh"
    script.write_text("old")
    script.chmod(0o750)
    Workspace(place).write_text(script, "new")
    assert (script.read_text(), script.stat().st_mode & 0o777) == ("new", 0o750)
    with pytest.raises(IsADirectoryError):
        replace_file(place / "src", b"")
    with pytest.raises(ToolError, match="half a character"):
        Workspace(place).write_text(script, "\ud800")
    assert sorted(each.name for each in place.iterdir()) == [".git", "run.sh", "src"]
