"""Whatever comes to the kernels' door is computed as the torch twin does it, or refused with its name and values.

Native code follows addresses, so a lie about a shape is a read of somebody else's memory. Each case begins right and
has up to two things done to it: some change nothing that matters (where the numbers lie), most are wrong. `make
check-door` runs this with native code that was built with the sanitizers, which see every byte that is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from baltoro.errors import BaltoroError
from baltoro.kernels import attention, ops
from baltoro.kernels.formats import FORMATS, Format, Packed, pack, pack_fp8
from baltoro.kernels.targets import targets
from baltoro.weights import fp8

NATIVE = targets()[1:]
Case = dict[str, Any]  # of arguments
Change = Callable[[Any], Any]

small = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(format: Format, seed: int, *shape: int) -> Packed:
    w = randn(seed, *shape)
    return pack_fp8(*fp8.quantize(w)) if format == "fp8" else pack(w, format)


# --- right cases ----------------------------------------------------------------------------------------------------


@st.composite
def products(draw: st.DrawFn) -> Case:
    format, seed = draw(st.sampled_from(FORMATS)), draw(seeds)
    inputs = draw(st.sampled_from([8, 32, 40, 136, 256]) | st.integers(1, 140).filter(lambda _: format[:3] != "int"))
    return {
        "x": randn(seed, draw(st.integers(0, 9)), inputs),
        "w": packed(format, seed, draw(st.integers(1, 40)), inputs),
    }


@st.composite
def each_products(draw: st.DrawFn) -> Case:
    seed, heads, inputs = draw(seeds), draw(small), 8 * draw(small)
    w = packed(draw(st.sampled_from(FORMATS)), seed, heads, draw(st.integers(1, 40)), inputs)
    return {"x": randn(seed, draw(st.integers(0, 4)), heads, inputs), "w": w}


@st.composite
def mixtures(draw: st.DrawFn) -> Case:
    format, seed, E, D, F = draw(st.sampled_from(FORMATS)), draw(seeds), draw(small), 8 * draw(small), 8 * draw(small)
    T, K = draw(st.integers(0, 5)), draw(st.integers(0, 9))  # K > E: the same expert twice
    chosen = torch.randint(0, E, (T, K), generator=torch.Generator().manual_seed(seed))
    gate, up, down = (packed(format, seed + n, E, *shape) for n, shape in enumerate([(F, D), (F, D), (D, F)], start=1))
    return {"x": randn(seed, T, D), "chosen": chosen, "weights": randn(seed, T, K),
            "gate": gate, "up": up, "down": down}  # fmt: skip


@st.composite
def decodes(draw: st.DrawFn) -> Case:
    seed, latent, rope = draw(seeds), 32 * draw(st.integers(1, 2)), 4 * draw(small)
    lengths = draw(st.lists(st.integers(1, 40), max_size=3))
    rows = sum(lengths) + draw(small)
    return {
        "q": randn(seed, len(lengths), draw(st.sampled_from([0, 1, 3, 33])), latent + rope),
        "cache": randn(seed + 1, rows, latent + rope).bfloat16(),
        "slots": torch.randint(0, rows, (sum(lengths),), generator=torch.Generator().manual_seed(seed)),
        "edges": torch.tensor([0, *lengths]).cumsum(0), "scale": draw(st.floats(0.01, 3)), "latent": latent,
    }  # fmt: skip


@st.composite
def causals(draw: st.DrawFn) -> Case:
    seed, T, past, H = draw(seeds), draw(st.integers(0, 40)), draw(st.integers(0, 5)), draw(st.integers(0, 3))
    key, value = 4 * draw(small), 32 * draw(st.integers(1, 2))
    k, v = (randn(seed + n, T + past, H, width).bfloat16() for n, width in enumerate([key, value], start=1))
    return {"q": randn(seed, T, H, key), "k": k, "v": v, "scale": draw(st.floats(0.01, 3))}


@st.composite
def prompts(draw: st.DrawFn) -> Case:
    format, seed, H = draw(st.sampled_from(FORMATS)), draw(seeds), draw(st.integers(1, 3))
    T, past, C, N, R = (
        draw(st.integers(1, 40)),
        draw(st.integers(0, 5)),
        8 * draw(small),
        4 * draw(small),
        4 * draw(small),
    )
    rows = T + past + draw(small)
    return {
        "q": randn(seed, T, H, N + R), "keys": packed(format, seed + 1, H, N, C),
        "values": packed(format, seed + 2, H, 32 * draw(st.integers(1, 2)), C),
        "cache": randn(seed + 3, rows, C + R).bfloat16(),
        "slots": torch.randint(0, rows, (T + past,), generator=torch.Generator().manual_seed(seed)),
        "scale": draw(st.floats(0.01, 3)),
    }  # fmt: skip


DOORS: dict[str, st.SearchStrategy[Case]] = {
    "matmul": products(), "matmul_each": each_products(), "experts": mixtures(), "mla_decode": decodes(),
    "causal_attention": causals(), "mla_prefill": prompts(),
}  # fmt: skip

# --- what can be done to an argument ---------------------------------------------------------------------------------


def elsewhere(x: Tensor) -> Tensor:
    """The same numbers at an address that is no multiple of their size, as a mapped file may have them."""
    if x.requires_grad or not x.is_cpu or not x.numel():
        return x
    raw = bytes([7]) + x.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return torch.frombuffer(bytearray(raw), dtype=x.dtype, offset=1).view(x.shape)


def scattered(x: Tensor) -> Tensor:
    """The same numbers, each beside one that is none of ours."""
    wide = torch.stack([x, torch.ones_like(x)], dim=-1)
    return wide[..., 0]


def behind(x: Tensor) -> Tensor:
    """The same numbers in the middle of other memory."""
    return torch.cat([torch.ones_like(x[:1]), x, torch.ones_like(x[:1])])[1:-1] if x.dim() else x


def turned(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else x


HARMLESS: list[Change] = [scattered, behind, turned, elsewhere]
MISSHAPEN: list[Change] = [
    lambda x: x[:-1] if x.dim() else x,
    lambda x: x[..., :-1] if x.dim() else x,
    lambda x: torch.cat([x, x]) if x.dim() else x,
    lambda x: torch.cat([x, x], -1) if x.dim() else x,
    lambda x: x[:0] if x.dim() else x,
    lambda x: x[..., :0] if x.dim() else x,
    lambda x: x.unsqueeze(0),
    lambda x: x.unsqueeze(-1),
    lambda x: x.flatten(),
    lambda x: x.mT if x.dim() > 1 else x,
    lambda x: x.new_zeros(()),
    lambda x: x.new_zeros(0),
]
FOREIGN: list[Change] = [
    lambda x: x.to(torch.float64),
    lambda x: x.to(torch.bfloat16),
    lambda x: x.to(torch.int32),
    lambda x: x.to(torch.uint8),
    lambda x: x.to("meta"),
    lambda x: x.float().requires_grad_(),
]


def spoiled(numbers: list[float]) -> list[Change]:
    """The tensor with one of its numbers replaced, if its type has that number."""

    def put(x: Tensor, number: float) -> Tensor:
        if not x.numel() or x.is_meta or x.requires_grad or not x.is_floating_point():
            return x
        x = x.clone()
        x.view(-1)[x.numel() // 2] = number
        return x

    return [lambda x, number=number: put(x.contiguous(), number) for number in numbers]


def renumbered(x: Tensor) -> list[Change]:
    """For indices: one of them is another number, or two of them have changed places."""
    if not x.numel() or x.is_meta or x.dtype is not torch.int64:
        return []

    def at(place: int, number: int) -> Tensor:
        y = x.clone()
        y.view(-1)[place] = number
        return y

    numbers = [-1, -(2**63), 2**63 - 1, 2**31, 2**40, 5, 50, min(int(x.max()) + 1, 2**63 - 1)]
    return [lambda _, n=n, place=place: at(place, n) for n in numbers for place in (0, x.numel() // 2, -1)] + [
        lambda _: x.flip(0)
    ]


@st.composite
def changed_tensor(draw: st.DrawFn, x: Tensor) -> Tensor:
    kinds = [HARMLESS, MISSHAPEN, FOREIGN, spoiled([torch.nan, torch.inf, -torch.inf, -0.0]), renumbered(x)]
    return draw(st.sampled_from([change for kind in kinds for change in kind]))(x)


@st.composite
def changed_packed(draw: st.DrawFn, w: Packed) -> Packed:
    """Another number than is true, or another tensor than belongs to it."""
    numbers = st.sampled_from([-(2**40), -16, -1, 0, 1, 3, 7, 8, 12, 15, 17, 24, 128, 2**31, 2**62])
    name = draw(st.sampled_from([field.name for field in fields(Packed)]))
    if name == "format":
        return replace(w, format=draw(st.sampled_from([*FORMATS, "int2", ""])))
    if name in ("data", "scales"):
        return replace(w, **{name: draw(changed_tensor(getattr(w, name)))})
    near = getattr(w, name) + draw(st.integers(-16, 16))
    return replace(w, **{name: draw(st.just(near) | numbers)})


@st.composite
def changed(draw: st.DrawFn, case: Case) -> Case:
    name = draw(st.sampled_from(sorted(case)))
    value = case[name]
    if isinstance(value, Tensor):
        return case | {name: draw(changed_tensor(value))}
    if isinstance(value, Packed):
        return case | {name: draw(changed_packed(value))}
    if name == "latent":
        return case | {name: draw(st.sampled_from([-32, 0, 1, 16, 30, value - 32, value + 4, value + 32, 2**40]))}
    return case | {name: draw(st.floats())}


# --- what must come of it --------------------------------------------------------------------------------------------


def door_of(name: str) -> Callable[..., Tensor]:
    return getattr(ops if hasattr(ops, name) else attention, name)


def outcome(door: str, case: Case, target: str) -> Tensor | str:
    """The result, or why there is none. Any other exception is a failure of the test."""
    try:
        return door_of(door)(**case, target=target)
    except (ValueError, BaltoroError) as error:
        return str(error)


def assert_same(door: str, found: Tensor, twin: Tensor) -> None:
    """Up to roundings: sums in another order, and a hidden value on an edge that goes to the other integer. What is
    read at a wrong place is off by as much as the numbers are large. A key whose score is minus infinity counts for
    little in native attention; in torch's it makes a NaN where it is the only one."""
    assert found.shape == twin.shape
    assert found.dtype is torch.float32
    finite = twin.isfinite()
    assert found.isfinite()[finite].all()
    assert door in ("mla_decode", "causal_attention", "mla_prefill") or not found.isfinite()[~finite].any()
    found, twin = found[finite].double(), twin[finite].double()
    assert (found - twin).norm() <= 3e-2 * twin.norm() + 1e-6


@pytest.mark.parametrize("door", DOORS)
@given(st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_comes_to_the_door_is_computed_right_or_refused_by_name(door: str, data: st.DataObject) -> None:
    case = data.draw(DOORS[door])
    for _ in range(data.draw(st.integers(1, 2))):
        case = data.draw(changed(case))
    twin = outcome(door, case, "torch")
    if isinstance(twin, str):
        assert any(f"{name}" in twin for name in case)
    for native in NATIVE:
        found = outcome(door, case, native)
        if isinstance(twin, str):
            assert found == twin
        elif isinstance(found, str):
            assert "scales lie at the address" in found  # the one thing that only native code minds
        else:
            assert_same(door, found, twin)


@pytest.mark.parametrize("door", DOORS)
@given(st.data())
@settings(deadline=None)
def test_where_the_numbers_lie_changes_nothing(door: str, data: st.DataObject) -> None:
    case = data.draw(DOORS[door])
    moved = {
        name: data.draw(st.sampled_from(HARMLESS))(value) if isinstance(value, Tensor) else value
        for name, value in case.items()
    }
    for target in targets():
        found, expected = outcome(door, moved, target), outcome(door, case, target)
        assert isinstance(found, Tensor) and isinstance(expected, Tensor)  # not refused
        assert_same(door, found, expected)
        assert target == "torch" or torch.equal(found, expected)  # torch adds in another order where strides differ


@pytest.mark.parametrize("door", DOORS)
@given(st.data())
@settings(max_examples=10, deadline=None)
def test_the_result_is_float32_whatever_torch_makes_by_default(door: str, data: st.DataObject) -> None:
    case = data.draw(DOORS[door])
    expected = {target: outcome(door, case, target) for target in targets()}
    for target in targets():
        torch.set_default_dtype(torch.float16)  # a result of half the bytes, if a kernel's room were made so
        try:
            with torch.device("meta"):
                found = outcome(door, case, target)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(found, expected[target], rtol=0, atol=0)


def mixture(**changes: Any) -> Case:
    gate, up, down = (packed("int8", n, 2, 16, 16) for n in range(3))
    case = {"x": randn(3, 2, 16), "chosen": torch.zeros(2, 1, dtype=torch.int64), "weights": torch.ones(2, 1),
            "gate": gate, "up": up, "down": down}  # fmt: skip
    return case | changes


def causal(key: int = 4, **changes: Any) -> Case:
    rows = torch.zeros(3, 1, key).bfloat16()
    return {"q": torch.zeros(3, 1, key), "k": rows, "v": torch.zeros(3, 1, 32).bfloat16(), "scale": 1.0} | changes


FP8, META = packed("fp8", 0, 16, 128), packed("int8", 0, 2, 16, 16)


@pytest.mark.parametrize(
    ("door", "case", "named"),
    [
        ("matmul", {"x": torch.zeros(1, 128), "w": replace(FP8, group=0)}, "w.group is 0, expected 128"),  # divided by
        ("matmul", {"x": torch.zeros(1, 128), "w": replace(FP8, group=1)}, "w.group is 1, expected 128"),  # read beyond
        ("matmul", {"x": torch.zeros(1, 128), "w": replace(FP8, scales=FP8.scales.to("meta"))}, "w.scales are on meta"),
        ("matmul", {"x": torch.zeros(()), "w": FP8}, "x is"),
        ("matmul_each", {"x": torch.zeros(1, 0, 128), "w": FP8}, "w.data is"),  # was empty instead
        ("experts", mixture(down=replace(META, data=META.data.to("meta"), scales=META.scales.to("meta"))), "down"),
        ("experts", mixture(weights=torch.ones(2, 1, device="meta")), "weights"),
        ("experts", mixture(weights=torch.ones(2, 1, requires_grad=True)), "weights asks for a gradient"),
        ("experts", mixture(chosen=torch.zeros((), dtype=torch.int64)), "chosen is"),
        ("causal_attention", causal(key=0), "K a multiple of 4"),  # divided by
        ("causal_attention", causal(v=torch.zeros(3, 1, 32, device="meta").bfloat16()), "'v': 'meta'"),
        ("causal_attention", causal(scale=-1.0), "scale is -1.0, expected a positive"),  # what is hidden was seen
        ("causal_attention", causal(scale=torch.nan), "scale is nan"),
    ],
)
def test_what_once_crashed_or_gave_nonsense_is_refused(door: str, case: Case, named: str) -> None:
    for target in targets():
        with pytest.raises(ValueError, match=named):
            door_of(door)(**case, target=target)
