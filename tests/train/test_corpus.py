"""Token directories are made once, and anew when anything changes that decides their content."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.train import corpus
from baltoro.train.documents import DocumentFile
from baltoro.train.recipe import DataSource, Recipe
from tests.train import tiny_runs
from tests.vocabulary import write_vocabulary

TEXTS = ["The user calls a function.", "Hello 北京!"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    write_vocabulary(tmp_path / "words")
    with gzip.open("text.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
    sources = (
        DataSource(kind="text", file="text.jsonl.gz"),
        DataSource(kind="dialogues", documents=5),
        DataSource(kind="copy", lengths=(64,)),
    )
    return tiny_runs.recipe(tmp_path, tokenizer="words", phases=(tiny_runs.phase(data=sources),))


def test_texts_and_dialogues_become_token_directories(recipe: Recipe) -> None:
    corpus.prepare(recipe)
    text, dialogues, _ = recipe.phases[0].data
    tokenizer = Tokenizer.open(recipe.tokenizer)
    file = DocumentFile(corpus.directory(text, recipe))
    assert [file[index].ids.tolist() for index in range(len(file))] == [
        [*tokenizer.encode(content), tokenizer.eos] for content in TEXTS
    ]
    assert len(DocumentFile(corpus.directory(dialogues, recipe))) == 5


def test_what_is_there_is_not_made_again(recipe: Recipe) -> None:
    corpus.prepare(recipe)
    before = {path: path.stat().st_mtime_ns for path in Path("runs/data").rglob("*")}
    corpus.prepare(recipe)
    assert {path: path.stat().st_mtime_ns for path in Path("runs/data").rglob("*")} == before


def test_a_directorys_name_changes_with_whatever_decides_its_content(recipe: Recipe) -> None:
    text, dialogues, _ = recipe.phases[0].data
    names = {corpus.directory(text, recipe), corpus.directory(dialogues, recipe)}
    names.add(corpus.directory(replace(dialogues, documents=6), recipe))
    names.add(corpus.directory(replace(dialogues, seed=2), recipe))
    assert corpus.directory(replace(dialogues, weight=0.1, loss="assistant"), recipe) in names  # these decide nothing
    assert len(names) == 4
    Path(text.file).write_bytes(gzip.compress(b'{"text": "other"}\n'))
    assert corpus.directory(text, recipe) not in names
    write_vocabulary(Path("words"), [b"th"])
    assert corpus.directory(dialogues, recipe) not in names


def test_a_missing_text_is_named(recipe: Recipe) -> None:
    Path("text.jsonl.gz").unlink()
    with pytest.raises(RecipeError, match=r"text\.jsonl\.gz is not there"):
        corpus.prepare(recipe)


def test_conversations_of_tool_sets_become_a_token_directory(recipe: Recipe) -> None:
    call = {"id": "functions.f:0", "name": "f", "arguments": "{}"}
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
    messages = [{"role": "user", "content": "f!"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with gzip.open("sets.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"source": "s", "tools": [tool], "messages": messages}) + "\n")
    source = DataSource(kind="toolsets", file="sets.jsonl.gz")
    corpus.prepare(replace(recipe, phases=(tiny_runs.phase(data=(source,)),)))
    found = DocumentFile(corpus.directory(source, recipe))
    text = Tokenizer.open(recipe.tokenizer).decode(found[0].ids.tolist())
    assert len(found) == 1 and "functions.f:0" in text and found.kind_names == ["toolset"]
