"""What kernels' Python doors ask before they call native code.

That reads addresses, so what it is told about them must be true, with `python -O` too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baltoro.counts import BLOCK
from baltoro.kernels.formats import FORMATS, PANEL, Packed, check_group
from baltoro.kernels.targets import chosen_target


def target_for(target: str | None, *tensors: Tensor) -> str:
    """The native target for float32 CPU tensors without a gradient, and `torch`, the twin, for all others."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
            return "torch"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "torch"
    return target or chosen_target()


def target_of(target: str | None, *named: tuple[str, Tensor]) -> str:
    """Where to compute without gradients. All tensors must be on one device, and none may wait for one."""
    device = "cpu"
    for name, tensor in named:
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} asks for a gradient, which kernels do not have: call them under torch.no_grad()")
        if not tensor.is_cpu:
            device = tensor.device.type
    if device == "cpu":
        return target or chosen_target()
    places = {name: str(tensor.device) for name, tensor in named}
    if device == "meta" or len(set(places.values())) > 1:
        raise ValueError(f"tensors are on {places}, expected all on one device, and numbers in them")
    return "torch"


def sizes(name: str, tensor: Tensor, count: int) -> torch.Size:
    if tensor.dim() != count:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {count} sizes")
    return tensor.shape


def check_type(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype is not dtype or tensor.shape != shape:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """That it is such a tensor, and on the CPU."""
    if tensor.dtype is not dtype or tensor.shape != shape or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, expected {dtype} {shape} on the CPU"
        )


def check_mixture(gate: Packed, up: Packed, down: Packed, *, experts: int | None, hidden: int) -> None:
    """That these are the stacks (E, F, D), (E, F, D) and (E, D, F) of one mixture."""
    for name, w in (("gate", gate), ("up", up), ("down", down)):
        check_packed(name, w, experts)
    same = (up.format, up.outputs, up.inputs, up.group) == (gate.format, gate.outputs, gate.inputs, gate.group)
    fits = same and (down.outputs, down.inputs) == (gate.inputs, gate.outputs) and gate.inputs == hidden
    if experts is None or not fits:
        raise ValueError(
            f"gate {shape_of(gate)}, up {shape_of(up)} and down {shape_of(down)} are not stacks of one mixture"
        )


def check_range(name: str, numbers: Tensor, end: int) -> None:
    if numbers.numel() and not (int(numbers.min()) >= 0 and int(numbers.max()) < end):
        raise ValueError(f"{name} holds {int(numbers.min())} .. {int(numbers.max())}, expected 0 .. {end - 1}")


def check_scale(scale: float) -> None:
    """Kernels hide keys behind a score of -3e38 before they scale it, and it must stay the least."""
    if not 1e-20 <= scale <= 1e20:
        raise ValueError(f"scale is {scale}, expected a positive number, 1e-20 .. 1e20")


def check_packed(name: str, w: Packed, experts: int | None) -> None:
    """That a Packed's tensors are as large as its numbers say. formats.pack made it so; nobody else need have."""
    if w.format not in FORMATS or w.outputs < 1 or w.inputs < 1:
        raise ValueError(f"{name} is {shape_of(w)}, expected one of {', '.join(FORMATS)} with outputs and inputs")
    lead = () if experts is None else (experts,)
    panels, step = -(-w.outputs // PANEL), 8 if w.format == "int4" else 4
    steps = -(-w.inputs // step)
    check_type(f"{name}.data", w.data, torch.uint8, (*lead, panels, steps * (128 if w.format == "bf16" else 64)))
    if w.format == "bf16":
        check_type(f"{name}.scales", w.scales, w.scales.dtype, (0,))
    elif w.format == "fp8":
        if w.group != BLOCK:
            raise ValueError(f"{name}.group is {w.group}, expected {BLOCK} in fp8")
        check_type(f"{name}.scales", w.scales, torch.float32, (*lead, panels, -(-w.inputs // BLOCK)))
    else:
        check_group(f"{name}.group", w.group, w.inputs)
        check_type(f"{name}.scales", w.scales, torch.bfloat16, (*lead, panels, w.inputs // w.group, PANEL))
    if not (w.data.is_contiguous() and w.scales.is_contiguous()):
        raise ValueError(f"{name} is not contiguous")
    if w.scales.is_cpu is not w.data.is_cpu and w.format != "bf16":
        raise ValueError(f"{name}.scales are on {w.scales.device}, its data on {w.data.device}")
    if w.scales.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}.scales ask for a gradient, which kernels do not have")


def described(name: str, w: Packed) -> tuple[int, int, int, int, int, int]:
    scales = w.scales.data_ptr()
    if scales % 4:
        raise ValueError(f"{name}.scales lie at the address {scales}, expected a multiple of 4")
    return FORMATS.index(w.format), w.outputs, w.inputs, w.group, w.data.data_ptr(), scales


def plain(tensor: Tensor) -> Tensor:
    """The same numbers one behind the other, at an address that is a multiple of their size."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % tensor.itemsize else tensor


def shape_of(w: Packed) -> str:
    return f"{w.format} {(*w.data.shape[:-2], w.outputs, w.inputs)}"
