"""A pytest plugin, `-p tests.native.sanitized`: the kernels of build/door instead of the installed ones, and fewer
examples, each of which is slower. `make check-door` runs it with the sanitizer's library loaded first."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from hypothesis import settings

NAME = "baltoro.kernels._native"

(built,) = (Path(__file__).parents[2] / "build" / "door").glob("_native*.so")
spec = importlib.util.spec_from_file_location(NAME, built)
assert spec and spec.loader
sys.modules[NAME] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[NAME])

settings.register_profile("sanitized", max_examples=40, deadline=None)
settings.load_profile("sanitized")
