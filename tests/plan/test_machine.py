"""Machines: the catalogue, files of one's own, and what options describe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from baltoro.errors import BaltoroError
from baltoro.plan.machine import Described, catalogue, described, gpus_of, machine_named, parse_rate

OWN = """
[gpu.L40S]
memory = "48GiB"
bandwidth = "864GB/s"
bf16_flops = 362e12

[machine.lab]
ram = "1TB"
ram_bandwidth = "460GB/s"
gpu = "L40S"
gpus = 4
price_hour = 3.2
"""


def test_a_file_adds_to_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    known = catalogue(tmp_path / "own.toml")
    lab = machine_named("lab", known)
    assert (lab.ram_bytes, lab.ram_bandwidth, lab.gpus, lab.price_hour) == (1e12, 460e9, 4, 3.2)
    assert lab.gpu is known.gpus["L40S"]
    assert lab.gpu.memory_bytes == 48 * 2**30
    assert "h200-x16" in known.machines


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('ram = "1TB"\n', "", "says too little"),
        ('ram = "1TB"', 'rem = "1TB"', "did you mean ram"),
        ('ram = "1TB"', "ram = 1000", "sizes as 512GiB"),
        ('"460GB/s"', '"460GB"', "bandwidth"),
        ('"460GB/s"', '"0GB/s"', "more than 0"),
        ("gpus = 4\n", "", "name both"),
        ('gpu = "L40S"', 'gpu = "L40"', "did you mean L40S"),
        ("gpus = 4", 'gpus = "4"', "numbers"),
        ("gpus = 4", "gpus = true", "numbers"),
        ("gpus = 4", 'gpus = 4\nmatrix = "neon"', "avx2"),
        ("[machine.lab]", "[machines.lab]", "no table of a catalogue"),
        ("[gpu.L40S]", "gpu = 3\n[x.L40S]", "catalogue|table"),
        ("[gpu.L40S]", "[gpu.L40S", "not a TOML file"),
    ],
)
def test_what_a_file_has_wrong_is_said(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    (tmp_path / "own.toml").write_text(OWN.replace(old, new))
    with pytest.raises(BaltoroError) as error:
        catalogue(tmp_path / "own.toml")
    assert re.search(message, str(error.value)), error.value


def test_unknown_names_get_the_nearest_known_one() -> None:
    known = catalogue()
    with pytest.raises(BaltoroError, match="did you mean h200-x16"):
        machine_named("h200x16", known)
    with pytest.raises(BaltoroError, match="did you mean H20"):
        gpus_of("8xH2000", known)
    for text in ("0xH200", "65xH200", "x", ""):
        with pytest.raises(BaltoroError):
            gpus_of(text, known)
    assert gpus_of("2 x rtx pro 6000", known) == (known.gpus["RTX-PRO-6000"], 2)
    assert gpus_of("H100", known)[1] == 1


def test_options_replace_what_a_named_machine_says() -> None:
    known = catalogue()
    base = machine_named("h200-x16", known)
    changed = described(Described(nodes=4, disk=1e9, price_hour=9.0), known, base)
    assert (changed.nodes, changed.disk_bandwidth, changed.price_hour) == (4, 1e9, 9.0)
    assert (changed.gpu, changed.ram_bytes) == (base.gpu, base.ram_bytes)
    assert not changed.assumed


def test_what_a_description_leaves_out_is_assumed_and_said() -> None:
    found = described(Described(ram=2**34, disk=2e9), catalogue())
    assert found.ram_bytes == 2**34
    for word in ("RAM of 80 GB/s", "8 cores"):
        assert any(word in each for each in found.assumed)
    assert not any("disk" in each for each in found.assumed)


def test_a_bandwidth_needs_its_second() -> None:
    assert parse_rate("7GB/s") == 7e9
    assert parse_rate("1.5 GiB / s") == 1.5 * 2**30
    for text in ("7GB", "7/s", "GB/s", "7GB/min", ""):
        with pytest.raises(BaltoroError):
            parse_rate(text)
