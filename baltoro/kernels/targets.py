"""The compiled kernels, and which of their instruction sets runs.

It is chosen once, at the first call: the widest that was built and that this CPU has, or the torch twins where nothing
was built. `BALTORO_CPU=torch|scalar|avx2|avx512|amx` forces one.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

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


def native() -> Any:
    """The compiled module, for measuring; a BaltoroError where nothing was built."""
    if _native is None:
        raise BaltoroError("the native kernels were not built", hint="install a C++ compiler, then baltoro again")
    return _native
