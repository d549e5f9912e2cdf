from __future__ import annotations

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.chat.tokenizer import MAX_RUN_CHARS, MAX_SLICE_CHARS, NUM_SPECIAL, PATTERN, Detokenizer, Tokenizer
from baltoro.errors import TokenizerError
from tests import vocabulary
from tests.chat import golden

TOKENIZER = vocabulary.tokenizer()
MIXED = "Hello 北京! Grüße 👩‍👩‍👧‍👦🇩🇪 don't 1234567 getUserName\n\n  x<|im_end|>[EOS]\t東京の天気 서울"


@pytest.mark.parametrize("row", golden.rows("golden_pretok"), ids=lambda row: ascii(row["text"][:20]))
def test_text_is_cut_into_pieces_as_k2_cuts_it(row: dict[str, object]) -> None:
    """With every substring of the text in the vocabulary, each piece is one token, so the tokens are the pieces."""
    text = str(row["text"])
    substrings = {text[i:j].encode(): None for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    merges = [piece for piece in substrings if len(piece) > 1]
    tokenizer = vocabulary.tokenizer(merges)
    assert [tokenizer.decode([token]) for token in tokenizer.encode(text)] == row["pieces"]


def test_control_tokens_of_a_k2_sized_vocabulary_have_k2s_ids() -> None:
    merges = [number.to_bytes(4, "big") for number in range(163_584 - 256)]
    tokenizer = vocabulary.tokenizer(merges)
    assert tokenizer.num_base == 163_584
    assert tokenizer.vocab_size == 163_840
    for row in golden.rows("golden_token_ids"):
        recorded = [token for token in row["ids"] if token >= 163_584]
        assert [token for token in tokenizer.encode_with_specials(row["text"]) if token >= 163_584] == recorded
    assert (tokenizer.bos, tokenizer.eos, tokenizer.im_end, tokenizer.im_user) == (163584, 163585, 163586, 163587)
    assert (tokenizer.im_assistant, tokenizer.im_system, tokenizer.im_middle) == (163588, 163594, 163601)
    assert (tokenizer.eot, tokenizer.unk, tokenizer.pad) == (163593, 163838, 163839)
    assert tokenizer.special_id("<|start_header_id|>") == 163590
    assert tokenizer.special_id("<|end_header_id|>") == 163591
    assert tokenizer.decode([163589]) == "<|reserved_token_163589|>"
    assert tokenizer.stop_ids == {163585, 163586}


def test_the_real_vocabulary_gives_the_recorded_ids() -> None:
    directory = os.environ.get("KIMI_K2_DIR")
    if directory is None:
        pytest.skip("KIMI_K2_DIR does not name a directory with K2's own tiktoken.model")
    tokenizer = Tokenizer.open(directory)
    for row in golden.rows("golden_token_ids"):
        assert tokenizer.encode_with_specials(row["text"]) == row["ids"]


def test_control_tokens_spelled_in_ordinary_text_stay_text() -> None:
    for token in range(TOKENIZER.num_base, TOKENIZER.vocab_size):
        name = TOKENIZER.decode([token])
        ids = TOKENIZER.encode(f"a{name}b")
        assert max(ids) < TOKENIZER.num_base
        assert TOKENIZER.decode(ids) == f"a{name}b"


def test_trusted_text_is_encoded_as_tiktoken_does() -> None:
    truth = tiktoken.Encoding(
        "truth",
        pat_str=PATTERN,
        mergeable_ranks={TOKENIZER.token_bytes(token): token for token in range(TOKENIZER.num_base)},
        special_tokens={TOKENIZER.decode([token]): token for token in range(TOKENIZER.num_base, TOKENIZER.vocab_size)},
    )
    for text in [MIXED, "<|im_end|>", "<|im_end|><|im_user|>user<|im_middle|>北<|im_end", "[EOS][EOS]", ""]:
        assert TOKENIZER.encode_with_specials(text) == truth.encode(text, allowed_special="all")
        assert TOKENIZER.encode(text) == truth.encode(text, disallowed_special=())


def _reference_slices(text: str) -> list[str]:
    """The published cuts, character by character."""
    slices: list[str] = []
    for start in range(0, len(text), MAX_SLICE_CHARS):
        piece = text[start : start + MAX_SLICE_CHARS]
        begin, length, blank = 0, 0, piece[0].isspace()
        for i, character in enumerate(piece):
            if character.isspace() != blank:
                length, blank = 1, not blank
            else:
                length += 1
                if length > MAX_RUN_CHARS:
                    slices.append(piece[begin:i])
                    begin, length = i, 1
        slices.append(piece[begin:])
    return slices


@pytest.mark.parametrize(
    "text",
    [
        "a" * 25_000,
        "a" * 25_001,
        "a" * 50_000 + " b",
        " " * 50_000 + "the user",
        "x " * 13_000 + " " * 75_001 + "北" * 60_000 + "\x1c\u3000" * 20_000,
        "the user " * 44_444 + "functions" * 9_000,
        "12" * 199_999 + "  " + "12" * 30_000,
    ],
    ids=[
        "run",
        "run+1",
        "two runs",
        "two runs of blanks",
        "blanks and Chinese",
        "past one slice",
        "run over the slice's edge",
    ],
)
def test_long_inputs_are_cut_where_the_reference_cuts_them(text: str) -> None:
    truth = [token for piece in _reference_slices(text) for token in TOKENIZER.encode(piece)]
    assert TOKENIZER.encode(text) == truth
    assert TOKENIZER.decode(truth) == text


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_decoding_what_was_encoded_gives_the_text_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_lone_surrogates_from_a_client_become_replacement_characters() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud83db")) == "a\ufffdb"


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
@settings(max_examples=500, deadline=None)
def test_detokenized_pieces_joined_are_the_whole_decoding(ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == TOKENIZER.decode(ids)


@given(st.binary(max_size=12))
@settings(max_examples=500, deadline=None)
def test_broken_utf8_streams_as_it_decodes_whole(data: bytes) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(byte) for byte in data]
    assert "".join(pieces) + detokenizer.flush() == data.decode("utf-8", errors="replace")


def test_characters_come_whole_and_as_soon_as_their_last_byte_is_there() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(byte) for byte in "a北👩‍👧ü".encode()]
    assert pieces == ["a", "", "", "北", "", "", "", "👩", "", "", "\u200d", "", "", "", "👧", "", "ü"]
    assert detokenizer.flush() == ""


def test_a_flushed_detokenizer_starts_anew() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.push(0xE5) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(ord("a")) == "a"


def test_many_threads_encode_alike() -> None:
    texts = [f"{MIXED} {number} " * 50 for number in range(16)]
    alone = [TOKENIZER.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(TOKENIZER.encode, texts)) == alone


@pytest.mark.parametrize("token", [-1, 10**6, TOKENIZER.vocab_size])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(TokenizerError, match=f"token id {token} does not exist"):
        TOKENIZER.decode([token])


def test_a_vocabulary_file_is_opened_with_control_tokens_behind_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(vocabulary.write_vocabulary(tmp_path))
    assert tokenizer.num_base == 256 + len(vocabulary.MERGES)
    assert tokenizer.vocab_size == tokenizer.num_base + NUM_SPECIAL
    assert tokenizer.im_end == tokenizer.num_base + 2
    assert tokenizer.encode(MIXED) == TOKENIZER.encode(MIXED)


def _line(token: bytes, rank: int) -> bytes:
    return b"%s %d" % (base64.b64encode(token), rank)


GOOD = [_line(bytes([byte]), byte) for byte in range(256)]


@pytest.mark.parametrize(
    "lines, complaint",
    [
        (GOOD[:200], "56 of the 256 single bytes have no rank, first 0xc8"),
        ([*GOOD, _line(b"ab", 257)], "rank 256 is missing"),
        ([*GOOD, _line(b"ab", 255)], "rank 255 occurs twice"),
        ([*GOOD, _line(b"a", 256)], "has rank 97 already"),
        ([*GOOD, b"!!! 256"], "line 257"),
        ([*GOOD, b"YWI="], "line 257"),
        ([*GOOD, b"YWI= 256 7"], "line 257"),
        ([*GOOD, b"YWI= -1"], "line 257"),
        ([*GOOD, b""], "line 257"),
        ([b'{"model": {"vocab": {}}}'], "line 1"),
        ([], "256 of the 256 single bytes"),
    ],
)
def test_a_broken_vocabulary_file_is_one_clear_error(tmp_path: Path, lines: list[bytes], complaint: str) -> None:
    (tmp_path / "tiktoken.model").write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(TokenizerError, match=complaint):
        Tokenizer.open(tmp_path)


def test_a_missing_vocabulary_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tiktoken\.model: No such file"):
        Tokenizer.open(tmp_path)


def _with_config(directory: Path, added: object) -> Path:
    vocabulary.write_vocabulary(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return directory


def test_slots_that_k2_leaves_unnamed_take_the_checkpoints_names(tmp_path: Path) -> None:
    base = TOKENIZER.num_base
    added = {str(base + 2): {"content": "<|im_end|>"}, str(base + 22): {"content": "<think>"}}
    tokenizer = Tokenizer.open(_with_config(tmp_path, added))
    assert tokenizer.encode_with_specials("<think>") == [base + 22]
    assert tokenizer.decode([base + 22]) == "<think>"


@pytest.mark.parametrize(
    "offset, name",
    [(2, "<|im_start|>"), (5, "<|im_end|>"), (256, "<|far|>"), (-1, "<|ordinary|>")],
)
def test_a_config_that_contradicts_k2s_layout_is_refused(tmp_path: Path, offset: int, name: str) -> None:
    with pytest.raises(TokenizerError, match="K2's layout"):
        Tokenizer.open(_with_config(tmp_path, {str(TOKENIZER.num_base + offset): {"content": name}}))


@pytest.mark.parametrize("added", [{"x": {"content": "y"}}, {"300": {}}, [1]])
def test_an_unreadable_config_is_one_clear_error(tmp_path: Path, added: object) -> None:
    with pytest.raises(TokenizerError, match="added_tokens_decoder"):
        Tokenizer.open(_with_config(tmp_path, added))


def test_an_unknown_control_token_is_refused() -> None:
    with pytest.raises(TokenizerError, match="not a control token"):
        TOKENIZER.special_id("im_end")
