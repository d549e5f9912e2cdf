"""What README and the documents promise is there: commands, paths, links, code."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def code_blocks(text: str, language: str = "") -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [code for name, code in blocks if name == language]


def lines_starting(prefix: str) -> list[str]:
    lines = [line.strip() for block in code_blocks(README) for line in block.splitlines()]
    return [line for line in lines if line.startswith(prefix)]


def section(title: str) -> str:
    return re.split(rf"^## {title}\n", README, flags=re.MULTILINE)[1].split("\n## ")[0]


def test_the_two_commands_are_make_serve_and_make_test() -> None:
    assert code_blocks(section("Command one: serve"))[0].split() == ["make", "serve"]
    assert code_blocks(section("Command two: test"))[0].split() == ["make", "test"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)", README)) | {"help", "install", "check"}))
def test_every_make_target_that_is_named_exists(target: str) -> None:
    result = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_make_help_lists_every_target() -> None:
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert f"make {target}" in result.stdout


@pytest.mark.parametrize("line", lines_starting(".venv/bin/baltoro"))
def test_every_command_line_of_the_readme_runs(line: str) -> None:
    arguments = line.split()[1:]
    if "--help" not in arguments:
        arguments = [arguments[0], "--help"]  # long or interactive; that the command exists is what is asked here
    program = [sys.executable, "-c", "from baltoro.cli import main; main()", *arguments]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_every_path_of_the_tree_exists() -> None:
    folders: list[str] = []
    for line in code_blocks(section("The tree"))[0].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [line.split()[0]]
        assert (ROOT / "".join(folders)).exists(), "".join(folders)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_into_the_repository_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_command_reference_is_what_the_help_texts_say() -> None:
    program = [sys.executable, "docs/generate_cli.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (ROOT / "docs" / "cli.md").read_text() == result.stdout, "run `make docs`"


@pytest.fixture(scope="module")
def served_nano() -> Iterator[str]:
    """`baltoro serve` as `make serve` starts it, on a free port; the address of its API."""
    if not (ROOT / "baltoro" / "nano" / "config.json").exists():
        pytest.skip("this checkout has no nano model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "baltoro", "serve", "--port", str(port)]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            deadline = time.monotonic() + 120  # seconds; a laptop takes five
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None, server.stderr and server.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("code", code_blocks(README, "python"))
def test_the_programs_of_the_readme_run_against_the_server(code: str, served_nano: str) -> None:
    assert "http://127.0.0.1:8000" in code
    program = [sys.executable, "-c", code.replace("http://127.0.0.1:8000", served_nano)]
    result = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
