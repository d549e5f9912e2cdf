"""docs/compare.md quotes: what it calls measured stands in docs/numbers.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NUMBERS = (DOCS / "numbers.md").read_text()
FIGURE = r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\w.,]*\d)"


def measured() -> list[str]:
    section = (DOCS / "compare.md").read_text().split("## Measured beside them\n")[1].split("\n## ")[0]
    rows = [line.split("|")[2:4] for line in section.splitlines() if line.startswith("|")][2:]
    return sorted({figure for row in rows for cell in row for figure in re.findall(FIGURE, cell)})


def test_the_table_has_figures() -> None:
    assert len(measured()) > 10


@pytest.mark.parametrize("figure", measured())
def test_every_measured_figure_is_one_of_numbers_md(figure: str) -> None:
    assert re.search(rf"(?<![\w.,]){re.escape(figure)}(?![\w.,]*\d)", NUMBERS)
