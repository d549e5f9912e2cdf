"""Dialogues and texts as token files: what a training run reads.

A directory of flat arrays: `ids.npy` (uint16, or uint32 of a larger vocabulary), `mask.npy` (uint8, 1 where the token is a target),
`offsets.npy` (int64, documents + 1), `kinds.npy` (uint8, an index into `kinds` of `meta.json`).
"""

from __future__ import annotations

import gzip
import json
import shutil
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.train.synthesis.dialogues import Dialogue


class Document(NamedTuple):
    kind: str
    ids: list[int]
    mask: list[bool]


def dialogue_documents(dialogues: Iterable[Dialogue], tokenizer: Tokenizer) -> Iterator[Document]:
    """Rendered as the model will be served; targets are the assistant's turns."""
    for dialogue in dialogues:
        rendered = render(dialogue.messages, dialogue.tools, add_generation_prompt=False)
        yield Document(dialogue.kind, *rendered.ids_and_loss_mask(tokenizer))


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
    ids = array("H" if tokenizer.vocab_size <= 2**16 else "I")
    mask, offsets, kinds = bytearray(), array("q", [0]), bytearray()
    names: dict[str, int] = {}
    for document in _progress(islice(documents, total), total):
        ids.extend(document.ids)
        mask.extend(document.mask)
        offsets.append(len(ids))
        kinds.append(names.setdefault(document.kind, len(names)))
    meta = {
        "kinds": list(names), "documents": len(kinds), "tokens": len(ids), "targets": sum(mask),
        "vocab_size": tokenizer.vocab_size, "tokenizer": tokenizer.digest,
    }  # fmt: skip
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / "ids.npy", np.frombuffer(ids, np.uint16 if ids.typecode == "H" else np.uint32))
    np.save(partial / "mask.npy", np.frombuffer(mask, np.uint8))
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
