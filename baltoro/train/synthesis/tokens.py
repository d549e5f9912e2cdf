"""Dialogues and texts as token files: what a training run reads.

A directory of flat arrays: `ids.npy` (uint16, or uint32 of a larger vocabulary), `mask.npy` (uint8, 1 where the token
is a target), `offsets.npy` (int64, documents + 1), `kinds.npy` (uint8, an index into `kinds` of `meta.json`).
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.train.synthesis.decontaminate import Evaluations
from baltoro.train.synthesis.dialogues import Dialogue, generate
from baltoro.train.synthesis.split import Split

_Job = tuple[int, Split, int, int, Path, Path | None]  # seed, split, first, how many, vocabulary, evaluations

CHUNK = 500  # dialogues that one process makes at a time


class Document(NamedTuple):
    kind: str
    ids: Sequence[int]
    mask: Sequence[bool]


def dialogue_documents(dialogues: Iterable[Dialogue], tokenizer: Tokenizer) -> Iterator[Document]:
    """Rendered as the model will be served; targets are the assistant's turns."""
    for dialogue in dialogues:
        rendered = render(dialogue.messages, dialogue.tools, add_generation_prompt=False)
        yield Document(dialogue.kind, *rendered.ids_and_loss_mask(tokenizer))


def generated_documents(
    seed: int,
    split: Split,
    count: int,
    vocabulary: Path,
    *,
    without: Path | None = None,
    processes: int | None = None,
) -> Iterator[Document]:
    """`count` dialogues in their order, made by several processes (None: one a core); the same whatever their number.

    without: hashes of evaluations (decontaminate.py); a dialogue that has something of theirs is left out
    """
    starts = range(0, count, CHUNK)
    processes = min(processes or os.cpu_count() or 1, len(starts))
    jobs: list[_Job] = [(seed, split, start, min(CHUNK, count - start), vocabulary, without) for start in starts]
    if processes < 2:
        for job in jobs:
            yield from _chunk(job)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = deque(pool.submit(_chunk, job) for job in jobs[: 2 * processes])
        for job in jobs[2 * processes :]:
            yield from waiting.popleft().result()
            waiting.append(pool.submit(_chunk, job))  # never far ahead of the disk
        while waiting:
            yield from waiting.popleft().result()


def _chunk(job: _Job) -> list[Document]:
    seed, split, start, count, vocabulary, without = job
    dialogues: Iterator[Dialogue] = islice(generate(seed, split, start=start), count)
    if without is not None:
        dialogues = filter(partial(_is_clean, _evaluations(without)), dialogues)
    documents = dialogue_documents(dialogues, _tokenizer(vocabulary))
    return [Document(d.kind, array("H", d.ids), bytearray(d.mask)) for d in documents]  # type: ignore[arg-type]


def _is_clean(evaluations: Evaluations, dialogue: Dialogue) -> bool:
    functions = [(tool.name, cast("dict[str, Any]", tool.parameters.get("properties", {}))) for tool in dialogue.tools]
    texts = [str(message.content) for message in dialogue.messages if message.role == "user"]
    return not evaluations.reason(functions, texts)


@lru_cache(maxsize=1)
def _evaluations(path: Path) -> Evaluations:
    return Evaluations.open(path)


@lru_cache(maxsize=1)
def _tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer.open(vocabulary)


def text_documents(path: Path, tokenizer: Tokenizer) -> Iterator[Document]:
    """Running text (JSON lines with `text`), each document closed by [EOS]; every token is a target."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            ids = [*tokenizer.encode(json.loads(line)["text"]), tokenizer.eos]
            yield Document("text", ids, [True] * len(ids))


def write_tokens(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, *, total: int | None = None
) -> dict[str, Any]:
    """Write `total` documents (None: all) as a token directory, whole or not at all; returns its meta.json."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names: dict[str, int] = {}
    offsets, kinds, targets = array("q", [0]), bytearray(), 0
    width, dtype = ("H", np.uint16) if tokenizer.vocab_size <= 2**16 else ("I", np.uint32)
    with (partial / "ids.raw").open("wb") as ids, (partial / "mask.raw").open("wb") as mask:
        for document in _progress(islice(documents, total), total):
            ids.write(array(width, document.ids).tobytes())
            mask.write(bytes(document.mask))
            offsets.append(offsets[-1] + len(document.ids))
            targets += sum(document.mask)
            kinds.append(names.setdefault(document.kind, len(names)))
    meta = {
        "kinds": list(names), "documents": len(kinds), "tokens": offsets[-1], "targets": targets,
        "vocab_size": tokenizer.vocab_size, "tokenizer": tokenizer.digest,
    }  # fmt: skip
    for name, kind in (("ids", dtype), ("mask", np.uint8)):
        raw = partial / f"{name}.raw"
        np.save(partial / f"{name}.npy", np.memmap(raw, kind, "r") if offsets[-1] else np.empty(0, kind))
        raw.unlink()
    np.save(partial / "offsets.npy", np.frombuffer(offsets, np.int64))
    np.save(partial / "kinds.npy", np.frombuffer(kinds, np.uint8))
    (partial / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    return meta


def _progress(documents: Iterable[Document], total: int | None) -> Iterator[Document]:
    from rich.console import Console
    from rich.progress import track

    yield from track(documents, "documents", total=total, console=Console(stderr=True))
