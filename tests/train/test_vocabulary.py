"""Byte-pair training compared with a plain form of the algorithm, and the rule that makes copying easy."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat.tokenizer import Tokenizer
from baltoro.train import vocabulary

TEXTS = [
    'Please get the weather in Oslo: {"city": "Oslo"}, {"city":"Bergen"},{"city":"Rome"}',
    "get_weather getWeather weather_get weather weather 2024-05-03 2024 20 20 20",
    "Grüße aus Köln, 你好 你好 你好",
]


def plain_bpe(words: Counter[str], num_ranks: int) -> list[bytes]:
    """Byte-pair encoding as it is written in textbooks: count all pairs anew for every merge."""
    split = {word: [bytes([b]) for b in word.encode()] for word in words}
    ranks = [bytes([b]) for b in range(256)]
    while len(ranks) < num_ranks:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, tokens in split.items():
            for pair in pairwise(tokens):
                pairs[pair] += words[word]
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if (merged := best[0] + best[1]) not in ranks:
            ranks.append(merged)
        for tokens in split.values():
            position = 0
            while position + 1 < len(tokens):
                if (tokens[position], tokens[position + 1]) == best:
                    tokens[position : position + 2] = [merged]
                position += 1
    return ranks


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="abcdef", min_size=1, max_size=9), min_size=1, max_size=30))
def test_merges_are_those_of_the_textbook_algorithm(words: list[str]) -> None:
    truth = plain_bpe(Counter(words), 280)
    assert vocabulary.train([" ".join(words)], 280) == truth


def test_no_token_joins_letters_digits_or_separators() -> None:
    ranks = vocabulary.train(TEXTS * 20, 500)
    for token in ranks[256:]:
        text = token.decode("utf-8", errors="ignore")
        kinds = {"letter" if c.isalpha() else "digit" if c.isdigit() else "other" for c in text}
        assert len(kinds) <= 1, token
        assert not re.search(r"\d\d", text), token


def test_a_word_has_the_same_tokens_in_a_request_a_name_and_json(tmp_path: Path) -> None:
    vocabulary.write(vocabulary.train(TEXTS * 20, 400), tmp_path / "tiktoken.model")
    tokenizer = Tokenizer.open(tmp_path)
    word = tokenizer.encode("weather")
    for text in ("the weather is", "get_weather", '{"weather":1}', '"weather"', "weather.get", "weather:0"):
        ids = tokenizer.encode(text)
        assert any(ids[at : at + len(word)] == word for at in range(len(ids))), text


def test_digits_are_single_tokens(tmp_path: Path) -> None:
    vocabulary.write(vocabulary.train(TEXTS * 20, 400), tmp_path / "tiktoken.model")
    assert len(Tokenizer.open(tmp_path).encode("20240503")) == 8


def test_the_order_of_texts_does_not_matter() -> None:
    assert vocabulary.train(TEXTS, 350) == vocabulary.train(TEXTS[::-1], 350)
