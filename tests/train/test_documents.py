"""A directory of documents gives back what was written, and says when it does not hold together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from baltoro.errors import RecipeError
from baltoro.train.documents import DocumentFile
from baltoro.train.synthesis import tokens
from tests.vocabulary import tokenizer

WRITTEN = [
    tokens.Document("text", [3, 1, 4, 1, 5], [True, True, False, True, True]),
    tokens.Document("single", [500, 9], [False, True]),
    tokens.Document("text", [2], [True]),
]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tokens.write_tokens(tmp_path / "documents", WRITTEN, tokenizer())
    file = DocumentFile(tmp_path / "documents")
    assert len(file) == 3
    assert file.lengths.tolist() == [5, 2, 1]
    for index, expected in enumerate(WRITTEN):
        found = file[index]
        assert (found.kind, found.ids.tolist(), found.learned.tolist()) == expected
        assert found.ids.dtype == np.int64


@pytest.mark.parametrize("name", ["ids.npy", "mask.npy", "offsets.npy", "kinds.npy", "meta.json"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "documents"
    tokens.write_tokens(directory, WRITTEN, tokenizer())
    (directory / name).write_bytes(b"broken")
    with pytest.raises(RecipeError, match="does not hold tokenised documents") as caught:
        DocumentFile(directory)
    assert caught.value.hint
    (directory / name).unlink()
    with pytest.raises(RecipeError, match=name):
        DocumentFile(directory)


def test_files_of_different_writings_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "documents"
    tokens.write_tokens(directory, WRITTEN, tokenizer())
    np.save(directory / "offsets.npy", np.array([0, 5, 7]))
    with pytest.raises(RecipeError, match="disagree"):
        DocumentFile(directory)
    (directory / "meta.json").write_text(json.dumps({}))
    with pytest.raises(RecipeError, match="kinds"):
        DocumentFile(directory)
