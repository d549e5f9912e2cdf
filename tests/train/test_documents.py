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


@pytest.mark.parametrize("name", ["ids.npy", "mask.npy", "offsets.npy", "kinds.npy"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "documents"
    tokens.write_tokens(directory, WRITTEN, tokenizer())
    whole = (directory / name).read_bytes()
    for length in range(0, len(whole), 3):
        (directory / name).write_bytes(whole[:length])
        with pytest.raises(RecipeError, match=str(directory)):
            DocumentFile(directory)


@pytest.mark.parametrize(
    "name, content, part",
    [
        ("offsets.npy", np.array([0, 7, 5, 8]), "do not rise"),
        ("offsets.npy", np.array([0.0, 5.0, 7.0, 8.0]), "whole numbers"),
        ("kinds.npy", np.array([0, 2, 0], np.uint8), "kind 2 of a document"),
        ("mask.npy", np.ones(7, np.uint8), "8 ids and 7 in the mask"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, name: str, content: np.ndarray, part: str) -> None:
    directory = tmp_path / "documents"
    tokens.write_tokens(directory, WRITTEN, tokenizer())
    np.save(directory / name, content)
    with pytest.raises(RecipeError, match=part):
        DocumentFile(directory)


def test_ids_of_a_large_vocabulary_have_room(tmp_path: Path) -> None:
    words = tokenizer()
    words.vocab_size = 163840
    tokens.write_tokens(tmp_path / "large", [tokens.Document("text", [163839, 70000, 1], [True] * 3)], words)
    assert DocumentFile(tmp_path / "large")[0].ids.tolist() == [163839, 70000, 1]
