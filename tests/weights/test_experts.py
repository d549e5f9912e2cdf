"""The store gives the bytes of the files, within its slots, whatever is asked in whatever order."""

from __future__ import annotations

from collections import Counter
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baltoro.config import ModelConfig
from baltoro.errors import CheckpointError, ReadError
from baltoro.kernels.reader import Ticket
from baltoro.weights import eviction
from baltoro.weights.blocks import expert_block
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.experts import HOT, ExpertStore
from baltoro.weights.quantize.run import quantize
from tests import tiny
from tests.weights.quantize.sources import source_of

CONFIG = tiny.config(num_hidden_layers=3, v_head_dim=32, kv_lora_rank=32, n_routed_experts=9)
LAYERS = (1, 2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("store")
    source_of(CONFIG, directory / "src")
    quantize(str(directory / "src"), directory / "packed", "int8")
    return directory / "packed"


def contents(directory: Path) -> dict[tuple[int, int], bytes]:
    checkpoint = Checkpoint.open(directory)
    found: dict[tuple[int, int], bytes] = {}
    for key in ((layer, expert) for layer in LAYERS for expert in range(CONFIG.n_routed_experts)):
        block = expert_block(checkpoint, *key)
        found[key] = block.shard.read_bytes()[block.offset : block.offset + block.nbytes]
    return found


def store_of(directory: Path, slots: int, policy: str = "lru") -> ExpertStore:
    checkpoint = Checkpoint.open(directory)
    nbytes = expert_block(checkpoint, 1, 0).nbytes
    config = ModelConfig.open(directory)
    return ExpertStore(checkpoint, config, budget_bytes=slots * nbytes, policy=policy, uses=Counter())


experts = st.lists(st.integers(0, CONFIG.n_routed_experts - 1), min_size=1, max_size=9, unique=True)
requests = st.lists(st.tuples(st.sampled_from(LAYERS), experts, st.booleans(), st.booleans(), experts), max_size=12)


@given(requests, st.integers(2, 20), st.sampled_from(eviction.POLICIES))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_taken_is_what_the_files_have(
    packed: Path, asked: list[tuple[int, list[int], bool, bool, list[int]]], slots: int, policy: str
) -> None:
    truth, store = contents(packed), store_of(packed, slots, policy)
    uses = 0
    for layer, wanted, in_order, begun, guessed in asked:
        if begun and not in_order:
            store.begin(layer, wanted)
        store.expect(LAYERS[0] + LAYERS[1] - layer, guessed)
        given: list[int] = []
        for some, places in store.take(layer, wanted, in_order=in_order):
            assert len(set(places)) == len(places) == len(some)
            for expert, place in zip(some, places, strict=True):
                assert store.blocks[place].numpy().tobytes() == truth[layer, expert]
            given += some
        assert given == wanted if in_order else sorted(given) == sorted(wanted)
        uses += len(wanted)
    assert store.statistics.hits + store.statistics.misses == uses
    store.close()


def test_what_was_asked_for_in_time_is_a_hit(packed: Path) -> None:
    store = store_of(packed, 12)
    store.expect(1, [3, 4], most=2)
    for _ in store.take(2, [0]):  # meanwhile
        pass
    for some, _ in store.take(1, [3, 4, 5]):
        assert set(some) <= {3, 4, 5}
    assert store.statistics.foreseen == 2
    assert store.statistics.bytes_read == 4 * store.shape.nbytes


def test_a_step_that_was_given_up_holds_nothing(packed: Path) -> None:
    store = store_of(packed, 3)
    for _ in store.take(1, [0, 1, 2, 3, 4, 5]):
        break
    assert sorted(expert for some, _ in store.take(2, list(range(9))) for expert in some) == list(range(9))


def test_what_was_used_most_is_pinned_in_the_next_run(packed: Path) -> None:
    store = store_of(packed, 6, "pinned-lru")
    for _ in range(5):
        for _ in store.take(1, [7, 8]):
            pass
    for _ in store.take(2, [0]):
        pass
    store.close()
    again = ExpertStore(Checkpoint.open(packed), ModelConfig.open(packed), budget_bytes=store.budget_bytes)
    assert isinstance(again.policy, eviction.Pinned)
    assert {(1, 7), (1, 8)} <= again.policy.pinned
    (packed / HOT).write_text("{", encoding="utf-8")  # damaged: learned anew
    fresh = ExpertStore(Checkpoint.open(packed), ModelConfig.open(packed), budget_bytes=store.budget_bytes)
    assert isinstance(fresh.policy, eviction.Pinned)
    assert not fresh.policy.uses
    (packed / HOT).unlink()


def test_files_of_two_formats_are_refused(packed: Path, tmp_path: Path) -> None:
    quantize(str(packed.parent / "src"), tmp_path / "other", "bf16")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shard = expert_block(Checkpoint.open(packed), 2, 0).shard.name
    for file in packed.iterdir():
        source = tmp_path / "other" if file.name == shard else packed
        (mixed / file.name).write_bytes((source / file.name).read_bytes())
    (mixed / "model.safetensors.index.json").write_bytes(
        (tmp_path / "other" / "model.safetensors.index.json").read_bytes()
    )
    with pytest.raises(CheckpointError, match=r"in other parts than the first one|is not in|is both in"):
        list(store_of(mixed, 4).take(2, [0]))


@pytest.mark.parametrize("failing", range(4))
def test_a_read_that_fails_ends_its_step_and_nothing_else(
    packed: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's error reaches who asked; its slot is free again, and the next step reads anew."""
    truth, store, waits = contents(packed), store_of(packed, 4), count()
    wait = Ticket.wait

    def broken(self: Ticket) -> None:
        wait(self)
        if next(waits) == failing:
            raise ReadError("Input/output error", hint="check the disk")

    monkeypatch.setattr(Ticket, "wait", broken)

    def read(layer: int, wanted: list[int]) -> int:
        found = 0
        for some, places in store.take(layer, wanted, in_order=True):
            for expert, place in zip(some, places, strict=True):
                assert store.blocks[place].numpy().tobytes() == truth[layer, expert]
                found += 1
        return found

    with pytest.raises(ReadError, match="Input/output error"):
        read(1, [0, 1, 2, 3])
    for layer in (1, 2, 1):
        assert read(layer, [0, 1, 2, 3]) == 4, "a slot was lost"
    store.close()
