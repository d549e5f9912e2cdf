"""Experts from disk give the bits of resident ones, whatever the budget, and never a wrong token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from baltoro.errors import BaltoroError, CheckpointError, ReadError
from baltoro.kernels.formats import FORMATS, Format
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.load import load
from baltoro.model.transformer import Transformer
from baltoro.weights.blocks import expert_block
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.quantize.run import quantize
from tests import tiny
from tests.weights.quantize.sources import source_of

CONFIG = tiny.config(num_hidden_layers=4, v_head_dim=32, kv_lora_rank=32, n_routed_experts=12, num_experts_per_tok=3)


@pytest.fixture(scope="module", params=FORMATS)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    format: Format = request.param
    directory = tmp_path_factory.mktemp(format)
    source_of(CONFIG, directory / "src")
    quantize(str(directory / "src"), directory / "packed", format)
    return directory / "packed"


def block_bytes(directory: Path) -> int:
    return expert_block(Checkpoint.open(directory), 1, 0).nbytes


def logits(model: Transformer) -> list[Tensor]:
    """Of a long prompt in two chunks, then steps that decode one and two sequences."""
    cache = LatentCache(CONFIG, num_pages=8, page_tokens=64)
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []

    def run(parts: list[tuple[int, int, tuple[int, ...]]]) -> None:
        """(first position, tokens, pages) of each sequence"""
        edges = [0]
        for _, tokens, _ in parts:
            edges.append(edges[-1] + tokens)
        ids = torch.randint(0, CONFIG.vocab_size, (edges[-1],), generator=generator)
        positions = torch.cat([torch.arange(start, start + tokens) for start, tokens, _ in parts])
        batch = Batch(ids=ids, positions=positions, edges=tuple(edges), pages=tuple(pages for *_, pages in parts))
        found.append(model(batch, cache))

    with torch.inference_mode():
        run([(0, 150, (0, 1, 2))])
        run([(150, 5, (0, 1, 2)), (0, 7, (3,))])
        for step in range(3):
            run([(155 + step, 1, (0, 1, 2))])
        run([(158, 1, (0, 1, 2)), (7, 1, (3,))])
    return found


@pytest.mark.parametrize("blocks", [2, 3, 7, 12, 36, 1000])
def test_streamed_experts_are_resident_ones(packed: Path, blocks: int) -> None:
    resident, streamed = load(packed), load(packed, expert_memory=blocks * block_bytes(packed))
    for expected, found in zip(logits(resident), logits(streamed), strict=True):
        assert torch.equal(found, expected)
    store = streamed.store
    assert store is not None
    assert store.slots == min(blocks, 36)
    seen = store.statistics
    wrong = seen.guesses - seen.foreseen
    assert seen.misses <= seen.bytes_read / block_bytes(packed) <= seen.misses + wrong
    assert 0 < seen.foreseen <= seen.guesses
    if blocks >= 36:
        assert seen.misses + seen.guesses - seen.foreseen <= 36, "what fits is read once"
    store.close()


def test_a_file_that_changes_under_a_running_model_is_an_error_and_no_token(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in packed.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    model = load(copy, expert_memory=3 * block_bytes(copy))
    with torch.inference_mode():
        expected = model(Batch.of([[1, 2, 3, 4]]))
        shard = expert_block(Checkpoint.open(copy), 2, 0).shard
        content = shard.read_bytes()
        shard.unlink()
        with pytest.raises(ReadError, match=shard.name):
            model(Batch.of([[1, 2, 3, 4]]))
        shard.write_bytes(content)
        with pytest.raises(ReadError, match="is not the file that was opened"):
            model(Batch.of([[1, 2, 3, 4]]))
        again = load(copy, expert_memory=3 * block_bytes(copy))
        assert torch.equal(again(Batch.of([[1, 2, 3, 4]])), expected)


def test_a_read_that_fails_leaves_the_store_usable(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in packed.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    model = load(copy, expert_memory=4 * block_bytes(copy))
    store = model.store
    assert store is not None
    shard = expert_block(Checkpoint.open(copy), 3, 11)
    file = store.locate((3, 11))[0]  # opened before it is cut
    whole = shard.shard.stat()
    with shard.shard.open("r+b") as opened:
        tail = shard.shard.read_bytes()[shard.offset :]
        opened.truncate(shard.offset)
        with pytest.raises(ReadError):
            list(store.take(3, [10, 11]))
        opened.seek(shard.offset)
        opened.write(tail)
    assert file.nbytes == whole.st_size
    assert sorted(expert for experts, _ in store.take(1, [0, 1, 2, 3, 4]) for expert in experts) == [0, 1, 2, 3, 4]


def test_what_cannot_be_streamed_is_refused(packed: Path) -> None:
    with pytest.raises(CheckpointError, match="is not packed"):
        load(packed.parent / "src", expert_memory=2**30)
    with pytest.raises(BaltoroError, match="holds 1 experts"):
        load(packed, expert_memory=2 * block_bytes(packed) - 1)
