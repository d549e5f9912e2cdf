"""Price lists and bills."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat.messages import Usage
from baltoro.errors import AccountsError
from baltoro.server import prices

K2 = """
[models.kimi-k2-instruct]
input = 0.60
cached_input = 0.15
output = 2.50
[models."moonshotai/Kimi-K2-Instruct"]
input = 1
output = 2
"""
MONEY = st.decimals(0, 10**6, places=3)
COUNT = st.integers(0, 10**9)


@settings(deadline=None)
@given(st.tuples(MONEY, MONEY, MONEY), COUNT, COUNT, COUNT)
def test_a_bill_is_the_exact_sum_rounded_up_once(each: tuple, computed: int, cached: int, generated: int) -> None:
    price = prices.Price(input=each[0], cached_input=each[1], output=each[2])
    usage = Usage(prompt_tokens=computed + cached, completion_tokens=generated, cached_tokens=cached)
    counts = (computed, cached, generated)
    exact = sum((Fraction(a) * n for a, n in zip(each, counts, strict=True)), Fraction(0)) / 10**6
    assert price.cost(usage) == math.ceil(exact * 10**9)


@settings(deadline=None)
@given(st.integers(0, 9 * 10**18))
def test_an_amount_that_is_shown_reads_as_itself(nano: int) -> None:
    assert prices.money(prices.shown(nano)) == nano


def test_a_list_gives_the_price_of_the_first_name_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(K2)
    listed = prices.read(tmp_path / "prices.toml")
    found = prices.find(listed, ("mine", "moonshotai/Kimi-K2-Instruct", "kimi-k2-instruct"))
    assert found is not None and (found.input, found.cached_input, found.output) == (1, 1, 2)
    assert prices.find(listed, ("mine",)) is None
    # 0.15 is three twentieths, not the nearest binary fraction
    cached = Usage(prompt_tokens=10**6, completion_tokens=0, cached_tokens=10**6)
    assert listed["kimi-k2-instruct"].cost(cached) == 150_000_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nothing"),
        ("[models", "Expected ']'"),
        ("currency = 'EUR'", "currency"),
        ("[models]\nk2 = 3", "no table"),
        ("[models.k2]\ninput = 1", "lacks"),
        ("[models.k2]\ninput = 1\noutput = 2\ncached = 1", "has cached"),
        ("[models.k2]\ninput = '1'\noutput = true", "output is True"),
        ("[models.k2]\ninput = -1\noutput = 2", "input is"),
        ("[models.k2]\ninput = nan\noutput = 2", "input is"),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_what_is_right(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(AccountsError) as refused:
        prices.read(path)
    assert says in refused.value.message
    assert "cached_input = 0.15" in refused.value.hint


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf", "0.0000000001", "1e11", "1,50"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(AccountsError):
        prices.money(text)
