"""What a model on the hub or on a web server consists of, from its config and the headers of its shards alone.

A shard begins with the length of its header (8 bytes) and the header (JSON: name -> dtype, shape, offsets). Of Kimi
K2's terabyte that is some 17 MB, asked for by ranges.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import FetchError
from baltoro.weights.fetch.http import Patience, Transient
from baltoro.weights.fetch.journal import RemoteFile
from baltoro.weights.fetch.sources import Source, source_of
from baltoro.weights.fetch.spread import spread

FIRST_BYTES = 512 * 1024  # asked for at once: the whole header of most shards
LARGEST_HEADER = 100 * 2**20  # what safetensors allows
LARGEST_CONFIG = 2**20
CONNECTIONS = 8
PURPOSES = (  # by name; the first that is found
    ("routed experts", re.compile(r"\.mlp\.experts\.")),
    ("shared experts", re.compile(r"\.mlp\.shared_experts\.")),
    ("router", re.compile(r"\.mlp\.gate\.")),
    ("dense layers", re.compile(r"\.mlp\.")),
    ("attention", re.compile(r"\.self_attn\.")),
    ("embedding", re.compile(r"embed_tokens\.")),
    ("head", re.compile(r"lm_head\.")),
    ("norms", re.compile(r"norm")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A model that is not here."""

    source: str
    config: ModelConfig
    file_bytes: int  # all that `baltoro fetch` would bring
    shards: int
    tensors: int
    tensor_bytes: int
    by_purpose: dict[str, int]  # bytes
    by_dtype: dict[str, int]
    mismatches: tuple[str, ...]  # where files and config disagree


def read(repo: str, *, revision: str | None = None, patience: Patience | None = None) -> Remote:
    """OWNER/NAME of the hub, or the address of a folder. No weight is read."""
    patience = patience or Patience(total_s=60.0)
    source = source_of(repo, revision=revision, connections=CONNECTIONS, patience=patience)
    listing = source.list()
    files = {file.name: file for file in listing.files}
    if "config.json" not in files:
        raise FetchError(f"{listing.source} has no config.json", hint="a model's folder, not a file of it")
    config_file = files["config.json"]
    if config_file.size > LARGEST_CONFIG:
        raise FetchError(f"config.json of {listing.source} has {config_file.size:,} bytes, expected a small file")
    config = ModelConfig.from_dict(
        _json(_piece(source, config_file, 0, config_file.size, patience), config_file), source=config_file.name
    )
    shards = [file for file in listing.files if file.name.endswith(".safetensors")]
    if not shards:
        raise FetchError(f"{listing.source} has no safetensors", hint="plan with its config.json alone")
    ask: Callable[[RemoteFile], dict[str, Any]] = lambda file: _header(source, file, patience)  # noqa: E731
    purposes, dtypes, tensors = Counter[str](), Counter[str](), 0
    for header in spread(ask, shards, CONNECTIONS):
        for name, entry in header.items():
            nbytes = entry["data_offsets"][1] - entry["data_offsets"][0]
            tensors += 1
            purposes[_purpose(name)] += nbytes
            dtypes[entry["dtype"]] += nbytes
    total = sum(purposes.values())
    expected = counts.tensor_bytes(config)
    wrong: list[str] = []
    if config.packed_format is None and total != expected:
        wrong.append(f"the files hold {total:,} bytes of tensors, config.json implies {expected:,}")
    return Remote(
        source=listing.source, config=config, file_bytes=sum(file.size for file in listing.files), shards=len(shards),
        tensors=tensors, tensor_bytes=total, by_purpose=dict(purposes.most_common()),
        by_dtype=dict(dtypes.most_common()), mismatches=tuple(wrong),
    )  # fmt: skip


def _header(source: Source, file: RemoteFile, patience: Patience) -> dict[str, Any]:
    start = _piece(source, file, 0, min(file.size, FIRST_BYTES), patience)
    length = int.from_bytes(start[:8], "little") if len(start) >= 8 else -1
    if not 2 <= length <= min(LARGEST_HEADER, file.size - 8):
        raise FetchError(f"{file.name} is no safetensors file: its header would have {length:,} bytes")
    content = start[8 : 8 + length]
    if len(content) < length:
        content += _piece(source, file, 8 + len(content), 8 + length, patience)
    document = _json(content, file)
    document.pop("__metadata__", None)
    for name, entry in document.items():
        if not _sound(entry, file.size - 8 - length):
            raise FetchError(f"{file.name}: the header's entry of {name} is damaged")
    return document


def _sound(entry: Any, data_bytes: int) -> bool:
    """Whether offsets lie in the file and agree with shape and type, where we know the type."""
    try:
        begin, end = entry["data_offsets"]
        size = counts.BYTES.get(entry["dtype"])
        numel = math.prod(entry["shape"])
        return 0 <= begin <= end <= data_bytes and (size is None or end - begin == numel * size)
    except (TypeError, KeyError, ValueError):
        return False


def _piece(source: Source, file: RemoteFile, start: int, end: int, patience: Patience) -> bytes:
    def ask() -> bytes:
        with source.open(file, start, end) as body:
            content = bytearray()
            for chunk in body.chunks:
                content += chunk
                if len(content) >= end - start:  # a server that knows no ranges would send the whole file
                    break
        if len(content) < end - start:
            raise Transient(f"{file.name} broke off")
        return bytes(content[: end - start])

    return patience.call(ask)


def _json(content: bytes, file: RemoteFile) -> dict[str, Any]:
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FetchError(f"{file.name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FetchError(f"{file.name} holds {type(document).__name__}, expected an object")
    return cast("dict[str, Any]", document)


def _purpose(name: str) -> str:
    return next((purpose for purpose, pattern in PURPOSES if pattern.search(name)), "others")
