"""The package builds with a compiler, without one, and with a broken one. `pytest -m slow tests/test_install.py`"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILERS = re.compile(r"(.*-)?(c\+\+|g\+\+|cc|gcc|c89|c99|CC|clang\+\+|clang|icpx|cl|cmake|ninja)(-[\d.]+)?$")

pytestmark = [pytest.mark.slow, pytest.mark.network]  # build requirements come from the package index


def folder_of_programs(folder: Path) -> Path:
    """Everything on PATH except compilers, CMake and ninja."""
    folder.mkdir()
    for directory in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else []:
            if not COMPILERS.match(program.name):
                link = folder / program.name
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return folder


def built_wheel(to: Path, path: str) -> set[str]:
    """The names inside a wheel built with this PATH."""
    environment = {key: value for key, value in os.environ.items() if key not in {"CC", "CXX", "CMAKE_ARGS"}}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(to), str(ROOT)]
    result = subprocess.run(command, env=environment | {"PATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(zipfile.ZipFile(next(to.glob("*.whl"))).namelist())


def is_native(name: str) -> bool:
    return name.startswith("baltoro/kernels/_native.") and not name.endswith(".pyi")


def test_without_a_compiler_the_wheel_has_everything_but_the_kernels(tmp_path: Path) -> None:
    names = built_wheel(tmp_path, str(folder_of_programs(tmp_path / "bin")))
    assert not any(is_native(name) for name in names)
    assert "baltoro/kernels/ops.py" in names


def test_with_a_broken_compiler_too(tmp_path: Path) -> None:
    programs = folder_of_programs(tmp_path / "bin")
    (programs / "c++").write_text("#!/bin/sh\nexit 1\n")
    (programs / "c++").chmod(0o755)
    assert not any(is_native(name) for name in built_wheel(tmp_path, str(programs)))


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_with_a_compiler_the_wheel_has_the_kernels_and_all_data_but_no_sources_of_them(tmp_path: Path) -> None:
    names = built_wheel(tmp_path, os.environ["PATH"])
    assert any(is_native(name) for name in names)
    assert not any("csrc" in name for name in names)
    assert {"baltoro/py.typed", "baltoro/presets/kimi-k2-instruct.json"} <= names
    for folder in ("nano", "server/web"):
        kept = {f"baltoro/{folder}/{path.name}" for path in (ROOT / "baltoro" / folder).iterdir() if path.is_file()}
        assert kept and kept <= names
    assert sum(name.endswith((".dist-info/licenses/LICENSE", ".dist-info/licenses/NOTICE")) for name in names) == 2
