"""Documents -> the microbatches of each step, the same ones whatever the number of processes.

A step is `lanes` microbatches of `microbatch_tokens` tokens. Which documents they hold is a function of the recipe's
seed, the step and the lane: a process builds only its own lanes, and a resumed run needs no saved position.
Documents are drawn with replacement, and those of a microbatch have similar lengths (one length class), since
attention pads to the longest; the last one is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.model.batch import Batch
from baltoro.train import corpus
from baltoro.train.copying import copying_document
from baltoro.train.documents import Document, DocumentFile
from baltoro.train.recipe import DataSource, Phase, Recipe

# upper bounds of document lengths in tokens; a step of at most 1.3 keeps padding small
CLASSES = (64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 2560, 3072, 4096,
           5120, 6144, 8192, 10240, 12288, 16384, 20480, 24576, 32768)  # fmt: skip
SHORTEST = 8  # tokens; shorter pieces teach nothing


@dataclass(frozen=True, slots=True)
class Microbatch:
    """batch.logit_rows are the rows that predict something worth learning."""

    batch: Batch
    targets: Tensor  # (rows,) int64
    kinds: Tensor  # (rows,) int64, index into PhaseData.kinds


class PhaseData:
    """The document stream of one phase; it has no state."""

    def __init__(self, phase: Phase, recipe: Recipe, vocabulary: int, phase_index: int) -> None:
        self._sources = [_open(source, recipe, vocabulary) for source in phase.data]
        self._tokens = phase.microbatch_tokens or recipe.microbatch_tokens
        self._seed = (recipe.seed, phase_index)
        self.kinds = sorted({kind for source in self._sources for kind in source.kinds})
        # (sources, classes): share of the phase's tokens
        shares = np.stack([source.weight * source.shares / source.shares.sum() for source in self._sources])
        self._class_odds = shares.sum(0) / shares.sum()
        documents = shares / np.stack([source.mean_length for source in self._sources])
        self._source_odds = documents / np.maximum(documents.sum(0), 1e-30)

    def microbatch(self, step: int, lane: int) -> Microbatch:
        """Lane `lane` of step `step`: a function of the recipe alone, so that nothing need be saved."""
        rng = np.random.default_rng((*self._seed, step, lane))
        length_class = int(rng.choice(len(CLASSES), p=self._class_odds))
        documents: list[Document] = []
        room = self._tokens
        while room > 0:
            source = self._sources[int(rng.choice(len(self._sources), p=self._source_odds[:, length_class]))]
            document = source.draw(rng, length_class)
            if room < SHORTEST and documents:
                break
            documents.append(Document(document.ids[:room], document.learned[:room], document.kind))
            room -= len(documents[-1].ids)
        return self._pack(documents)

    def _pack(self, documents: list[Document]) -> Microbatch:
        lengths = [len(document.ids) for document in documents]
        edges = np.cumsum([0, *lengths])
        ids = np.concatenate([document.ids for document in documents])
        predicts = np.concatenate([document.learned for document in documents])
        predicts[edges[:-1]] = False  # nothing comes before a document's first token
        rows = predicts.nonzero()[0] - 1
        kinds = np.repeat([self.kinds.index(document.kind) for document in documents], lengths)
        batch = Batch(
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
            edges=tuple(int(edge) for edge in edges),
            logit_rows=torch.from_numpy(rows),
        )
        return Microbatch(batch, torch.from_numpy(ids[rows + 1]), torch.from_numpy(kinds[rows]))


class _Copying:
    kinds = ("copy",)

    def __init__(self, source: DataSource, vocabulary: int) -> None:
        self.weight = source.weight
        self._vocabulary, self._whole = source.vocabulary or vocabulary, source.whole_vocabulary
        self.shares = np.zeros(len(CLASSES))
        for length in source.lengths:
            if length not in CLASSES:
                raise RecipeError(f"copy length {length} is not one of {CLASSES}")
            self.shares[CLASSES.index(length)] += 1
        self.mean_length = np.array(CLASSES, dtype=float)

    def draw(self, rng: np.random.Generator, length_class: int) -> Document:
        return copying_document(
            rng, length=CLASSES[length_class], vocabulary=self._vocabulary, whole_vocabulary=self._whole
        )


class _Tokens:
    """Documents of a file, drawn evenly at random within a length class; those beyond the last class are cut."""

    def __init__(self, source: DataSource, directory: Path, vocabulary: int, tokenizer: Tokenizer) -> None:
        self.weight = source.weight
        self._file = DocumentFile(directory)
        self._assistant_only = source.loss == "assistant"
        if not (self._file.lengths >= SHORTEST).any():
            raise RecipeError(f"{directory} has no document of at least {SHORTEST} tokens")
        if self._file.vocab_size > vocabulary:
            raise RecipeError(
                f"{directory} is of {self._file.vocab_size} tokens, the model's vocabulary ends at {vocabulary}",
                hint="the documents were written with another tokenizer",
            )
        if self._file.tokenizer != tokenizer.digest:
            raise RecipeError(
                f"{directory} was written with tokenizer {self._file.tokenizer[:12]}, "
                f"the recipe's is {tokenizer.digest[:12]}",
                hint="an id means another word there: write the documents again with the recipe's tokenizer",
            )
        self._directory, self._vocabulary = directory, vocabulary
        self.kinds = tuple(self._file.kind_names)
        lengths = self._file.lengths
        bins = np.minimum(np.searchsorted(CLASSES, lengths), len(CLASSES) - 1)
        self._members: list[NDArray[np.int64]] = [
            ((bins == index) & (lengths >= SHORTEST)).nonzero()[0] for index in range(len(CLASSES))
        ]
        self.shares = np.array([float(lengths[members].sum()) for members in self._members])
        self.mean_length = np.array([max(float(lengths[m].mean()), 1.0) if len(m) else 1.0 for m in self._members])

    def draw(self, rng: np.random.Generator, length_class: int) -> Document:
        members = self._members[length_class]
        index = int(members[rng.integers(len(members))])
        document = self._file[index]
        if document.ids.max() >= self._vocabulary:  # looked at here, since reading all at the start may take hours
            raise RecipeError(
                f"{self._directory}: document {index} holds token {document.ids.max()}, "
                f"the model's vocabulary ends at {self._vocabulary}",
                hint="ids.npy is damaged; write it again",
            )
        learned = document.learned if self._assistant_only else np.ones(len(document.ids), dtype=bool)
        return Document(document.ids[: CLASSES[-1]], learned[: CLASSES[-1]], document.kind)


def _open(source: DataSource, recipe: Recipe, vocabulary: int) -> _Copying | _Tokens:
    if source.kind == "copy":
        return _Copying(source, vocabulary)
    return _Tokens(source, corpus.directory(source, recipe), vocabulary, Tokenizer.open(recipe.tokenizer))
