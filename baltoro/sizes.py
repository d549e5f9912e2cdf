"""Sizes as people write them."""

from __future__ import annotations

import re

from baltoro.errors import BaltoroError

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_bytes(text: str) -> int:
    """`12GiB`, `1.5 GB`; a number alone would be a guess."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if found is None or found[2] not in UNITS:
        raise BaltoroError(f"a size of {text!r}", hint=f"a number and a unit, as 12GiB: {', '.join(UNITS)}")
    return int(float(found[1]) * UNITS[found[2]])
