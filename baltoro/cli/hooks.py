"""Functions that an operator brings along: MODULE:FUNCTION -> the function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, cast

from baltoro.errors import BaltoroError


def load(option: str, text: str) -> Callable[[dict[str, Any]], Any]:
    """`text` as `option` has it, imported as `python -m` would find it, the working directory first."""
    module, _, name = text.partition(":")
    sys.path.insert(0, "")
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BaltoroError(f"{option} {text}: {error}", hint="write MODULE:FUNCTION") from error
    finally:
        sys.path.remove("")
    if not callable(function):
        raise BaltoroError(f"{option} {text} is no function", hint="write MODULE:FUNCTION")
    return cast("Callable[[dict[str, Any]], Any]", function)
