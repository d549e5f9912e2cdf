"""Random weights that look like weights, in every format."""

from __future__ import annotations

import pytest

from baltoro.kernels import formats, noise
from baltoro.kernels.formats import FORMATS, Format, unpack
from baltoro.kernels.slab import Slab


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs", "experts"), [(48, 7168, None), (40, 512, 3), (16, 128, 2)])
def test_a_product_with_noise_is_as_large_as_its_input(
    outputs: int, inputs: int, experts: int | None, format: Format
) -> None:
    slab = Slab((experts or 1) * formats.nbytes(format, outputs, inputs) + 128)
    w = unpack(noise.fill(formats.empty(format, outputs, inputs, experts=experts, slab=slab), seed=1))
    assert w.isfinite().all()
    assert 0.4 < (w > 0).float().mean() < 0.6
    size = float(w.square().mean().sqrt()) * inputs**0.5
    assert 0.7 < size < 1.42 if format == "bf16" else 0.95 < size < 1.05  # bf16 has exponents only, no scales


def test_a_seed_decides_the_noise() -> None:
    first, again, other = (
        noise.fill(formats.empty("int4", 16, 64, slab=Slab(4096)), seed=seed).data for seed in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)
