"""Text <-> token ids: a `tiktoken.model` file, K2's splitting pattern, and 256 control-token slots behind the ranks.

Loaded without transformers and without remote code. The same class serves Kimi K2 (163,584 ranks) and a
nano vocabulary (any number of ranks from 256 on): control tokens sit at K2's offsets behind the last rank.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import tiktoken

from baltoro.errors import TokenizerError

# Source: K2's tokenization_kimi.py. `&&` is the class intersection of tiktoken's Rust engine.
_HAN = r"[\p{Han}]+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    [
        _HAN,
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Slots behind the last rank. K2's tokenizer has two more (163840, 163841), but its model has no rows for them.
NUM_SPECIAL = 256
_NAMED_OFFSETS = {
    "[BOS]": 0,
    "[EOS]": 1,
    "<|im_end|>": 2,
    "<|im_user|>": 3,
    "<|im_assistant|>": 4,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "[EOT]": 9,
    "<|im_system|>": 10,
    "<|tool_calls_section_begin|>": 11,
    "<|tool_calls_section_end|>": 12,
    "<|tool_call_begin|>": 13,
    "<|tool_call_argument_begin|>": 14,
    "<|tool_call_end|>": 15,
    "<|im_middle|>": 17,
    "[UNK]": 254,
    "[PAD]": 255,
}

# The reference cuts long inputs so that the Rust regex never sees more than this; we cut at the same characters.
MAX_SLICE_CHARS = 400_000
MAX_RUN_CHARS = 25_000
_LONG_RUN = re.compile(rf"\s{{{MAX_RUN_CHARS + 1},}}|\S{{{MAX_RUN_CHARS + 1},}}")


class Tokenizer:
    """Immutable after construction; every method may be called from any thread."""

    def __init__(self, ranks: Mapping[bytes, int], special_names: Mapping[int, str] | None = None) -> None:
        """`ranks`: dense from 0. `special_names`: offset -> name, for slots that K2 leaves unnamed."""
        self.num_base = len(ranks)
        self.vocab_size = self.num_base + NUM_SPECIAL
        names = {offset: f"<|reserved_token_{self.num_base + offset}|>" for offset in range(NUM_SPECIAL)}
        names |= dict(special_names or {})
        names |= {offset: name for name, offset in _NAMED_OFFSETS.items()}
        self._special_ids = {name: self.num_base + offset for offset, name in names.items()}
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, self._special_ids)) + ")")
        self._bpe = tiktoken.Encoding("kimi_k2", pat_str=PATTERN, mergeable_ranks=dict(ranks), special_tokens={})
        self._bytes = sorted(ranks, key=ranks.__getitem__) + [names[o].encode() for o in range(NUM_SPECIAL)]

        self.bos = self.special_id("[BOS]")
        self.eos = self.special_id("[EOS]")
        self.eot = self.special_id("[EOT]")
        self.unk = self.special_id("[UNK]")
        self.pad = self.special_id("[PAD]")
        self.im_end = self.special_id("<|im_end|>")
        self.im_user = self.special_id("<|im_user|>")
        self.im_assistant = self.special_id("<|im_assistant|>")
        self.im_system = self.special_id("<|im_system|>")
        self.im_middle = self.special_id("<|im_middle|>")
        self.tool_calls_section_begin = self.special_id("<|tool_calls_section_begin|>")
        self.tool_calls_section_end = self.special_id("<|tool_calls_section_end|>")
        self.tool_call_begin = self.special_id("<|tool_call_begin|>")
        self.tool_call_argument_begin = self.special_id("<|tool_call_argument_begin|>")
        self.tool_call_end = self.special_id("<|tool_call_end|>")
        self.stop_ids = frozenset({self.eos, self.im_end})

    @property
    def digest(self) -> str:
        """Tells vocabularies apart: sha256 of every token's bytes with their length, in the order of the ids."""
        return hashlib.sha256(b"".join(len(t).to_bytes(4, "little") + t for t in self._bytes)).hexdigest()

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """Read `tiktoken.model` and, where there is one, names of further control tokens in `tokenizer_config.json`.

        The config may name slots that K2 leaves reserved (later family members do); one that puts another
        token on a slot of K2's is refused, because the template would then speak a different language.
        """
        directory = Path(directory)
        ranks = read_ranks(directory / "tiktoken.model")
        config = directory / "tokenizer_config.json"
        return cls(ranks, _read_special_names(config, len(ranks)) if config.is_file() else None)

    def encode(self, text: str) -> list[int]:
        """Ordinary text. A control token spelled out in it stays text, whatever it is."""
        if len(text) <= MAX_RUN_CHARS:  # no slice can be needed
            return self._bpe.encode_ordinary(text)
        return [token for piece in _slices(text) for token in self._bpe.encode_ordinary(piece)]

    def encode_with_specials(self, text: str) -> list[int]:
        """Trusted text: a control token spelled out in it becomes that control token.

        Unlike the reference, long inputs are sliced between control tokens and never through one.
        """
        ids: list[int] = []
        for index, piece in enumerate(self._special_pattern.split(text)):
            if index % 2:  # re.split puts the separators at odd places
                ids.append(self._special_ids[piece])
            elif piece:
                ids += self.encode(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that are not UTF-8 become U+FFFD; control tokens become their names."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise TokenizerError(f"token id {token} does not exist, expected 0 to {self.vocab_size - 1}")
        return self._bytes[token]

    def special_id(self, name: str) -> int:
        """Id of a control token, by its name with brackets: `special_id("<|im_end|>")`."""
        try:
            return self._special_ids[name]
        except KeyError:
            raise TokenizerError(f"{name!r} is not a control token", hint="names include their brackets") from None


class Detokenizer:
    """Ids as they come -> text, whole characters only. Its pieces joined are `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes; an unfinished one waits for its last byte."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What an unfinished character decodes to; afterwards the detokenizer is as new."""
        return self._utf8.decode(b"", final=True)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Lines of base64, blank, decimal rank: every byte of the alphabet once, ranks dense from 0."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TokenizerError(
            f"{path}: {error.strerror}", hint="a K2 checkpoint directory has a tiktoken.model file"
        ) from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        try:
            token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
        except (IndexError, ValueError, binascii.Error):
            token, rank = b"", -1
        if len(fields) != 2 or not token or rank < 0:
            raise TokenizerError(f"{path.name} line {number}: {line[:60]!r}, expected base64 bytes, a blank, a rank")
        if token in ranks:
            raise TokenizerError(f"{path.name} line {number}: token {token!r} has rank {ranks[token]} already")
        ranks[token] = rank
    missing_bytes = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing_bytes:
        raise TokenizerError(
            f"{path.name}: {len(missing_bytes)} of the 256 single bytes have no rank, first 0x{missing_bytes[0]:02x}",
            hint="the file is truncated, or is not a byte-level vocabulary",
        )
    for expected, rank in enumerate(sorted(ranks.values())):
        if rank != expected:
            what = f"rank {rank} occurs twice" if rank < expected else f"rank {expected} is missing"
            raise TokenizerError(f"{path.name}: {what}, expected 0 to {len(ranks) - 1} once each")
    return ranks


def _read_special_names(path: Path, num_base: int) -> dict[int, str]:
    """Offsets that only this checkpoint names, from `added_tokens_decoder`."""
    try:
        added = cast("dict[str, Any]", json.loads(path.read_bytes()).get("added_tokens_decoder", {}))
        found = {int(slot) - num_base: str(token["content"]) for slot, token in added.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TokenizerError(f"{path}: unreadable added_tokens_decoder ({error!r})") from error
    named = {offset: name for name, offset in _NAMED_OFFSETS.items()}
    ours: dict[int, str] = {}
    for offset, name in found.items():
        slot = num_base + offset
        if name == f"<|reserved_token_{slot}|>":
            continue
        expected = named.get(offset, name)
        if not 0 <= offset < NUM_SPECIAL or name != expected or _NAMED_OFFSETS.get(name, offset) != offset:
            raise TokenizerError(
                f"{path.name}: {name!r} has id {slot}, which K2's layout contradicts",
                hint=f"control tokens behind {num_base} ranks have ids {num_base} to {num_base + NUM_SPECIAL - 1}",
            )
        if offset not in named:
            ours[offset] = name
    return ours


def _slices(text: str) -> Iterator[str]:
    """The reference's cuts: every 400,000 characters, and inside runs of more than 25,000 blanks or non-blanks."""
    for start in range(0, len(text), MAX_SLICE_CHARS):
        piece = text[start : start + MAX_SLICE_CHARS]
        begin = 0
        for run in _LONG_RUN.finditer(piece):
            for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS):
                yield piece[begin:cut]
                begin = cut
        yield piece[begin:]
