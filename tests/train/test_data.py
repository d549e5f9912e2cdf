"""The microbatches of a step: a function of seed, step and lane, and loss only where something can be learned."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baltoro.errors import RecipeError
from baltoro.train import corpus
from baltoro.train.data import CLASSES, SHORTEST, Microbatch, PhaseData
from baltoro.train.documents import DocumentFile
from baltoro.train.recipe import DataSource, Phase, Recipe
from baltoro.train.synthesis import tokens
from tests import vocabulary
from tests.train import tiny_runs

VOCABULARY = vocabulary.tokenizer().vocab_size
COPY = DataSource(kind="copy", lengths=(64, 128, 256), weight=0.5)
TEXT = DataSource(kind="text", file="text.jsonl.gz", weight=0.2)
DIALOGUES = DataSource(kind="dialogues", documents=1, weight=0.3, loss="assistant")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Copying, texts and dialogues; the documents are random ids of every length up to 700, and some shorter than 8."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    vocabulary.write_vocabulary(tmp_path / "words")
    Path(TEXT.file).write_bytes(gzip.compress(json.dumps({"text": "unused"}).encode()))
    recipe = tiny_runs.recipe(
        tmp_path, tokenizer="words", phases=(phase(COPY, TEXT, DIALOGUES),), microbatch_tokens=512
    )
    rng = np.random.default_rng(0)
    for source, kinds in ((TEXT, ["text"]), (DIALOGUES, ["single", "none"])):
        documents = []
        for index in range(300):
            length = int(rng.integers(1, 700))
            ids = rng.integers(0, VOCABULARY, length).tolist()
            documents.append(tokens.Document(kinds[index % len(kinds)], ids, (rng.random(length) < 0.3).tolist()))
        tokens.write_tokens(corpus.directory(source, recipe), documents, vocabulary.tokenizer())
    return recipe


def phase(*sources: DataSource) -> Phase:
    return tiny_runs.phase(data=sources)


def data(recipe: Recipe, index: int = 0) -> PhaseData:
    return PhaseData(recipe.phases[0], recipe, VOCABULARY, index)


def contents(microbatch: Microbatch) -> tuple[object, ...]:
    batch = microbatch.batch
    assert batch.logit_rows is not None
    rows, targets, kinds = batch.logit_rows.tolist(), microbatch.targets.tolist(), microbatch.kinds.tolist()
    return batch.ids.tolist(), batch.positions.tolist(), batch.edges, rows, targets, kinds


def test_a_microbatch_depends_on_seed_phase_step_and_lane_and_on_nothing_else(recipe: Recipe) -> None:
    first = data(recipe)
    later = [contents(first.microbatch(step, lane)) for step in range(3) for lane in range(3)]
    again = data(recipe)  # another process, asked in another order
    assert [contents(again.microbatch(step, lane)) for step in (2, 1, 0) for lane in (2, 1, 0)] == later[::-1]
    others = [data(replace(recipe, seed=4)).microbatch(0, 0), data(recipe, index=1).microbatch(0, 0)]
    assert len({str(content) for content in [*later, *map(contents, others)]}) == len(later) + 2


def test_no_microbatch_is_longer_than_asked_and_hardly_one_shorter(recipe: Recipe) -> None:
    stream = data(recipe)
    for step in range(60):
        batch = stream.microbatch(step, 0).batch
        length = len(batch.ids)
        assert recipe.microbatch_tokens - SHORTEST < length <= recipe.microbatch_tokens
        assert batch.edges[0] == 0 and batch.edges[-1] == length
        assert len(batch.positions) == length
        for start, end in zip(batch.edges, batch.edges[1:], strict=False):
            assert end > start
            assert torch.equal(batch.positions[start:end], torch.arange(end - start))


def test_targets_are_the_learned_tokens_and_never_a_documents_first(recipe: Recipe) -> None:
    """Each packed document is found in its file again, and the file's own mask says where loss belongs."""
    recipe = replace(recipe, phases=(phase(TEXT, DIALOGUES),))
    stream = data(recipe)
    known: dict[tuple[int, ...], tuple[str, list[bool]]] = {}
    for source in (TEXT, DIALOGUES):
        file = DocumentFile(corpus.directory(source, recipe))
        for document in (file[index] for index in range(len(file))):
            learned = document.learned.tolist() if source.loss == "assistant" else [True] * len(document.ids)
            known[tuple(document.ids[:SHORTEST].tolist())] = (document.kind, learned)  # random ids: the start tells
    for step in range(30):
        microbatch = stream.microbatch(step, 0)
        batch = microbatch.batch
        expected: list[tuple[int, int, str]] = []
        for start, end in zip(batch.edges, batch.edges[1:], strict=False):
            ids = batch.ids[start:end].tolist()
            if len(ids) < SHORTEST:  # the cut end of one
                candidates = [value for key, value in known.items() if key[: len(ids)] == tuple(ids)]
                kind, learned = candidates[0]
                assert len(candidates) == 1
            else:
                kind, learned = known[tuple(ids[:SHORTEST])]
            expected += [(start + at - 1, ids[at], kind) for at in range(1, len(ids)) if learned[at]]
        assert batch.logit_rows is not None
        kinds = [stream.kinds[index] for index in microbatch.kinds.tolist()]
        found = list(zip(batch.logit_rows.tolist(), microbatch.targets.tolist(), kinds, strict=True))
        assert found == expected


def test_documents_of_a_microbatch_are_of_one_length_class(recipe: Recipe) -> None:
    stream = data(recipe)
    for step in range(40):
        edges = stream.microbatch(step, 0).batch.edges
        lengths = [end - start for start, end in zip(edges, edges[1:], strict=False)][:-1]  # the last one is cut
        assert len({int(np.searchsorted(CLASSES, length)) for length in lengths}) <= 1


def test_shares_of_tokens_approach_the_weights(recipe: Recipe) -> None:
    learned = replace(DIALOGUES, loss="all")  # then a document's targets are its tokens but one
    stream = data(replace(recipe, phases=(phase(COPY, TEXT, learned),)))
    steps, total = 800, 0
    tokens_of = torch.zeros(len(stream.kinds))
    for step in range(steps):
        microbatch = stream.microbatch(step, 0)
        tokens_of += torch.bincount(microbatch.kinds, minlength=len(stream.kinds))
        total += len(microbatch.batch.ids)
    share = dict(zip(stream.kinds, (tokens_of / total).tolist(), strict=True))
    found = {"text": share["text"], "dialogues": share["single"] + share["none"]}
    found["copy"] = 1 - sum(found.values())  # of its tokens only some are targets
    for source in (COPY, TEXT, DIALOGUES):
        # At worst all documents of a microbatch are of one source: a mean of `steps` draws, two standard errors
        tolerance = 2 * (source.weight * (1 - source.weight) / steps) ** 0.5
        assert abs(found[source.kind] - source.weight) < tolerance, (source.kind, found)


def test_a_copy_length_that_is_no_class_is_refused(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="copy length 100 is not one of"):
        data(replace(recipe, phases=(phase(replace(COPY, lengths=(100,))),)))


def test_documents_of_another_vocabulary_are_refused(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="the model's vocabulary ends at 300"):
        PhaseData(recipe.phases[0], recipe, 300, 0)


def test_a_source_without_a_long_enough_document_is_refused(recipe: Recipe) -> None:
    for documents in ([], [tokens.Document("text", [1, 2, 3], [True] * 3)]):
        tokens.write_tokens(corpus.directory(TEXT, recipe), documents, vocabulary.tokenizer())
        with pytest.raises(RecipeError, match="no document of at least 8 tokens"):
            data(recipe)


def test_documents_written_with_another_tokenizer_are_refused_though_their_ids_would_fit(recipe: Recipe) -> None:
    directory = corpus.directory(TEXT, recipe)
    meta = json.loads((directory / "meta.json").read_text())
    assert meta["tokenizer"] == vocabulary.tokenizer().digest
    (directory / "meta.json").write_text(json.dumps(meta | {"tokenizer": "0" * 64}))
    with pytest.raises(RecipeError, match="was written with tokenizer 000000000000, the recipe's is") as caught:
        data(recipe)
    assert str(directory) in caught.value.message


def test_an_id_beyond_the_vocabulary_is_named_with_its_document(recipe: Recipe) -> None:
    directory = corpus.directory(TEXT, recipe)
    ids = np.load(directory / "ids.npy")
    ids[:] = 600
    np.save(directory / "ids.npy", ids)
    stream = data(replace(recipe, phases=(phase(TEXT),)))
    with pytest.raises(RecipeError, match=r"document \d+ holds token 600, the model's vocabulary ends at 563"):
        stream.microbatch(0, 0)


def test_a_directory_of_tokens_is_a_source_of_its_own(recipe: Recipe) -> None:
    brought = DataSource(kind="tokens", directory=str(corpus.directory(TEXT, recipe)))
    found = data(replace(recipe, phases=(phase(brought),)))
    assert contents(found.microbatch(0, 0)) == contents(data(replace(recipe, phases=(phase(TEXT),))).microbatch(0, 0))
