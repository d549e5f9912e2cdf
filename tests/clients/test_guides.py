"""The programs of docs/guides print what the guides say, as they stand there, against nano."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from baltoro.llm import LLM
from baltoro.server.app import Served, create_app
from tests.clients.conftest import installed, run
from tests.server.conftest import serving

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs/guides"
SILENT = {"LANGSMITH_TRACING": "false"}


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (GUIDES / guide).read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def nano() -> Iterator[str]:
    """The address of a server of nano, as `baltoro serve` makes it."""
    with closing(LLM.open("nano")) as llm, serving(create_app(Served(llm=llm, names=("nano",)))) as address:
        yield address.url


@pytest.mark.clients
@pytest.mark.parametrize(("environment", "guide"), [("langchain", "langchain.md"), ("llama-index", "llamaindex.md")])
def test_a_guide_s_program_prints_what_the_guide_says(environment: str, guide: str, nano: str, tmp_path: Path) -> None:
    python = installed(environment, "bin/python")
    program = "\n".join(blocks(guide, "python"))
    assert program.count("http://127.0.0.1:8000") == 1
    (tmp_path / "guide.py").write_text(program.replace("http://127.0.0.1:8000", nano))
    assert run([str(python), "guide.py"], tmp_path, **SILENT) == "".join(blocks(guide, "text"))


@pytest.mark.parametrize("guide", ["langchain.md", "llamaindex.md"])
def test_a_guide_installs_the_versions_that_are_tested(guide: str) -> None:
    wanted = re.findall(r"^pip install (.+)$", "".join(blocks(guide, "")), flags=re.MULTILINE)
    tested = (ROOT / "tests/clients/install.sh").read_text()
    assert len(wanted) == 1
    assert wanted[0] in tested
