"""However tokens are packed, cut into chunks and spread over pages, each sequence gets what it gets alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baltoro.model.batch import Batch, LatentCache, Layout
from baltoro.model.transformer import Transformer
from tests.model.random_models import SHAPES, random_ids, random_model

CLOSE = 1e-4  # float32 sums in another order, which differs by CPU (5.1e-5 seen on one with AMX); logits are of size 10


@pytest.fixture(scope="module", params=["k2", "deepseek"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(SHAPES[request.param])


def alone(model: Transformer, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(Batch.of([ids]))


def step(
    model: Transformer,
    cache: LatentCache,
    parts: list[tuple[list[int], int, tuple[int, ...]]],
    rows: Tensor | None = None,
) -> list[Tensor]:
    """One forward of (new ids, tokens cached before, pages) of several sequences; the logits of each."""
    edges = [0]
    for ids, _, _ in parts:
        edges.append(edges[-1] + len(ids))
    batch = Batch(
        ids=torch.tensor([token for ids, _, _ in parts for token in ids]),
        positions=torch.cat([torch.arange(past, past + len(ids)) for ids, past, _ in parts]),
        edges=tuple(edges),
        pages=tuple(pages for _, _, pages in parts),
        logit_rows=rows,
    )
    with torch.no_grad():
        logits = model(batch, cache)
    return [logits] if rows is not None else list(logits.split([len(ids) for ids, _, _ in parts]))


def new_cache(model: Transformer, *, num_pages: int, page_tokens: int) -> LatentCache:
    """Full of NaN: whatever reads a slot that it did not write shows."""
    cache = LatentCache(model.config, num_pages=num_pages, page_tokens=page_tokens, dtype=torch.float32)
    cache.latents.fill_(torch.nan)
    return cache


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


def test_sequences_are_laid_side_by_side() -> None:
    batch = Batch.of([[5, 6, 7], [8], [9, 9]])
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.edges == (0, 3, 4, 6)


@pytest.mark.parametrize("lengths", [[4], [3, 3], [1, 5, 2]])
def test_padding_puts_zeros_behind_short_sequences_and_is_undone(lengths: list[int]) -> None:
    layout = Layout(Batch.of([[0] * length for length in lengths]), None)
    x = torch.randn(sum(lengths), 2, 3)
    padded = layout.pad(x)
    assert padded.shape == (len(lengths), max(lengths), 2, 3)
    for row, part in enumerate(x.split(lengths)):
        assert torch.equal(padded[row, : len(part)], part)
        assert not padded[row, len(part) :].any()
    assert torch.equal(layout.unpad(padded), x)


@pytest.mark.parametrize("lengths", [[7, 7, 7], [1, 30, 12], [40, 1]])
def test_packed_sequences_equal_each_alone(model: Transformer, lengths: list[int]) -> None:
    sequences = [random_ids(model.config, length, seed=row) for row, length in enumerate(lengths)]
    with torch.no_grad():
        packed = model(Batch.of(sequences)).split(lengths)
    for ids, logits in zip(sequences, packed, strict=True):
        assert_close(logits, alone(model, ids))


@pytest.mark.parametrize("page_tokens", [1, 16, 64])
@pytest.mark.parametrize("chunks", [[100], [64, 36], [1, 2, 97], [33, 1, 1, 65]])
def test_chunked_prefill_over_scattered_pages_equals_the_whole(
    model: Transformer, chunks: list[int], page_tokens: int
) -> None:
    ids = random_ids(model.config, 100)
    num_pages = -(-100 // page_tokens)
    shuffled = torch.randperm(num_pages + 5, generator=torch.Generator().manual_seed(1)).tolist()
    pages = tuple(shuffled[:num_pages])
    cache = new_cache(model, num_pages=num_pages + 5, page_tokens=page_tokens)
    outs, past = [], 0
    for length in chunks:
        outs += step(model, cache, [(ids[past : past + length], past, pages)])
        past += length
    assert_close(torch.cat(outs), alone(model, ids))
    assert cache.latents[:, shuffled[num_pages:]].isnan().all(), "wrote to pages of others"


def test_sequences_of_different_lengths_decoded_together_equal_each_alone(model: Transformer) -> None:
    lengths = [1, 16, 50, 17]  # before the first decoded token; the first sequence has only just begun
    sequences = [random_ids(model.config, length + 4, seed=row) for row, length in enumerate(lengths)]
    pages = [(11,), (3, 9), (0, 7, 2, 5), (8, 1)]
    cache = new_cache(model, num_pages=12, page_tokens=16)
    for ids, length, own in zip(sequences, lengths, pages, strict=True):
        step(model, cache, [(ids[:length], 0, own)])
    expected = [alone(model, ids) for ids in sequences]
    for offset in range(4):
        outs = step(
            model,
            cache,
            [
                ([ids[length + offset]], length + offset, own)
                for ids, length, own in zip(sequences, lengths, pages, strict=True)
            ],
        )
        for length, out, whole in zip(lengths, outs, expected, strict=True):
            assert_close(out[0], whole[length + offset])


def test_prompts_and_decoded_tokens_share_a_forward(model: Transformer) -> None:
    """A chunk in the middle of a prompt, a token, a whole new prompt, another token: in one batch."""
    a, b, c, d = (random_ids(model.config, length, seed=row) for row, length in enumerate([60, 20, 25, 40]))
    cache = new_cache(model, num_pages=16, page_tokens=16)
    pages_a, pages_b, pages_c, pages_d = (1, 15, 3, 4), (14, 6), (2, 8), (13, 10, 5)
    step(model, cache, [(a[:20], 0, pages_a), (b[:19], 0, pages_b), (d[:39], 0, pages_d)])
    outs = step(model, cache, [(a[20:], 20, pages_a), (b[19:], 19, pages_b), (c, 0, pages_c), (d[39:], 39, pages_d)])
    for out, whole in zip(
        outs, (alone(model, a)[20:], alone(model, b)[19:], alone(model, c), alone(model, d)[39:]), strict=True
    ):
        assert_close(out, whole)


def test_a_shared_prefix_is_read_by_two_sequences(model: Transformer) -> None:
    prefix = random_ids(model.config, 32)
    first, second = prefix + random_ids(model.config, 9, seed=1), prefix + random_ids(model.config, 14, seed=2)
    cache = new_cache(model, num_pages=6, page_tokens=16)
    step(model, cache, [(first, 0, (4, 2, 0))])
    outs = step(model, cache, [(second[32:], 32, (4, 2, 5))])
    assert_close(outs[0], alone(model, second)[32:])


def test_logits_of_the_wanted_rows_alone(model: Transformer) -> None:
    sequences = [random_ids(model.config, length, seed=length) for length in (5, 9)]
    batch, rows = Batch.of(sequences), torch.tensor([4, 13, 0])
    with torch.no_grad():
        every = model(batch)
        some = model(Batch(ids=batch.ids, positions=batch.positions, edges=batch.edges, logit_rows=rows))
    assert some.shape == (3, model.config.vocab_size)
    assert_close(some, every[rows])

    cache = new_cache(model, num_pages=2, page_tokens=16)
    parts = [(sequences[0], 0, (0,)), (sequences[1], 0, (1,))]
    assert_close(step(model, cache, parts, rows=rows)[0], every[rows])


def test_a_bfloat16_cache_moves_logits_only_by_its_rounding(model: Transformer) -> None:
    """Latents are rounded to 2^-9 of their size. The median, since a router near a tie may choose otherwise."""
    ids = random_ids(model.config, 40)
    cache = LatentCache(model.config, num_pages=3, page_tokens=16)
    assert cache.latents.dtype is torch.bfloat16
    (out,) = step(model, cache, [(ids, 0, (2, 0, 1))])
    whole = alone(model, ids)
    assert 0 < (out - whole).abs().median() < 0.02 * whole.std()
