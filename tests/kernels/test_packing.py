"""Packed in place by native code: the bits of the torch twin, whatever the source, the size and the instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from baltoro.errors import BaltoroError
from baltoro.kernels import formats
from baltoro.kernels.formats import FORMATS, Format, Packed
from baltoro.kernels.packing import pack_into
from baltoro.kernels.targets import targets
from baltoro.weights import fp8

NATIVE = targets()[1:]
SOURCES = ("float32", "bfloat16", "float16", "block-fp8")


def place(format: Format, outputs: int, inputs: int, *, group: int | None = None, experts: int | None = None) -> Packed:
    """Full of what must be overwritten."""
    group = formats.group_for(format, inputs) if group is None else group
    data, scales = formats.shapes(format, outputs, inputs, group)
    lead = () if experts is None else (experts,)
    factors = torch.empty(0) if format == "bf16" else torch.full((*lead, *scales), 3.0).to(formats.SCALES[format])
    return Packed(format, outputs, inputs, group, torch.full((*lead, *data), 77, dtype=torch.uint8), factors)


def source(kind: str, w: Tensor) -> tuple[Tensor, Tensor | None]:
    return fp8.quantize(w) if kind == "block-fp8" else (w.to(getattr(torch, kind)), None)


def same(a: Packed, b: Packed) -> bool:
    return torch.equal(a.data, b.data) and torch.equal(a.scales.view(torch.uint8), b.scales.view(torch.uint8))


def weights(outputs: int, inputs: int, seed: int, spread: float = 0.0) -> Tensor:
    """Normal, and with `spread` over so many powers of two, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(outputs, inputs, generator=generator) * 0.02
    powers = (torch.rand(outputs, inputs, generator=generator) - 0.5) * spread
    return w * torch.exp2(powers) * (torch.rand(outputs, inputs, generator=generator) > 0.05)


@pytest.mark.parametrize("target", NATIVE)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "block-fp8"])
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_native_packing_has_the_bits_of_the_twin(format: Format, kind: str, target: str, data: st.DataObject) -> None:
    outputs = data.draw(st.integers(1, 300), "outputs")
    group = None
    if format in ("int8", "int4"):
        group = 8 * data.draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16, 17]), "group / 8")
        inputs = group * data.draw(st.integers(1, 5), "groups")
    else:
        inputs = data.draw(st.integers(1, 600), "inputs")
    spread = data.draw(st.sampled_from([0.0, 6.0, 20.0]), "spread")
    w, scale_inv = source(kind, weights(outputs, inputs, data.draw(st.integers(0, 99), "seed"), spread))
    expected, found = place(format, outputs, inputs, group=group), place(format, outputs, inputs, group=group)
    pack_into(expected, w, scale_inv, target="torch")
    pack_into(found, w, scale_inv, target=target)
    assert same(found, expected)


@pytest.mark.parametrize("target", NATIVE)
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_stack_is_filled_one_by_one(format: Format, kind: str, target: str) -> None:
    stack, expected = place(format, 37, 264, experts=3), place(format, 37, 264, experts=3)
    for expert in (2, 0, 1):
        w, scale_inv = source(kind, weights(37, 264, expert))
        pack_into(stack, w, scale_inv, expert=expert, target=target)
        alone = place(format, 37, 264)
        pack_into(alone, w, scale_inv, target="torch")
        expected.put(alone, expert)
    assert same(stack, expected)


@pytest.mark.parametrize("target", targets())
def test_fp8_becomes_integers_as_its_numbers_would(target: str) -> None:
    q, scale_inv = fp8.quantize(weights(150, 264, 0))
    for format in ("bf16", "int8", "int4"):
        direct, through = place(format, 150, 264), place(format, 150, 264)
        pack_into(direct, q, scale_inv, target=target)
        pack_into(through, fp8.dequantize(q, scale_inv, torch.float32), target=target)
        assert same(direct, through), format


@pytest.mark.parametrize("target", NATIVE)
@pytest.mark.parametrize("format", FORMATS)
def test_every_code_of_fp8_keeps_its_value(format: Format, target: str) -> None:
    codes = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F], dtype=torch.uint8).repeat(8)  # 254 * 8
    q = codes.view(254, 8).view(torch.float8_e4m3fn)
    for scale in (1.0, 2.0**-140, 2.0**-60, 2.0**60, 0.0, -1.0):
        scale_inv = torch.full((2, 1), scale)
        expected, found = place(format, 254, 8), place(format, 254, 8)
        pack_into(expected, q, scale_inv, target="torch")
        pack_into(found, q, scale_inv, target=target)
        assert same(found, expected), scale


@pytest.mark.parametrize("target", NATIVE)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [0.0, 2.0**-149, 2.0**-126, 2.0**-101, 2.0**-100, 1e-20, 1e20, 1e38])
def test_the_smallest_and_the_largest_numbers_too(size: float, format: Format, target: str) -> None:
    w = (weights(40, 264, 1, 4.0) * 50).clamp(-3, 3) * size
    expected, found = place(format, 40, 264), place(format, 40, 264)
    pack_into(expected, w, target="torch")
    pack_into(found, w, target=target)
    assert same(found, expected)


@pytest.mark.parametrize("target", NATIVE)
def test_halves_are_rounded_to_even_in_fp8(target: str) -> None:
    low = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = torch.cat([(low[1:] + low[:-1]) / 2, low])
    w = torch.stack([middles, -middles, middles.nextafter(torch.zeros(())), middles.nextafter(torch.full((), 500.0))])
    w = torch.cat([w, torch.full((4, 3), 448.0)], 1).clamp(-448, 448)  # so that every scale is 1
    w[:, 120:128] = torch.where(w[:, 120:128].abs() > 448, 0, w[:, 120:128])
    w[:, 0] = 448
    expected, found = place("fp8", *w.shape), place("fp8", *w.shape)
    pack_into(expected, w, target="torch")
    pack_into(found, w, target=target)
    assert same(found, expected)
    assert (found.scales == 1).all()


@pytest.mark.parametrize("target", NATIVE)
@pytest.mark.parametrize("threads", [1, 3])
def test_neither_threads_nor_the_place_in_memory_change_a_bit(threads: int, target: str) -> None:
    before = torch.get_num_threads()
    w = weights(300, 264, 0)
    shifted = torch.empty(w.nbytes + 4, dtype=torch.uint8)[4:].view(torch.float32).view(w.shape).copy_(w)
    try:
        for format in FORMATS:
            expected, found, transposed = (place(format, 300, 264) for _ in range(3))
            torch.set_num_threads(1)
            pack_into(expected, w, target=target)
            torch.set_num_threads(threads)
            pack_into(found, shifted, target=target)
            pack_into(transposed, w.T.contiguous().T, target=target)
            assert same(found, expected)
            assert same(transposed, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [(0, 0), (150, 263), (129, 131)])
def test_a_weight_that_is_no_number_is_refused(at: tuple[int, int], wrong: float, format: Format, target: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        w = weights(151, 264, 0).to(dtype)
        w[at] = wrong
        with pytest.raises(BaltoroError, match=r"\(151, 264\) holds inf or nan and cannot be quantized to " + format):
            pack_into(place(format, 151, 264), w, target=target)


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("format", FORMATS)
def test_fp8_that_is_no_number_is_refused(format: Format, target: str) -> None:
    q, scale_inv = fp8.quantize(weights(151, 264, 0))
    for code in (0x7F, 0xFF):
        wrong = q.clone()
        wrong.view(torch.uint8)[150, 261] = code
        with pytest.raises(BaltoroError, match=r"block-fp8 weight of shape \(151, 264\) or its scales hold inf or nan"):
            pack_into(place(format, 151, 264), wrong, scale_inv, target=target)
    for factor in (torch.nan, torch.inf):
        scales = scale_inv.clone()
        scales[1, 2] = factor
        with pytest.raises(BaltoroError, match=r"block-fp8 weight of shape \(151, 264\) or its scales hold inf or nan"):
            pack_into(place(format, 151, 264), torch.zeros_like(q), scales, target=target)


@pytest.mark.parametrize("target", targets())
def test_a_number_that_rounds_to_infinity_is_refused(target: str) -> None:
    with pytest.raises(BaltoroError, match="inf or nan"):
        pack_into(place("bf16", 16, 8), torch.full((16, 8), 3.4e38), target=target)
    for format in ("bf16", "int8", "int4"):
        q, scale_inv = torch.full((16, 8), 448.0).to(torch.float8_e4m3fn), torch.full((1, 1), 1e36)
        with pytest.raises(BaltoroError, match="inf or nan"):
            pack_into(place(format, 16, 8), q, scale_inv, target=target)


def test_what_does_not_fit_is_named() -> None:
    one, stack, w = place("int4", 20, 64), place("int4", 20, 64, experts=2), weights(20, 64, 0)
    q, scale_inv = fp8.quantize(w)
    with pytest.raises(ValueError, match=r"w is \(20, 63\), expected \(20, 64\)"):
        pack_into(one, w[:, :63])
    with pytest.raises(ValueError, match=r"w is torch.int64, expected float32"):
        pack_into(one, w.long())
    with pytest.raises(ValueError, match=r"w is torch.float8_e5m2, expected float32"):
        pack_into(one, w.to(torch.float8_e5m2), scale_inv)
    with pytest.raises(ValueError, match=r"w is torch.float8_e4m3fn, expected scale_inv with float8_e4m3fn, and only"):
        pack_into(one, q)
    with pytest.raises(ValueError, match=r"w is torch.float32, expected scale_inv with float8_e4m3fn, and only"):
        pack_into(one, w, scale_inv)
    with pytest.raises(ValueError, match=r"scale_inv is torch.float32 \(1, 2\), expected float32 \(1, 1\)"):
        pack_into(one, q, torch.ones(1, 2))
    with pytest.raises(ValueError, match="expert is 0, the place is one matrix"):
        pack_into(one, w, expert=0)
    with pytest.raises(ValueError, match="expert is None, the place is a stack"):
        pack_into(stack, w)
    with pytest.raises(ValueError, match=r"expert is 2, expected 0 .. 1"):
        pack_into(stack, w, expert=2)
    short = Packed("int4", 20, 64, 32, one.data[:1], one.scales)
    with pytest.raises(ValueError, match=r"to.data is \(1, 512\), expected \(2, 512\), contiguous"):
        pack_into(short, w)
    elsewhere = Packed("int4", 20, 64, 32, one.data, one.scales.to("meta"))
    with pytest.raises(ValueError, match=r"to.scales are on meta, to.data on cpu"):
        pack_into(elsewhere, w)
    with pytest.raises(ValueError, match="scale_inv is on meta, w on cpu"):
        pack_into(one, q, scale_inv.to("meta"))
    for group in (0, 1):  # what native code divides by
        with pytest.raises(ValueError, match=f"group is {group}, expected 128 in fp8"):
            pack_into(Packed("fp8", 20, 64, group, one.data, one.scales), w)
    wide = Packed("int4", 20, 64, 32, one.data, one.scales.float())
    with pytest.raises(ValueError, match=r"to is torch.uint8 and torch.float32, expected torch.uint8 and torch.bfl"):
        pack_into(wide, w)
    with pytest.raises(ValueError, match="group is 12, expected a multiple of 8 that divides the 64 inputs"):
        pack_into(Packed("int4", 20, 64, 12, one.data, one.scales), w)
