"""A directory of safetensors shards: open, look, read. Writing is in `save.py`.

    config.json  model.safetensors.index.json  model-00001-of-00061.safetensors ...   or one model.safetensors

Names are the checkpoint's; what a layer is, is not known here. Nothing is read before it is asked for: `read`
returns a view of the mapped file, so opening a terabyte takes the time to parse its headers.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.counts import TensorSpec
from baltoro.errors import CheckpointError
from baltoro.weights import fp8, layout

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SCALE = "_scale_inv"
STRAY = ".rotary_emb.inv_freq"  # a leftover in K2's files: unused, and of the wrong length
TOGETHER = 2**21  # bytes: so much Linux may map at once, a large page of its cache, when one of them is read
SHOWN = 20  # problems spelled out in one error
FOREIGN = "config and shards come from different models; `baltoro info DIR` lists every mismatch"
DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies, for those who read it without torch (experts streamed from disk)."""

    shard: Path
    offset: int  # of its first byte in the file
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """Opened shards. Thread-safe: tensors are looked up, never changed."""

    def __init__(self, directory: Path, entries: Mapping[str, Entry], shards: Mapping[Path, mmap.mmap]) -> None:
        self.directory = directory
        self.entries = entries
        self._shards = shards

    @staticmethod
    def open(directory: str | Path, *, only: Collection[str] | None = None) -> Checkpoint:
        """Check every header of the directory's shards; everything wrong is named in one CheckpointError.

        only: names of files; the others need not be there.
        """
        directory = Path(directory)
        problems: list[str] = []
        files, index = find_shards(directory, problems)
        if only is not None:
            files = [file for file in files if file.name in only]
            index = {name: file for name, file in index.items() if file.name in only}
        shards: dict[Path, mmap.mmap] = {}
        entries: dict[str, Entry] = {}
        for file in files:
            for name, entry in _open_shard(file, shards, problems):
                if name in entries:
                    problems.append(f"{name} is both in {entries[name].shard.name} and in {file.name}")
                entries[name] = entry
        for name, file in index.items():
            entry = entries.get(name)
            if (entry is None or entry.shard is not file) and file in shards:
                problems.append(f"{name} is not in {file.name}, where {INDEX} puts it")
        if index:
            problems += [f"{name} in {entries[name].shard.name} is not in {INDEX}" for name in entries.keys() - index]
        _refuse(directory, problems, "files of different models are mixed, or a download is incomplete; fetch it again")
        return Checkpoint(directory, entries, shards)

    @property
    def names(self) -> list[str]:
        return [name for name in self.entries if not name.endswith(STRAY)]

    @property
    def nbytes(self) -> int:
        """Of all tensors, headers not counted."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def files(self) -> list[Path]:
        return list(self._shards)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def entry(self, name: str) -> Entry:
        if name not in self.entries:
            near = get_close_matches(name, self.entries, n=1)
            raise CheckpointError(
                f"{self.directory}: no tensor {name}", hint=f"did you mean {near[0]}?" if near else "`baltoro info DIR`"
            )
        return self.entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self.entry(name).dtype

    def read(self, name: str) -> Tensor:
        """The tensor as stored: a view of the mapped file, valid as long as it is referenced, copied on write.

        Pages are read from disk when first touched. Whoever truncates the file meanwhile kills this process.
        Only a tensor that another writer left unaligned is copied.
        """
        entry = self.entry(name)
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        shard = self._shards[entry.shard]
        raw = torch.frombuffer(shard, dtype=torch.uint8, count=entry.nbytes, offset=entry.offset)
        aligned = raw.data_ptr() % entry.dtype.itemsize == 0
        return (raw if aligned else raw.clone()).view(entry.dtype).view(entry.shape)

    def read_into(self, name: str, to: Tensor) -> None:
        """Read the tensor's bytes straight from the file into `to`, contiguous and as large.

        Not through the mapping: where all bytes are wanted once, its page faults cost more than reading does (0.6
        against 3.7 GB/s a thread, on 2 Xeon cores).
        """
        entry = self.entry(name)
        assert to.is_contiguous() and to.nbytes == entry.nbytes, (name, tuple(to.shape))
        room = to.reshape(-1).view(torch.uint8).numpy().data
        at = entry.offset
        with entry.shard.open("rb", buffering=0) as file:
            file.seek(at)
            while room:
                count = file.readinto(room)
                if not count:
                    raise CheckpointError(
                        f"{entry.shard.name} ends inside {name}", hint="it was cut off; make it again"
                    )
                room = room[count:]

    def expect(self, name: str) -> None:
        """It will be read soon: a disk may begin."""
        self._advise(name, "MADV_WILLNEED")

    def release(self, name: str) -> None:
        """Take its pages out of this process's memory; they come back when read.

        Without this a file that is read from end to end is counted as the process's own, beside what is made of it.
        Changes that were made to the tensor, or to what lies near it in the file, are lost.
        """
        self._advise(name, "MADV_DONTNEED")

    def _advise(self, name: str, advice: str) -> None:
        entry = self.entry(name)
        start = entry.offset // TOGETHER * TOGETHER
        if hasattr(mmap, advice):  # there is no advice on Windows
            self._shards[entry.shard].madvise(getattr(mmap, advice), start, entry.offset + entry.nbytes - start)

    def read_weight(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`, multiplied with its scales if it has any. Never a view of the file that can change."""
        tensor = self.read(name)
        if name + SCALE in self.entries:
            return fp8.dequantize(tensor, self.read(name + SCALE), dtype)
        return tensor.to(dtype, copy=True)


def mismatches(config: ModelConfig, checkpoint: Checkpoint) -> list[str]:
    """Tensors missing, unexpected, of another shape or dtype than `config` implies. One sentence each."""
    specs = list(layout.tensors(config))
    unexpected = set(checkpoint.names) - {spec.name for spec in specs}
    return _differences(specs, checkpoint) + [
        f"{checkpoint.entries[name].shard.name}: {name} is unexpected" for name in sorted(unexpected)
    ]


def _differences(specs: Iterable[TensorSpec], checkpoint: Checkpoint) -> list[str]:
    problems: list[str] = []
    for spec in specs:
        entry = checkpoint.entries.get(spec.name)
        if entry is None:
            problems.append(f"{spec.name} is missing, config.json implies {list(spec.shape)} {spec.dtype}")
            continue
        where = f"{entry.shard.name}: {spec.name}"
        if entry.shape != spec.shape:
            problems.append(f"{where} is {list(entry.shape)}, config.json implies {list(spec.shape)}")
        if not _fits(entry.dtype, spec.dtype):
            problems.append(f"{where} is {_spell(entry.dtype)}, config.json implies {spec.dtype}")
    return problems


def check(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is not exactly what `config` describes."""
    _refuse(checkpoint.directory, mismatches(config, checkpoint), FOREIGN)


def check_part(specs: Iterable[TensorSpec], checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint, of which only some shards may be here, that has not exactly these among its tensors."""
    _refuse(checkpoint.directory, _differences(specs, checkpoint), FOREIGN)


def _fits(found: torch.dtype, expected: str) -> bool:
    """fp8 and packed bytes mean something only as such; the other floats are read into one another (Moonlight's bias
    is bf16)."""
    if expected in ("F8_E4M3", "U8"):
        return found == DTYPES[expected]
    return found in (torch.bfloat16, torch.float16, torch.float32)


def _spell(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def find_shards(directory: Path, problems: list[str]) -> tuple[list[Path], dict[str, Path]]:
    """The shard files, and where the index puts each name (nothing where there is no index)."""
    if directory.is_file():
        raise CheckpointError(
            f"{directory} is a config without weights", hint="name a directory with config.json and safetensors shards"
        )
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory", hint="a checkpoint is a directory with config.json")
    index_file, single = directory / INDEX, directory / SINGLE
    if index_file.exists():
        if single.exists():
            problems.append(f"{INDEX} and {SINGLE} are both there, and may be different models")
        index = _read_index(index_file, problems)
        return sorted(set(index.values())), index
    found = sorted(directory.glob("*.safetensors"))
    if len(found) > 1 and single not in found:
        problems.append(f"{len(found)} shards, but no {INDEX} says which belong together")
    if found:
        return ([single] if single in found else found), {}
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in directory.glob(pattern))
    raise CheckpointError(
        f"{directory}: no safetensors" + (f", only {', '.join(pickles)}" if pickles else ""),
        hint="pickles run code when opened and are not read; convert them to safetensors" if pickles else "fetch it",
    )


def _read_index(path: Path, problems: list[str]) -> dict[str, Path]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        weight_map = cast("dict[str, object]", content["weight_map"])
        index: dict[str, Path] = {}
        shards: dict[object, Path] = {}  # one Path a file: Kimi K2 names 61 of them 139,644 times
        for name, file in weight_map.items():
            if file in shards:
                index[name] = shards[file]
            elif not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                problems.append(f"{path.name} puts {name} into {file!r}, expected a .safetensors file beside it")
            else:
                index[name] = shards[file] = path.parent / file
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is not JSON: {error}")
    except (KeyError, TypeError, AttributeError):
        problems.append(f"{path.name} has no weight_map from tensor names to files")
    else:
        if not index and not problems:
            problems.append(f"{path.name} names no tensors")
        return index
    return {}


def _open_shard(path: Path, shards: dict[Path, mmap.mmap], problems: list[str]) -> Iterator[tuple[str, Entry]]:
    """Map one file, have the library validate its header, and say what lies where."""
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return
    try:
        safe_open(path, framework="pt")  # validates
        header, start = _read_header(path)
        with path.open("rb") as file:
            shards[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (SafetensorError, OSError, ValueError) as error:
        problems.append(f"{path.name} is not a whole safetensors file: {error}")
        return
    for name, info in header.items():
        if info["dtype"] not in DTYPES:
            problems.append(f"{path.name}: {name} is {info['dtype']}, a type that is not used in such checkpoints")
            continue
        begin, end = info["data_offsets"]
        yield name, Entry(path, start + begin, end - begin, tuple(info["shape"]), DTYPES[info["dtype"]])


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header that the library has validated, and where the data begin."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):  # the library silently keeps the last
            twice = Counter(name for name, _ in pairs) - Counter(content.keys())
            raise ValueError(f"named twice: {', '.join(twice)}")
        return content

    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length), object_pairs_hook=unique)
    header.pop("__metadata__", None)
    return header, 8 + length


def _refuse(directory: Path, problems: list[str], hint: str) -> None:
    if problems:
        more = [f"and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
        raise CheckpointError(f"{directory}: " + "; ".join([*problems[:SHOWN], *more]), hint=hint)
