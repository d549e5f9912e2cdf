"""Tests that the documentation names as proof are there, under these names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(?:(tests/[\w/]+\.py|test_\w+\.py))?(?:::(\w+))?`")


def named(document: str) -> list[tuple[str, str]]:
    """(file, test or "") in the order of the text; a name without a file belongs to the one before it."""
    found: list[tuple[str, str]] = []
    for file, test in NAMED.findall((ROOT / document).read_text()):
        if not file and not test:
            continue
        before = found[-1][0] if found else ""
        file = file or before
        found.append((file if "/" in file else f"{Path(before).parent}/{file}", test))
    return found


@pytest.mark.parametrize("document", ["docs/clients.md", "docs/security.md"])
def test_every_test_that_a_document_names_is_there(document: str) -> None:
    proofs = named(document)
    assert len(proofs) > 8
    for file, test in proofs:
        assert f"def {test}" in (ROOT / file).read_text(), (file, test)
