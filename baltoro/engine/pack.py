"""From the chunks of a step to the one batch that the model runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baltoro.engine import logprobs
from baltoro.engine.cache import Pages
from baltoro.engine.sequence import Chunk
from baltoro.model.batch import Batch


def pack(chunks: Sequence[Chunk], pages: Pages) -> Batch:
    """Rows in the order of the chunks, drafts behind their chunk's tokens.

    Logits are wanted behind the tokens of a prompt that is to be scored, behind a last token, and behind each draft.
    """
    ids: list[int] = []
    positions: list[int] = []
    edges = [0]
    logit_rows: list[int] = []
    for chunk in chunks:
        ids += chunk.sequence.tokens[chunk.start : chunk.stop]
        logit_rows += (edges[-1] + position - chunk.start for position in logprobs.prompt_rows(chunk))
        if chunk.is_last:
            logit_rows += range(len(ids) - 1, len(ids) + len(chunk.drafts))
        ids += chunk.drafts
        positions += range(chunk.start, chunk.stop + len(chunk.drafts))
        edges.append(len(ids))
    return Batch(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        edges=tuple(edges),
        pages=tuple(pages.of(chunk.sequence.request) for chunk in chunks),
        logit_rows=None if len(logit_rows) == len(ids) else torch.tensor(logit_rows, dtype=torch.int64),
        generated=tuple(chunk.is_generated for chunk in chunks),
    )
