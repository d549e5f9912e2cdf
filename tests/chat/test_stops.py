from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.chat.stops import StopStrings
from baltoro.errors import RequestError

TEXT = st.text(alphabet="ab。", max_size=12)


def cut(text: str, stops: list[str]) -> str:
    """The slow truth: character by character, what is there when a stop string is first complete."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(pieces=st.lists(TEXT, max_size=5), stops=st.lists(TEXT.filter(bool), max_size=3))
def test_text_is_cut_at_the_same_place_however_it_comes_in_pieces(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    told = "".join([matcher.push(piece) for piece in pieces])
    told += matcher.flush()
    assert told == cut("".join(pieces), stops)
    assert (matcher.found is not None) == any(stop in "".join(pieces) for stop in stops)


@given(text=TEXT, stops=st.lists(TEXT.filter(bool), max_size=3))
def test_nothing_is_held_back_but_the_beginning_of_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopStrings(stops)
    told = "".join(map(matcher.push, text))
    if matcher.found is None:
        held = text[len(told) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        StopStrings(["a", ""])
