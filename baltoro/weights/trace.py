"""Which experts every layer chose, step by step, on disk: what eviction is studied with.

    {"baltoro_trace": 1, "model": "...", "layers": [1, 2, ...], "experts": 384, "experts_per_token": 8, ...}\\n
    layer u16, tokens u32, crc32 u32, then tokens * K experts u16; and again, to the end of the file (little-endian)

A layer that is not above the one before it begins a step. A record is written as its layer has chosen, and a process
that is stopped leaves at most its last one unfinished: a reader leaves that out and says so. Anything else that is not
right is an error with its place. 26 bytes for a layer and token of K2.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import TraceError

VERSION = 1
RECORD = struct.Struct("<HII")  # layer, tokens, crc32 of these two and of the experts
LINE = 2**20  # bytes: no header is longer
TOKENS = 2**24  # of a record: more is damage, not a prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Whose choices these are."""

    model: str
    layers: tuple[int, ...]  # those with experts, rising
    experts: int  # of a layer
    experts_per_token: int
    expert_bytes: int = 0  # of one expert's block; 0: not known, and budgets are in experts

    @staticmethod
    def of(config: ModelConfig, model: str) -> Header:
        layers = tuple(layer for layer in range(config.num_hidden_layers) if config.is_moe(layer))
        return Header(
            model=model,
            layers=layers,
            experts=config.n_routed_experts,
            experts_per_token=config.num_experts_per_tok,
            expert_bytes=counts.expert_bytes(config),
        )

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.layers, self.layers[1:], strict=False))
        if not self.layers or not rising or not 0 <= self.layers[0] <= self.layers[-1] < 2**16:
            raise TraceError(f"layers {list(self.layers)}", hint="rising numbers below 65536")
        if not 1 <= self.experts_per_token <= self.experts <= 2**16 or self.expert_bytes < 0:
            raise TraceError(
                f"{self.experts_per_token} of {self.experts} experts of {self.expert_bytes} bytes",
                hint="at least 1 of at most 65536 is chosen",
            )


class Record(NamedTuple):
    """One layer of one step."""

    layer: int
    chosen: NDArray[np.uint16]  # (T, K), the experts of a token all different


class Writer:
    """Appends records to a new file, 1 microsecond for a decoded token of a layer. Every 64 KiB go to the system; the
    rest at `close`."""

    def __init__(self, path: Path, header: Header) -> None:
        self.header = header
        line: dict[str, object] = {"baltoro_trace": VERSION, "model": header.model, "layers": list(header.layers)}
        line |= {"experts": header.experts, "experts_per_token": header.experts_per_token}
        line |= {"expert_bytes": header.expert_bytes}
        try:
            self._file: BinaryIO = path.open("xb", buffering=2**16)
            self._file.write(json.dumps(line).encode("ascii") + b"\n")
        except OSError as error:
            raise TraceError(
                f"{path} cannot be written: {error.strerror}", hint="name a file that is not yet there"
            ) from error

    def add(self, layer: int, chosen: NDArray[np.integer[Any]]) -> None:
        """chosen: (T, K), T >= 1."""
        assert chosen.ndim == 2 and chosen.shape[1] == self.header.experts_per_token and len(chosen)
        body = chosen.astype("<u2").tobytes()
        begin = struct.pack("<HI", layer, len(chosen))
        self._file.write(RECORD.pack(layer, len(chosen), zlib.crc32(body, zlib.crc32(begin))) + body)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reader:
    """The records of a file, one at a time; `header` at once, `cut` when the last one was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut = 0  # bytes of an unfinished last record
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise TraceError(f"{path} cannot be opened: {error.strerror}", hint="a trace that may be read") from error
        try:
            self.header = _header(path, self._file.readline(LINE))
        except TraceError:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[Record]:
        header = self.header
        layers = frozenset(header.layers)
        with self._file as file:
            place = file.tell()
            while begin := file.read(RECORD.size):
                if len(begin) < RECORD.size:
                    self.cut = len(begin)
                    return
                layer, tokens, checksum = RECORD.unpack(begin)
                if layer not in layers or not 1 <= tokens <= TOKENS:
                    raise self._damaged(place, f"layer {layer} with {tokens} tokens")
                body = file.read(2 * tokens * header.experts_per_token)
                if len(body) < 2 * tokens * header.experts_per_token:
                    self.cut = len(begin) + len(body)
                    return
                if zlib.crc32(body, zlib.crc32(begin[:6])) != checksum:
                    raise self._damaged(place, "its checksum does not fit")
                chosen = np.frombuffer(body, "<u2").reshape(tokens, header.experts_per_token)
                if chosen.max() >= header.experts:
                    raise self._damaged(place, f"expert {chosen.max()} of {header.experts}")
                yield Record(layer, chosen)
                place += RECORD.size + len(body)

    @property
    def note(self) -> str:
        """What a person should know of the end of the file; empty where it is whole."""
        return f"{self.path}: the last record is cut after {self.cut} bytes and left out" if self.cut else ""

    def _damaged(self, place: int, why: str) -> TraceError:
        return TraceError(f"{self.path} is damaged at byte {place}: {why}", hint="record or copy it again")


def _header(path: Path, line: bytes) -> Header:
    try:
        fields = cast("dict[str, Any]", json.loads(line))
        version = fields.pop("baltoro_trace")
        if version != VERSION:
            raise TraceError(
                f"{path} is a trace of version {version!r}, this program reads {VERSION}", hint="update baltoro"
            )
        numbers = [*fields["layers"], fields["experts"], fields["experts_per_token"], fields["expert_bytes"]]
        if (
            not line.endswith(b"\n")
            or any(type(each) is not int for each in numbers)
            or type(fields["model"]) is not str
        ):
            raise ValueError("a field has the wrong type")
        fields["layers"] = tuple(fields["layers"])
        return Header(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{path} is no trace: {error!r}", hint="a trace begins with a line of JSON") from error
    except TraceError as error:
        if error.message.startswith(str(path)):
            raise
        raise TraceError(f"{path}: {error.message}", hint=error.hint) from error


def synthetic(header: Header, *, tokens: int, skew: float, sticky: float, seed: int) -> Iterator[Record]:
    """Steps of one token. A stand-in for a model that cannot run here, with two properties of real ones.

    skew:    the expert of rank r is chosen with a weight of 1 / r ** skew; each layer ranks its experts in its own way.
             0: all alike
    sticky:  how likely an expert of the last token is kept before the others are drawn
    """
    rng = np.random.default_rng(seed)
    E, K, L = header.experts, header.experts_per_token, len(header.layers)
    ranks = np.array([rng.permutation(E) for _ in header.layers])  # (L, E)
    weights = -skew * np.log1p(ranks)
    kept = np.zeros((L, E), dtype=bool)
    for _ in range(tokens):
        scores = weights + rng.gumbel(size=(L, E))  # the K greatest: a draw without replacement by these weights
        scores[kept & (rng.random((L, E)) < sticky)] = np.inf
        chosen = np.argpartition(scores, E - K, axis=1)[:, E - K :]  # (L, K)
        kept[:] = False
        np.put_along_axis(kept, chosen, True, axis=1)
        for layer, row in zip(header.layers, chosen, strict=True):
            yield Record(layer, row[None].astype(np.uint16))
