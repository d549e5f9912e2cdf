"""A checkpoint -> a packed one, shard by shard: check first, pack, remember, publish. The layout is in layout.py.

Everything unfinished lives in DIR/.quantize; shards and config.json get their places in DIR when all is whole. Stopped
at any moment, the same command goes on behind the last finished shard and gives the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from baltoro import counts
from baltoro.config import ModelConfig, packed_quantization
from baltoro.errors import CheckpointError
from baltoro.kernels.formats import Format
from baltoro.weights import layout
from baltoro.weights.checkpoint import INDEX, SCALE, check, check_part
from baltoro.weights.display import Display, duration, size
from baltoro.weights.durable import sync
from baltoro.weights.fetch.run import Pace
from baltoro.weights.fetch.sources import SMALL, SUMS
from baltoro.weights.layout import Shard
from baltoro.weights.lock import locked
from baltoro.weights.quantize import loss, shard
from baltoro.weights.quantize.journal import STATE, Finished, Journal
from baltoro.weights.quantize.source import Source, open_source, places

HEADER_BYTES = 256  # of a shard's header for each tensor, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was made; the object of `baltoro quantize --json`."""

    source: str
    revision: str | None
    directory: str
    format: str
    files: int  # shards
    bytes: int  # of shards
    made_bytes: int  # in this run
    errors: dict[str, float]  # relative root-mean-square error by class of tensors
    errors_from: str
    seconds: float


def quantize(
    src: str,
    directory: Path,
    format: Format,
    *,
    discard: bool = False,
    revision: str | None = None,
    pace: Pace | None = None,
) -> Summary:
    """Pack the checkpoint `src` into `directory`.

    discard: shards of a source directory are deleted as soon as all that is made of them is on disk. What is fetched
    always is.
    """
    began, state = time.monotonic(), directory / STATE
    if Path(src).is_dir() and directory.exists() and directory.samefile(src):
        raise CheckpointError(f"{directory} is both the source and the target", hint="name another directory")
    journal = Journal(state)
    _refuse_other(directory, journal)
    with _explained(directory), locked(state, "quantize", CheckpointError), _cleared(journal):
        plan, finished = journal.read()
        pinned = revision if revision is not None or plan is None else plan.get("revision")
        source = open_source(src, directory, state, discard=discard, revision=pinned, pace=pace or Pace())
        run = _Run(source, directory, format)
        finished = run.begin(journal, plan, finished)
        made = run.pack(journal, finished)
        run.publish(finished)
    return Summary(
        source=source.title,
        revision=source.revision,
        directory=str(directory),
        format=format,
        files=len(finished),
        bytes=sum(each.nbytes for each in finished.values()),
        made_bytes=made,
        errors=loss.errors(each.losses for each in finished.values()),
        errors_from=loss.SAMPLED,
        seconds=round(time.monotonic() - began, 3),
    )


class _Run:
    def __init__(self, source: Source, directory: Path, format: Format) -> None:
        self.source, self.directory, self.format = source, directory, format
        self.state = directory / STATE
        self.config = ModelConfig.open(source.directory)
        if self.config.packed_format is not None:
            raise CheckpointError(
                f"{source.title} is packed in {self.config.packed_format} already",
                hint="quantize the checkpoint it was made of",
            )
        self.shards = layout.shards(self.config, format)
        self.specs = {spec.name: spec for spec in counts.tensors(self.config)}
        self.place = places(source, self.config)
        self.needs = {each.file: self._files_of(each) for each in self.shards}
        self.last_use = {file: each.file for each in self.shards for file in self.needs[each.file]}

    def _names(self, each: Shard) -> list[str]:
        return [found for name in each.sources() for found in (name, name + SCALE) if found in self.specs]

    def _files_of(self, each: Shard) -> list[str]:
        return sorted({self.place[name] for name in self._names(each)})

    # --- before -------------------------------------------------------------------------------------------------

    def begin(
        self, journal: Journal, plan: dict[str, Any] | None, finished: dict[str, Finished]
    ) -> dict[str, Finished]:
        """Check all that can be checked; the shards that an earlier run has finished."""
        own = {
            "source": self.source.title,
            "revision": self.source.revision,
            "format": self.format,
            "version": packed_quantization(self.format)["version"],
            "config": _digest(self.source.directory / "config.json"),
        }
        stamps = {name: [each.size, each.stamp] for name, each in self.source.shards.items()}
        if plan is None:
            self._check_source({})
            if all(self.source.here(file) for file in self.last_use):
                check(self.config, self.source.open(list(self.last_use)))
            self._check_disk({})
            journal.start(own | {"shards": stamps})
            return {}
        if wrong := [name for name, value in own.items() if plan.get(name) != value]:
            raise CheckpointError(
                f"{self.state} holds an unfinished model of another {wrong[0]} ({plan.get(wrong[0])}, "
                f"not {own[wrong[0]]})",
                hint=f"finish it with the command that began it, or delete {self.state}",
            )
        known = cast("dict[str, Any]", plan.get("shards") or {})
        if changed := [name for name, stamp in stamps.items() if known.get(name) != stamp]:
            raise CheckpointError(
                f"{changed[0]} of {self.source.title} has changed since the run that is to be continued",
                hint=f"delete {self.state} and begin anew",
            )
        kept = {name: each for name, each in finished.items() if self._is_whole(each)}
        for path in self.state.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink()  # half of it, from a run that was killed
        self._check_source(kept)
        self._check_disk(kept)
        return kept

    def _check_source(self, finished: Mapping[str, Finished]) -> None:
        needed = {file for each, files in self.needs.items() if each not in finished for file in files}
        if lost := sorted(needed - self.source.shards.keys()):
            raise CheckpointError(f"{self.source.title}: {lost[0]} is missing", hint="bring it back, or fetch it again")

    def _is_whole(self, each: Finished) -> bool:
        path = self._path(each.file)
        return path.is_file() and path.stat().st_size == each.nbytes

    def _path(self, file: str) -> Path:
        """Publishing may have been interrupted after this shard had moved."""
        return next((path for path in (self.state / file, self.directory / file) if path.is_file()), self.state / file)

    def _check_disk(self, finished: Mapping[str, Finished]) -> None:
        """Walk through the run: what it adds before what it gives back."""
        held = peak = 0
        fetched = {file for file in self.source.shards if self.source.here(file)}
        for each in self.shards:
            if each.file not in finished:
                specs = each.specs()
                missing = [file for file in self.needs[each.file] if file not in fetched]
                held += sum(self.source.shards[file].size for file in missing)
                held += sum(spec.nbytes for spec in specs) + HEADER_BYTES * len(specs)
                fetched.update(missing)
            peak = max(peak, held)
            if self.source.frees_disk:
                held -= sum(self.source.shards[file].size for file in self._used_up(each) if file in fetched)
        disk = os.statvfs(self.directory)
        free = disk.f_bavail * disk.f_frsize
        if peak > free:
            same_disk = self.source.directory.stat().st_dev == self.directory.stat().st_dev
            discard = "; --discard deletes the source as it goes" if same_disk and not self.source.frees_disk else ""
            raise CheckpointError(
                f"{self.directory} needs {size(peak)} more, and its disk has {size(free)} free",
                hint=f"choose a DIR on a larger disk, or a smaller --format{discard}",
            )

    def _used_up(self, each: Shard) -> list[str]:
        """Source shards that nothing needs once this one is finished."""
        return [file for file, last in self.last_use.items() if last == each.file]

    # --- the work -----------------------------------------------------------------------------------------------

    def pack(self, journal: Journal, finished: dict[str, Finished]) -> int:
        """Make what is missing, adding it to `finished`; the bytes that this run has made."""
        sizes = {each.file: sum(spec.nbytes for spec in each.specs()) for each in self.shards}
        total, made = sum(sizes.values()), 0
        for each in self.shards:
            if each.file not in finished:
                here = sum(sizes[file] for file in finished)
                finished[each.file] = self._pack(each, here, total)
                journal.add(finished[each.file])
                made += finished[each.file].nbytes
            if each is not self.shards[-1]:
                self._drop(each)
        return made

    def _pack(self, each: Shard, here: int, total: int) -> Finished:
        path = self.state / each.file
        checkpoint = self.source.open(self.needs[each.file])
        check_part([self.specs[name] for name in self._names(each)], checkpoint)
        moved = 0
        with Display("quantizing") as display:

            def tell(count: int) -> None:
                nonlocal moved
                moved += count
                display.update(here=here + moved, total=total, moved=moved)

            try:
                return shard.write(path, each, self.config, checkpoint, tell)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            finally:
                sync(self.state)

    def _drop(self, each: Shard) -> None:
        for file in self._used_up(each):
            self.source.drop(file)

    # --- the end ------------------------------------------------------------------------------------------------

    def publish(self, finished: Mapping[str, Finished]) -> None:
        """Everything to its place; config.json last, without which nothing here is a checkpoint."""
        weight_map = {spec.name: each.file for each in self.shards for spec in each.specs()}
        total = sum(each.tensor_bytes for each in finished.values())
        config: dict[str, Any] = json.loads((self.source.directory / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = packed_quantization(self.format)
        self._stage_json(INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        self._stage_json("config.json", config)
        small = self._copy_small()
        sums = {each.file: each.sha256 for each in finished.values()}
        sums |= {name: _digest(self.state / name) for name in (INDEX, *small, "config.json")}
        text = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
        (self.state / SUMS[0]).write_text(text, encoding="utf-8")
        for name in (*small, INDEX, SUMS[0], "config.json"):
            sync(self.state / name)
        for name in (INDEX, *finished, *small, SUMS[0], "config.json"):
            if (self.state / name).is_file():
                (self.state / name).replace(self.directory / name)
        sync(self.directory)
        self._drop(self.shards[-1])
        _remove(self.state)

    def _stage_json(self, name: str, content: object) -> None:
        (self.state / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _copy_small(self) -> list[str]:
        """Tokenizer, licence and the like, in the order of their names."""
        found: list[str] = []
        for path in sorted(self.source.directory.iterdir()):
            made_here = path.name in ("config.json", INDEX, *SUMS) or path.suffix in _WEIGHTS
            if not made_here and path.is_file() and path.name[0] != "." and path.stat().st_size <= SMALL:
                shutil.copyfile(path, self.state / path.name)
                found.append(path.name)
        return found


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")


def _refuse_other(directory: Path, journal: Journal) -> None:
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file", hint="name a directory")
    if directory.is_dir() and not journal.path.exists():
        names = sorted(path.name for path in directory.iterdir())
        if there := [name for name in names if name in ("config.json", INDEX) or name.endswith(".safetensors")]:
            raise CheckpointError(
                f"{directory} already holds a checkpoint ({there[0]})", hint="delete it, or name another directory"
            )
        if others := [name for name in names if name != STATE]:
            raise CheckpointError(
                f"{directory} holds other files ({others[0]})", hint="name a directory that is new or empty"
            )


@contextmanager
def _cleared(journal: Journal) -> Generator[None]:
    """A run that was refused before it began leaves nothing, not even the directory it would have filled."""
    try:
        yield
    finally:
        if not journal.path.exists():
            _remove(journal.path.parent)
            with suppress(OSError):  # somebody's files are in it
                journal.path.parent.parent.rmdir()


@contextmanager
def _explained(directory: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{directory}: the disk is full",
                hint="finished shards are kept: make room, then the same command goes on",
            ) from error
        raise CheckpointError(
            f"{error.filename or directory}: {error.strerror or error}", hint="finished shards are kept"
        ) from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _remove(state: Path) -> None:
    """The journal last: as long as it is there, the same command finishes what was begun."""
    journal = Journal(state).path
    for path in state.iterdir() if state.is_dir() else ():
        if path != journal:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    journal.unlink(missing_ok=True)
    with suppress(OSError):
        state.rmdir()


def line(result: Summary) -> str:
    """What a person reads at the end."""
    parts = [f"{result.directory}: {result.files} shards, {size(result.bytes)} in {result.format}"]
    if result.made_bytes:
        parts.append(f"{size(result.made_bytes)} made in {duration(result.seconds)}")
    errors = [f"  {name:16} {value:.2%}" for name, value in result.errors.items()]
    return "\n".join([", ".join(parts), f"relative error ({result.errors_from}):", *errors])
