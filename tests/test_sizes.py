from __future__ import annotations

import pytest

from baltoro.errors import BaltoroError
from baltoro.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "nbytes"), [("12GiB", 12 * 2**30), ("1.5 GB", 1_500_000_000), (" 7kB ", 7000), ("0.5MiB", 2**19)]
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "12", "GiB", "12 gib", "-1GB", "1e9GB", "12GiB more"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BaltoroError, match="a size of"):
        parse_bytes(text)
