"""One Python door for each kernel: check the tensors, then call native code or its torch twin.

Which code runs is chosen once, at the first call: the widest instruction set that was built and that
this CPU has, or the torch twin where nothing was built. `BALTORO_CPU=torch|scalar|avx2|avx512` forces
one. Kernels run on the calling thread and release the GIL. They have no gradient.
"""

from __future__ import annotations

import functools
import logging
import os

import torch
from torch import Tensor

from baltoro.counts import BLOCK
from baltoro.errors import BaltoroError

try:
    import baltoro.kernels._native as _native  # pyright: ignore[reportMissingModuleSource]  (built at install, or not)
except ImportError as error:
    _native = None
    logging.getLogger(__name__).warning(
        "baltoro: native CPU kernels are not available (%s); torch does their work, slower. "
        "Install a C++ compiler and Python's headers, then install baltoro again.",
        error,
    )


def targets() -> tuple[str, ...]:
    """What can run here, slowest first: `torch`, then the native targets of this CPU."""
    return ("torch", *(_native.targets() if _native else ()))


@functools.cache
def chosen_target() -> str:
    """The target that runs unless a call names another."""
    wanted = os.environ.get("BALTORO_CPU")
    if wanted is None:
        return targets()[-1]
    if wanted not in targets():
        raise BaltoroError(
            f"BALTORO_CPU is {wanted!r}, expected one of {', '.join(targets())}",
            hint="the others were not built, or this CPU lacks their instructions; unset BALTORO_CPU for the fastest",
        )
    return wanted


def matmul_fp8(x: Tensor, w: Tensor, scale: Tensor, *, target: str | None = None) -> Tensor:
    """x times the transposed block-fp8 matrix, summed in float32.

    x:       (T, I) float32
    w:       (O, I) float8_e4m3fn
    scale:   (ceil(O / 128), ceil(I / 128)) float32, multiplied into its 128x128 block of w
    target:  one of `targets()`; None: the chosen one. Tensors that are not on the CPU go to the twin.
    Returns: (T, O) float32
    """
    (T, I), (O, inputs) = x.shape, w.shape
    _check("x", x, torch.float32, (T, I))
    _check("w", w, torch.float8_e4m3fn, (O, I))
    _check("scale", scale, torch.float32, (-(-O // BLOCK), -(-inputs // BLOCK)))
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("matmul_fp8 has no gradient: call it under torch.no_grad()")

    target = target or chosen_target()
    if target == "torch" or x.device.type != "cpu":
        return _matmul_fp8_torch(x, w, scale)
    assert _native is not None  # chosen_target() names what is there
    x, w, scale = x.contiguous(), w.contiguous(), scale.contiguous()
    y = torch.empty(T, O)
    _native.matmul_fp8(target, x.data_ptr(), w.data_ptr(), scale.data_ptr(), y.data_ptr(), T, O, I)
    return y


def _matmul_fp8_torch(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    O, I = w.shape
    spread = scale.repeat_interleave(BLOCK, 0)[:O].repeat_interleave(BLOCK, 1)[:, :I]  # (O, I)
    return x @ (w.float() * spread).T


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Native code reads addresses, so what it is told about them must be true, with `python -O` too."""
    if tensor.dtype is not dtype or tensor.shape != shape:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
