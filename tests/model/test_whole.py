"""The arithmetic from layers to a model, against numbers made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.model import whole
from baltoro.model.rows import Row
from baltoro.model.whole import Machine
from tests import tiny

# One dense layer, four mixtures of 10 experts with 2 chosen.
CONFIG = tiny.config(num_hidden_layers=5, n_routed_experts=10, num_experts_per_tok=2)
CACHE = counts.cache_bytes_per_token(CONFIG)


def row(layer: str, *, milliseconds: float, megabytes: int, megaflops: float = 100.0, **changes: object) -> Row:
    seconds, nbytes = milliseconds / 1e3, megabytes * 10**6
    gbps, gflops = nbytes / seconds / 1e9, megaflops / 1e3 / seconds
    made = Row(
        work="decode", layer=layer, format="int8", tokens=1, context=100, seconds=seconds, attention_seconds=0.0,
        experts_seconds=0.0, rest_seconds=0.0, tokens_per_s=1 / seconds, bytes=nbytes, gbps=gbps, roof_gbps=50.0,
        roof_fraction=gbps / 50.0, gflops=gflops, peak_gflops=200.0, peak_fraction=gflops / 200.0, experts=0,
        touched=2.0 if layer == "mixture" else 0.0, expert_bytes=10 * 10**6 if layer == "mixture" else 0,
        time_ratio=None, bytes_ratio=None, target="avx512", threads=2,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


# 10 + 4 * 5 + 10 = 40 ms and 300 + 4 * 100 + 300 = 1,000 MB: 25 GB/s, half of the roof
ROWS = (
    row("dense", milliseconds=10, megabytes=300),
    row("mixture", milliseconds=5, megabytes=100),
    row("head", milliseconds=10, megabytes=300),
)
TEN_TIMES = Machine(name="ten times", bandwidth_gbps=500.0, ram_bytes=2e9, cores=8)


def test_here_a_token_takes_as_long_as_its_layers() -> None:
    here = replace(whole.this_machine(ROWS), ram_bytes=1e9)
    assert (here.bandwidth_gbps, here.cores, here.name) == (50.0, 2, "here, 2 threads")
    found = whole.whole(CONFIG, ROWS, here, model_bytes=10**9)
    assert found.seconds == pytest.approx(0.040)
    assert found.tokens_per_s == pytest.approx(25)
    assert found.bytes == 10**9
    assert found.roof_fraction == pytest.approx(0.5)
    assert found.peak_fraction == pytest.approx(6 * 0.1 / 0.040 / 200)


def test_another_machine_reads_with_the_same_fraction_of_its_bandwidth() -> None:
    found = whole.whole(CONFIG, ROWS, TEN_TIMES, model_bytes=10**9)
    assert found.tokens_per_s == pytest.approx(500e9 * 0.5 / 1e9) == pytest.approx(250)


def test_ram_must_hold_the_weights_and_the_cache_of_every_sequence() -> None:
    exact = replace(TEN_TIMES, ram_bytes=10**9 + 100 * CACHE)
    assert whole.whole(CONFIG, ROWS, exact, model_bytes=10**9).fits
    found = whole.whole(CONFIG, ROWS, replace(exact, ram_bytes=exact.ram_bytes - 1), model_bytes=10**9)
    assert (found.fits, found.needed_bytes) == (False, 10**9 + 100 * CACHE)
    assert "DOES NOT FIT: needs 1 GB, has 1" in whole.line(found)
    batch = tuple(replace(each, tokens=3) for each in ROWS)
    assert whole.whole(CONFIG, batch, exact, model_bytes=10**9).needed_bytes == 10**9 + 300 * CACHE
    prompt = tuple(replace(each, work="prefill", tokens=100) for each in ROWS)
    assert whole.whole(CONFIG, prompt, exact, model_bytes=10**9).needed_bytes == 10**9 + 100 * CACHE


def test_a_batch_reads_the_experts_that_all_would_offer_it() -> None:
    # Two tokens with 2 of 10 experts each: 10 * (1 - 0.8^2) = 3.6. Here they met only 3, of fewer.
    assert whole.expected_experts(CONFIG, 1) == pytest.approx(2)
    assert whole.expected_experts(CONFIG, 2) == pytest.approx(3.6)
    two = (
        replace(ROWS[0], tokens=2),
        row("mixture", milliseconds=6, megabytes=120, tokens=2, touched=3.0),
        replace(ROWS[2], tokens=2),
    )
    found = whole.whole(CONFIG, two, whole.this_machine(two), model_bytes=0)
    assert found.bytes == 600 * 10**6 + 4 * 126 * 10**6
    assert found.seconds == pytest.approx(0.020 + 4 * 0.006 * 126 / 120)
    assert found.tokens_per_s == pytest.approx(2 / found.seconds)


def test_a_prompt_takes_its_operations_but_never_less_than_its_bytes() -> None:
    prompt = tuple(replace(each, work="prefill", tokens=64, context=64) for each in ROWS)
    here = whole.whole(CONFIG, prompt, whole.this_machine(prompt), model_bytes=0)
    assert here.seconds == pytest.approx(0.040)
    four_times_the_cores = whole.whole(CONFIG, prompt, TEN_TIMES, model_bytes=0)
    assert four_times_the_cores.seconds == pytest.approx(0.010)
    assert four_times_the_cores.tokens_per_s == pytest.approx(6400)
    many = whole.whole(CONFIG, prompt, replace(TEN_TIMES, cores=800), model_bytes=0)
    assert many.seconds == pytest.approx(1e9 / 500e9)
    unknown = whole.whole(CONFIG, prompt, replace(TEN_TIMES, cores=None), model_bytes=0)
    assert (unknown.seconds, unknown.tokens_per_s) == (None, None)
    assert "--cores" in whole.line(unknown)


def test_kimi_k2_in_int4_fits_the_servers_that_are_described_and_not_the_desktop() -> None:
    k2 = ModelConfig.open("kimi-k2-instruct")
    fits = [whole.whole(k2, ROWS, machine, model_bytes=583 * 10**9).fits for machine in whole.DESCRIBED]
    assert fits == [False, True, True]
