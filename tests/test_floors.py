"""Imports point down. The floors are those of docs/architecture.md, written once more as data."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "baltoro"

# Ground first. Rooms of one floor do not know each other, except on the ground: config raises errors.
FLOORS = [
    {"errors", "sizes", "bar", "structure", "config", "config_rules", "counts"},
    {"kernels", "chat", "plan"},
    {"weights"},
    {"model"},
    {"engine"},
    {"answer", "choices", "mailbox", "start"},
    {"llm", "scripted"},
    {"agent", "server", "doctor"},
    {"eval"},
    {"train"},
    {"terminal"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
TORCH_FREE = FLOORS[0] | {"chat", "plan"}


def modules() -> dict[str, Path]:
    """baltoro.x.y -> file, without the package's own __init__."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["baltoro", *path.relative_to(PACKAGE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "baltoro":
            found[name] = path
    return found


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that `source` imports anywhere, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, origin] if origin else base)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)  # `from baltoro.chat import parser`


def room(module: str) -> str:
    """baltoro.chat.parser -> chat."""
    return module.split(".")[1]


MODULES = modules()
IMPORTS = {
    name: set(imports(path.read_text(), name if path.name == "__init__.py" else name.rpartition(".")[0]))
    for name, path in MODULES.items()
}


def rooms_imported(module: str) -> set[str]:
    return {room(other) for other in IMPORTS[module] if other.startswith("baltoro.")} & (
        FLOOR.keys() | {room(each) for each in MODULES}
    )


def test_the_walk_sees_every_form_of_import() -> None:
    source = """
import torch.nn
from baltoro.model import moe
from ..chat import parser
from . import cache
def later():
    import numpy
"""
    assert {"torch.nn", "baltoro.model.moe", "baltoro.chat.parser", "baltoro.engine.cache", "numpy"} <= set(
        imports(source, "baltoro.engine")
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_stands_on_a_floor_and_imports_only_below_it(module: str) -> None:
    here = room(module)
    if here == "__main__":
        here = "cli"
    if here == "nano":  # data, no code of consequence: it may import nothing of ours
        assert not rooms_imported(module)
        return
    assert here in FLOOR, f"{module}: the room {here!r} has no floor; give it one here and in docs/architecture.md"
    for other in rooms_imported(module) - {here}:
        below = FLOOR[other] < FLOOR[here] or FLOOR[other] == FLOOR[here] == 0
        assert below, f"{module} (floor {FLOOR[here]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "engine"])
def test_the_engine_speaks_token_ids_only(module: str) -> None:
    assert "chat" not in rooms_imported(module)


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in TORCH_FREE])
def test_no_torch_in_the_rooms_that_must_answer_at_once(module: str) -> None:
    outside = {name.split(".")[0] for name in IMPORTS[module]}
    assert not outside & {"torch", "transformers"}


def loaded_after(statement: str) -> set[str]:
    """The top-level modules in memory after `statement` ran in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_no_torch_arrives_through_a_library_either() -> None:
    names = [name for name in MODULES if room(name) in TORCH_FREE]
    assert "torch" not in loaded_after("import " + ", ".join(names))


def test_the_command_line_starts_without_heavy_libraries() -> None:
    assert not loaded_after("import baltoro.cli") & {"torch", "numpy", "fastapi", "transformers", "tiktoken"}
