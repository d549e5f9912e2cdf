"""A small deterministic vocabulary in K2's file format, for tests that need a tokenizer but no model."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from baltoro.chat.tokenizer import Tokenizer

# Each is made of two before it. The last three end inside a character.
MERGES: tuple[bytes, ...] = (
    *b"th the in er on is fu fun func ti tion function functions us user sy sys te tem system to ol tool".split(),
    *b'He ll Hell Hello {" ": "} ", 00 12'.split(),
    *(b" t", b" the", b" a", b"  ", b"\n\n", b'": ', b'": "', b'", '),
    *("ü".encode(), "ö".encode(), b"\xe5\x8c", "北".encode(), b"\xe4\xba", "京".encode(), "北京".encode()),
    *(b"\xe4\xbd", b"\xf0\x9f", b"\xf0\x9f\x9a"),
)


def write_vocabulary(directory: Path, merges: Sequence[bytes] = MERGES) -> Path:
    """Write `tiktoken.model`: the 256 bytes as ranks 0 to 255, then `merges`. Gives the directory back."""
    tokens = [bytes([byte]) for byte in range(256)] + list(merges)
    lines = [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]
    (directory / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    return directory


def tokenizer(merges: Sequence[bytes] = MERGES) -> Tokenizer:
    """The same vocabulary without a file."""
    tokens = [bytes([byte]) for byte in range(256)] + list(merges)
    return Tokenizer({token: rank for rank, token in enumerate(tokens)})
