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


@pytest.mark.parametrize("format", FORMATS)
def test_noise_has_no_mean_that_layers_would_add_up(format: Format) -> None:
    w = unpack(noise.fill(formats.empty(format, 512, 7168, slab=Slab(2**23)), seed=1)).double()
    assert abs(float(w.mean()) * 7168**0.5) < 5 / (512 * 7168) ** 0.5  # five standard errors


@pytest.mark.parametrize("format", FORMATS)
def test_keys_of_heads_are_the_same_in_both_stacks(format: Format) -> None:
    H, N, V, C = 3, 32, 16, 64
    shapes = [(H, N, C), (H, V, C), (H, C, N)]
    stacks = [formats.empty(format, O, I, experts=H, slab=Slab(2**16)) for H, O, I in shapes]
    noise.fill_heads(stacks, seed=1)
    keys, values, absorbed = (unpack(stack) for stack in stacks)
    assert (keys - absorbed.mT).abs().max() < (0.13 if format == "int4" else 0.02)  # each rounded by itself
    assert 0.8 < float(values.square().mean().sqrt()) * C**0.5 < 1.2
