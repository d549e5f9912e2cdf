"""Made-up machines whose answer a person can compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from baltoro.doctor.facts import Disk, Facts, Process, Replay, Roof, Store
from baltoro.doctor.judge import judge

GB = 10**9


def process(**changes: Any) -> Process:
    fields: dict[str, Any] = {
        "cpus": 4, "usable_cpus": 4, "ram_bytes": 64 * GB, "free_bytes": 2 * GB, "page_cache_bytes": 0,
        "swapped_bytes": 0, "anonymous_bytes": 10 * GB, "huge_bytes": 9 * GB, "huge_pages": "madvise",
        "target": "avx512", "best_target": "avx512", "forced_target": None,
    }  # fmt: skip
    return Process(**(fields | changes))


def roof(**changes: Any) -> Roof:
    fields: dict[str, Any] = {"threads": 4, "target": "avx512", "read_gbps": 10.0, "peak_gflops": 100.0}
    return Roof(**(fields | changes))


def facts(**changes: Any) -> Facts:
    """A token reads 2 GB at 10 GB/s and needs 1 G operations at 100 a second: 0.20 and 0.01 s. It took 0.25."""
    fields: dict[str, Any] = {
        "model": "m", "format": "int8", "threads": 4, "load_s": 1.0, "prompt_tokens": 10, "prompt_s": 1.0,
        "tokens": 10, "seconds": 2.5, "queued_s": 0.1, "resident_bytes": 1 * GB, "expert_bytes": GB // 2,
        "cache_bytes": GB // 2, "flops": 1 * GB, "last_cache_bytes": 10**7, "slab_bytes": 8 * GB, "roof": roof(),
        "other_roofs": (), "disk": None, "store": None, "replays": (), "smaller_formats": (), "process": process(),
        "spare_bytes": 0,
    }  # fmt: skip
    return Facts(**(fields | changes))


def replay(slots: int, misses: float, *, format: str = "int8", block_bytes: int = GB // 100) -> Replay:
    return Replay(
        slots=slots, block_bytes=block_bytes, format=format, hit_rate=1 - misses / 100, misses_per_token=misses
    )


def streamed(**changes: Any) -> Facts:
    """As `facts`, and 40 misses of 10 MB a token from 1 GB/s: 0.4 s, of which 0.35 are waited. It took 0.6."""
    fields: dict[str, Any] = {
        "seconds": 6.0, "disk": Disk(read_gbps=1.0, backend="uring", best_backend="uring", direct=True),
        "store": Store(slots=100, all_slots=400, block_bytes=GB // 100, hits=600, misses=400, bytes_read=4 * GB,
                       waited_s=3.5),
        "replays": (replay(100, 40.0), replay(150, 20.0), replay(200, 19.9), replay(400, 0.0)),
    }  # fmt: skip
    return facts(**(fields | changes))


def speeds(found: Facts) -> dict[str, float | None]:
    return {each.change: each.tokens_per_s for each in judge(found).advice}


def test_limits_are_amounts_over_rates_and_expectation_lies_between_their_sum_and_the_slowest() -> None:
    verdict = judge(facts())
    assert [(each.resource, each.tokens_per_s) for each in verdict.limits] == [
        ("memory", pytest.approx(5.0)),
        ("compute", pytest.approx(100.0)),
    ]
    assert verdict.expected_tokens_per_s == (pytest.approx(1 / 0.21), pytest.approx(5.0))
    assert verdict.tokens_per_s == pytest.approx(4.0)
    assert judge(streamed()).limits[0].resource == "disk"
    assert judge(streamed()).expected_tokens_per_s == (pytest.approx(1 / 0.61), pytest.approx(2.5))
    assert judge(streamed()).waited_share == pytest.approx(3.5 / 6)


@pytest.mark.parametrize(
    ("found", "binding"),
    [
        (facts(), "memory"),
        (facts(seconds=3.9), "memory"),  # 0.20 of 0.39 s
        (facts(seconds=4.1), "overhead"),
        (facts(seconds=4.1, queued_s=1.1), "others"),
        (facts(queued_s=1.1), "memory"),
        (facts(flops=24 * GB), "compute"),
        (streamed(), "disk"),
        (streamed(seconds=7.2), "disk"),  # its limit is 0.4 of 0.72 s, though less than half is waited
        (streamed(seconds=9.0), "overhead"),
        (facts(roof=roof(read_gbps=None, peak_gflops=None)), "unknown"),
    ],
)
def test_what_binds_explains_at_least_half_of_the_time(found: Facts, binding: str) -> None:
    assert judge(found).binding == binding


def test_free_memory_and_memory_to_buy_are_two_pieces_of_advice_and_no_more_is_asked_than_helps() -> None:
    found = speeds(streamed(spare_bytes=1 * GB))
    # 200 slots spare nothing that 150 do not; 400 need 3 GB more, of which 1 is free
    assert found["--expert-memory 1431MiB"] == pytest.approx(1 / (0.25 + 0.35 * 20 / 40))
    assert found["1.9 GiB more RAM and --expert-memory 3815MiB"] == pytest.approx(1 / 0.25)
    assert found["a drive that reads twice as fast"] == pytest.approx(1 / (0.25 + 0.35 / 2))
    assert found["memory that reads twice as fast"] == pytest.approx(1 / (0.125 + 0.35))


def test_the_best_comes_first_and_facts_without_a_forecast_last() -> None:
    advice = judge(streamed(spare_bytes=1 * GB, process=process(swapped_bytes=GB))).advice
    forecast = [each.tokens_per_s for each in advice if each.tokens_per_s is not None]
    assert forecast == sorted(forecast, reverse=True) and len(forecast) == 4
    assert advice[-1].tokens_per_s is None and "swapped" in advice[-1].because


def test_more_memory_is_no_advice_where_nothing_waits_or_nothing_is_missed() -> None:
    store = streamed().store
    assert store is not None
    still = streamed(store=replace(store, waited_s=0.0), seconds=2.5)
    assert not any("--expert-memory" in change for change in speeds(still))
    full = streamed(store=replace(store, waited_s=0.0), replays=(replay(400, 0.0),), seconds=2.5)
    assert not any("--expert-memory" in change for change in speeds(full))


def test_fewer_bytes_help_where_memory_explains_the_time() -> None:
    change = "quantize the original checkpoint to int4"
    assert speeds(facts(smaller_formats=(("int4", 0.5),)))[change] == pytest.approx(8.0)
    assert speeds(facts(smaller_formats=(("int4", 0.01),)))[change] == pytest.approx(80.0)  # arithmetic is left
    assert change not in speeds(facts(smaller_formats=(("int4", 0.5),), seconds=4.1))  # Python binds


def test_a_smaller_format_is_read_faster_and_more_of_it_fits() -> None:
    found = streamed(
        smaller_formats=(("int4", 0.5),),
        replays=(replay(100, 40.0), replay(200, 20.0, format="int4", block_bytes=GB // 200)),
    )
    assert speeds(found)["quantize the original checkpoint to int4"] == pytest.approx(1 / (0.125 + 0.35 / 4))


def test_threads_are_advised_by_what_memory_then_reads() -> None:
    found = facts(threads=2, roof=roof(threads=2), other_roofs=(roof(read_gbps=20.0, peak_gflops=200.0),))
    assert speeds(found)["--threads 4 instead of 2: so many CPUs are usable"] == pytest.approx(8.0)
    alike = facts(threads=2, roof=roof(threads=2), other_roofs=(roof(read_gbps=10.1),))
    assert not any("--threads" in change for change in speeds(alike))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": "torch", "best_target": "torch"}, "install a C++ compiler"),
        ({"target": "torch", "best_target": "avx512", "forced_target": "torch"}, "unset BALTORO_CPU, which is torch"),
        ({"huge_bytes": GB}, "huge pages"),
        ({"swapped_bytes": 1}, "less --expert-memory"),
    ],
)
def test_what_the_system_withholds_is_a_fact_without_a_forecast(changes: dict[str, Any], says: str) -> None:
    measured = changes.get("target") != "torch"
    found = facts(process=process(**changes), roof=roof() if measured else roof(read_gbps=None, peak_gflops=None))
    advice = [each for each in judge(found).advice if says in each.change]
    assert len(advice) == 1 and advice[0].tokens_per_s is None and advice[0].because
    assert not any(says in each.change for each in judge(facts()).advice)


@pytest.mark.parametrize(("queued_s", "told"), [(None, False), (0.2, False), (0.3, True)])
def test_other_programs_are_told_of_where_threads_wait_for_a_cpu(queued_s: float | None, told: bool) -> None:
    assert ("fewer programs beside, or fewer --threads" in speeds(facts(queued_s=queued_s))) == told


def test_a_forced_instruction_set_is_compared_with_the_best_as_measured() -> None:
    best = roof(target="amx", read_gbps=10.0, peak_gflops=1000.0)
    found = facts(
        flops=24 * GB, process=process(target="avx512", best_target="amx", forced_target="avx512"), other_roofs=(best,)
    )
    assert speeds(found)["unset BALTORO_CPU, which is avx512: amx runs here"] == pytest.approx(4.0 * 0.24 / 0.2)


def test_a_disk_read_through_the_page_cache_or_by_the_second_best_way_is_told() -> None:
    disk = Disk(read_gbps=1.0, backend="threads", best_backend="uring", direct=False)
    changes = list(speeds(streamed(disk=disk)))
    assert "unset BALTORO_READER: uring runs here" in changes
    assert any("past the page cache" in change for change in changes)
