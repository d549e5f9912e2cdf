"""What is written comes back; what is damaged says where; what is cut loses its last record only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baltoro.config import ModelConfig
from baltoro.errors import TraceError
from baltoro.weights.trace import RECORD, Header, Reader, Record, Writer, synthetic

HEADER = Header(model="tiny", layers=(1, 3, 4), experts=400, experts_per_token=3, expert_bytes=1000)
SYNTHETIC = Header(model="made up", layers=(2, 5), experts=50, experts_per_token=4)
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)

records_of = st.lists(
    st.tuples(
        st.sampled_from(HEADER.layers),
        st.lists(st.lists(st.integers(0, 399), min_size=3, max_size=3, unique=True), min_size=1, max_size=5),
    ),
    max_size=10,
)
Plain = list[tuple[int, list[list[int]]]]


def write(path: Path, records: Plain) -> list[int]:
    """Where each record ends."""
    path.unlink(missing_ok=True)
    ends = []
    with Writer(path, HEADER) as writer:
        ends.append(writer._file.tell())
        for layer, chosen in records:
            writer.add(layer, np.array(chosen))
            ends.append(writer._file.tell())
    return ends


def read(path: Path) -> tuple[Plain, Reader]:
    reader = Reader(path)
    return [(layer, chosen.tolist()) for layer, chosen in reader], reader


@shared
@given(records=records_of)
def test_a_trace_comes_back_as_it_was_written(records: Plain, tmp_path: Path) -> None:
    write(tmp_path / "trace", records)
    found, reader = read(tmp_path / "trace")
    assert (found, reader.header, reader.note) == (records, HEADER, "")


@shared
@given(records=records_of, data=st.data())
def test_a_cut_file_loses_its_last_record_and_says_so(records: Plain, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    ends = write(path, records)
    cut = data.draw(st.integers(ends[0], ends[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    found, reader = read(path)
    whole = sum(end <= cut for end in ends[1:])
    assert found == records[:whole]
    assert reader.cut == cut - ends[whole]
    assert bool(reader.note) == (reader.cut > 0)


@shared
@given(records=records_of.filter(len), data=st.data())
def test_a_changed_byte_is_an_error_or_reads_as_a_cut_and_never_as_other_choices(
    records: Plain, data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    ends = write(path, records)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(ends[0], ends[-1] - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    before = sum(end <= place for end in ends[1:])
    found = []
    try:
        for layer, chosen in (reader := Reader(path)):
            found.append((layer, chosen.tolist()))
    except TraceError as error:
        assert f"is damaged at byte {ends[before]}" in error.message
    else:
        assert reader.cut  # its number of tokens grew beyond the file
    assert found == records[:before]


@pytest.mark.parametrize(
    "line, said",
    [
        (b"", "is no trace"),
        (b"\n", "is no trace"),
        (b"\x00\xff" * 50, "is no trace"),
        (b"[1]\n", "is no trace"),
        (b'{"baltoro_trace": 2}\n', "version 2, this program reads 1"),
        (b'{"baltoro_trace": 1}\n', "is no trace"),
        ({"layers": [3, 1]}, r"layers \[3, 1\]"),
        ({"layers": []}, r"layers \[\]"),
        ({"layers": [70000]}, "70000"),
        ({"layers": 5}, "is no trace"),
        ({"experts": 2}, "3 of 2 experts"),
        ({"experts": 400.0}, "wrong type"),
        ({"model": 7}, "wrong type"),
        ({"more": 7}, "is no trace"),
        ({"expert_bytes": -1}, "-1 bytes"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_name(line: bytes | dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "some.trace"
    write(path, [])
    if isinstance(line, dict):
        line = json.dumps(json.loads(path.read_bytes()) | line).encode() + b"\n"
    path.write_bytes(line)
    with pytest.raises(TraceError, match=rf"some\.trace.*{said}|some\.trace: .*{said}"):
        Reader(path)


def test_a_header_without_its_end_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "trace", [])
    (tmp_path / "trace").write_bytes((tmp_path / "trace").read_bytes()[:-1])
    with pytest.raises(TraceError, match="is no trace"):
        Reader(tmp_path / "trace")


@pytest.mark.parametrize("layer, tokens", [(2, 1), (1, 0), (1, 2**31)])
def test_a_record_that_cannot_be_is_damage(layer: int, tokens: int, tmp_path: Path) -> None:
    write(tmp_path / "trace", [])
    with (tmp_path / "trace").open("ab") as file:
        file.write(RECORD.pack(layer, tokens, 0) + bytes(100))
    with pytest.raises(TraceError, match=f"damaged at byte .*: layer {layer} with {tokens} tokens"):
        read(tmp_path / "trace")


def test_a_trace_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path / "trace", [])
    with pytest.raises(TraceError, match="File exists"):
        Writer(tmp_path / "trace", HEADER)
    with pytest.raises(TraceError, match="cannot be opened"):
        Reader(tmp_path / "none")


def test_the_header_of_kimi_k2_says_what_an_expert_weighs() -> None:
    header = Header.of(ModelConfig.open("kimi-k2-instruct"), "k2")
    assert (header.layers, header.experts, header.experts_per_token) == (tuple(range(1, 61)), 384, 8)
    assert header.expert_bytes == 3 * 7168 * 2048 + 3 * 56 * 16 * 4  # e4m3 bytes and their scales


def uses(records: list[Record], layer: int) -> np.ndarray:
    chosen = np.concatenate([record.chosen for record in records if record.layer == layer])
    return np.bincount(chosen.ravel(), minlength=SYNTHETIC.experts)


def test_made_up_choices_are_different_experts_in_every_layer_and_step() -> None:
    records = list(synthetic(SYNTHETIC, tokens=30, skew=1.0, sticky=0.5, seed=3))
    assert [record.layer for record in records] == [2, 5] * 30
    for record in records:
        assert len(set(record.chosen.ravel().tolist())) == 4
        assert record.chosen.max() < 50
    again = list(synthetic(SYNTHETIC, tokens=30, skew=1.0, sticky=0.5, seed=3))
    assert all((a.chosen == b.chosen).all() for a, b in zip(records, again, strict=True))


def test_skew_makes_some_experts_common_and_others_in_every_layer() -> None:
    flat = list(synthetic(SYNTHETIC, tokens=2000, skew=0.0, sticky=0.0, seed=0))
    skewed = list(synthetic(SYNTHETIC, tokens=2000, skew=1.0, sticky=0.0, seed=0))
    expected = 2000 * 4 / 50
    assert np.abs(uses(flat, 2) - expected).max() < 6 * expected**0.5  # 6 deviations of a count
    assert uses(skewed, 2).max() > 4 * expected
    assert uses(skewed, 2).argmax() != uses(skewed, 5).argmax()


def test_the_first_of_one_token_follows_its_weights_exactly() -> None:
    header = Header(model="one", layers=(0,), experts=4, experts_per_token=1)
    counts = np.zeros(4)
    for record in synthetic(header, tokens=20_000, skew=2.0, sticky=0.0, seed=1):
        counts[record.chosen] += 1
    weights = 1 / np.arange(1, 5) ** 2.0
    assert np.abs(np.sort(counts)[::-1] / 20_000 - weights / weights.sum()).max() < 0.02  # deviation below 0.004


@pytest.mark.parametrize("sticky", [0.0, 0.5, 1.0])
def test_sticky_experts_are_kept_for_the_next_token(sticky: float) -> None:
    records = list(synthetic(SYNTHETIC, tokens=1500, skew=0.0, sticky=sticky, seed=0))
    rows = [set(record.chosen.ravel().tolist()) for record in records if record.layer == 5]
    kept = np.mean([len(a & b) / 4 for a, b in zip(rows, rows[1:], strict=False)])
    chance = (1 - sticky) * 4 * (1 - sticky) / 50  # of those not kept, about so many are drawn again
    assert kept == pytest.approx(sticky + chance, abs=0.03)
