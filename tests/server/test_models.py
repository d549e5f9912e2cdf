from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baltoro.server.models import page


@given(count=st.integers(1, 9), limit=st.integers(1, 10))
def test_pages_walked_from_either_end_are_the_whole_list(count: int, limit: int) -> None:
    names = tuple(f"model-{number}" for number in range(count))
    there, more = page(names, limit, None, None)
    while more:
        found, more = page(names, limit, there[-1], None)
        there += found
    assert there == names
    back, more = page(names, limit, None, names[-1])
    while more:
        found, more = page(names, limit, None, back[0])
        back = found + back
    assert back == names[:-1]
