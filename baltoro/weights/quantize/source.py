"""Where the shards to be packed come from: a directory, or a place from which each is fetched when its turn comes."""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from baltoro import counts
from baltoro.config import PRESETS, ModelConfig, resolve
from baltoro.errors import CheckpointError
from baltoro.weights.checkpoint import Checkpoint, find_shards
from baltoro.weights.fetch.run import Pace, fetch
from baltoro.weights.fetch.sources import SMALL, source_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    size: int  # bytes
    stamp: str  # digest or date: tells a changed file


class Source(Protocol):
    @property
    def title(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def directory(self) -> Path: ...  # that holds config.json, the index and the small files
    @property
    def frees_disk(self) -> bool: ...  # `drop` makes room where the packed model goes
    @property
    def shards(self) -> Mapping[str, ShardFile]: ...  # by name; of a directory those that are still there

    def here(self, file: str) -> bool: ...
    def open(self, files: Collection[str]) -> Checkpoint: ...
    def drop(self, file: str) -> None: ...


class Directory:
    """Shards that lie on a disk already."""

    def __init__(self, directory: Path, target: Path, *, discard: bool) -> None:
        self.title, self.revision, self.directory = str(directory.resolve()), None, directory
        found = {path: path.stat() for path in directory.glob("*.safetensors") if path.is_file()}
        self.shards = {
            path.name: ShardFile(size=stat.st_size, stamp=str(stat.st_mtime_ns)) for path, stat in found.items()
        }
        nearest = next(path for path in (target, *target.absolute().parents) if path.exists())
        self.frees_disk = discard and directory.stat().st_dev == nearest.stat().st_dev
        self._discard = discard
        if discard and (links := [path.name for path in found if path.is_symlink()]):
            raise CheckpointError(
                f"{directory}: {links[0]} is a link, discarding it would free nothing",
                hint="name the directory that holds the files themselves, or leave --discard out",
            )

    def here(self, file: str) -> bool:
        return file in self.shards

    def open(self, files: Collection[str]) -> Checkpoint:
        return Checkpoint.open(self.directory, only=files)

    def drop(self, file: str) -> None:
        if self._discard:
            (self.directory / file).unlink(missing_ok=True)


class Remote:
    """A repository of the hub, or a folder of a web server: never more of it here than one packed shard needs."""

    frees_disk = True

    def __init__(self, repo: str, state: Path, *, revision: str | None, pace: Pace) -> None:
        self._repo, self._pace, self.directory = repo, pace, state / "source"
        listing = source_of(repo, revision=revision, connections=pace.jobs, patience=pace.patience).list()
        self.title, self.revision = listing.source, listing.revision
        self.shards = {
            file.name: ShardFile(size=file.size, stamp=str(file.digest or file.version))
            for file in listing.files
            if file.name.endswith(".safetensors")
        }
        beside = [file for file in listing.files if file.name not in self.shards and "/" not in file.name]
        self._fetch([file.name for file in beside if file.size <= SMALL])
        if len(self.shards) == 1:
            self._fetch(self.shards)  # no index says what is in it

    def here(self, file: str) -> bool:
        return (self.directory / file).is_file()

    def open(self, files: Collection[str]) -> Checkpoint:
        self._fetch([file for file in files if not self.here(file)])
        return Checkpoint.open(self.directory, only=files)

    def drop(self, file: str) -> None:
        (self.directory / file).unlink(missing_ok=True)

    def _fetch(self, files: Collection[str]) -> None:
        if files:
            patterns = [glob.escape(file) for file in files]
            fetch(self._repo, self.directory, revision=self.revision, include=patterns, pace=self._pace)


def open_source(src: str, target: Path, state: Path, *, discard: bool, revision: str | None, pace: Pace) -> Source:
    """A directory or the embedded model as it lies; everything else is fetched."""
    embedded = src in PRESETS and resolve(src).is_dir() and not Path(src).exists()
    directory = resolve(src) if embedded else Path(src)
    if not directory.is_dir():
        return Remote(src, state, revision=revision, pace=pace)
    if embedded and discard:
        raise CheckpointError(f"{src} is a part of Baltoro and is not discarded", hint="leave --discard out")
    if revision is not None:
        raise CheckpointError(f"{src} is a directory and has no revisions", hint="leave --revision out")
    return Directory(directory, target, discard=discard)


def places(source: Source, config: ModelConfig) -> dict[str, str]:
    """Which shard holds each tensor; every name that `config` implies is there. Raises CheckpointError."""
    problems: list[str] = []
    _, index = find_shards(source.directory, problems)
    if index:
        found = {name: file.name for name, file in index.items()}
    else:
        entries = Checkpoint.open(source.directory).entries
        found = {name: entry.shard.name for name, entry in entries.items()}
    problems += [f"{spec.name} is in no shard" for spec in counts.tensors(config) if spec.name not in found]
    if problems:
        raise CheckpointError(
            f"{source.title}: {'; '.join(problems[:3])}" + (f" and {len(problems) - 3:,} more" * (len(problems) > 3)),
            hint="config and index come from different models, or a download is incomplete",
        )
    return found
