"""What an answer may look like, said so that a grammar engine elsewhere understands it.

A constraint of ours is a mask and a step, and only our own engine can run it. What `chat` says here of the same
constraint, dialects translate for vLLM, SGLang and llama-server (`engine/upstream/`). It may say less than the
constraint and never decides: every token that comes back meets the constraint itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """JSON under a schema, from the first character to the last, and then the end."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """`begin`, JSON under a schema, `end`; control tokens are spelled by their names."""

    begin: str
    schema: Mapping[str, Any]
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """Free text. Once `trigger` is said, with which each tag begins, one of the tags has to follow."""

    trigger: str
    tags: tuple[Tag, ...]


Structure = Document | Tagged
