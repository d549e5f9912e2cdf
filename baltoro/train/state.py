"""All that must be saved to continue a run bit for bit, and where it lies.

    out/state/       progress.json, and of every process its share of
                     parameters-00000-of-00002.safetensors  momentum-...  adamw-...
    out/state-7/     what `state` was before step 7 failed: a value that is not finite, see guards.py
    out/log.jsonl    one line a step; lines after the resumed step are dropped on resume

A tensor is cut along dimension 0; the file's metadata say where each piece begins in the whole. So any number of
processes, in any layout, finds what it needs by name (several machines need a directory that all of them see).
No random state is kept: what a step sees is a function of the seed and the step (data.py).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from baltoro.errors import RecipeError
from baltoro.model.transformer import Transformer
from baltoro.train.layout import Layout, cut, is_expert, local
from baltoro.train.muonclip import MuonClip, Piece
from baltoro.train.pieces import FIRSTS, Pieces
from baltoro.weights.durable import sync

KINDS = ("parameters", "momentum", "adamw")  # a file each


@dataclass(slots=True)
class Progress:
    """Where a run is. Steps are counted from 0 and name the next one to take."""

    step: int = 0  # over the whole run
    updates: int = 0  # of the parameters, when it was saved; reinforcement learning makes several a step
    phase: int = 0
    phase_step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # spent training, evaluation and saving left out
    recent: list[float] = field(default_factory=list[float])  # what the phase's gate looks at, see loop.Gate


@dataclass(slots=True)
class TrainState:
    model: Transformer
    optimizer: MuonClip
    progress: Progress

    @property
    def layout(self) -> Layout:
        return self.optimizer.layout

    def save(self, out: Path, *, keep: Path | None = None) -> None:
        """Replaces the saved state only when the new one is whole, on disk, and fit to go on from.

        All processes call it together. keep: where the state before this one goes instead of being deleted.
        """
        staging, final, old = out / ".state-unfinished", out / "state", out / ".state-old"
        world, progress = self.layout.world, self.progress
        progress.updates = self.optimizer.updates
        if broken := world.first(self._not_finite()):
            raise RecipeError(
                f"{broken} is not finite any more at step {progress.step}",
                hint=f"lower the learning rate; running again goes on from the last state in {out}",
            )
        if world.leads:
            shutil.rmtree(staging, ignore_errors=True)
        problem = self._together(lambda: staging.mkdir(parents=True) if world.leads else None)
        problem = problem or self._together(lambda: self._write(staging))
        if problem:
            if world.leads:
                shutil.rmtree(staging, ignore_errors=True)
            raise RecipeError(
                f"{out}: the state of step {progress.step} cannot be saved: {problem}",
                hint="what was saved before is untouched; make room, and running again goes on from there",
            )
        if world.leads:
            if final.exists():  # otherwise an earlier call was killed between its renames, and `old` is all there is
                shutil.rmtree(old, ignore_errors=True)
                final.replace(old)
            staging.replace(final)
            if keep is not None and old.exists() and not keep.exists():
                old.replace(keep)
            shutil.rmtree(old, ignore_errors=True)
            sync(out)
        world.wait()

    def resume(self, out: Path) -> bool:
        """Continue from `out` if a run was saved there, by as many processes as ever."""
        saved = out / "state"
        if not saved.exists() and (out / ".state-old").exists():  # killed between the two renames of `save`
            saved = out / ".state-old"
        if not saved.exists():
            return False
        try:
            self.progress = Progress(**json.loads((saved / "progress.json").read_text(encoding="utf-8")))
            files = {kind: Pieces(saved, kind) for kind in KINDS}
            names: dict[str, set[str]] = defaultdict(set)
            for kind, piece, length in self._wanted():
                key = _key(piece)
                names[kind].add(key)
                files[kind].read(key, piece.tensor, piece.first, length)
            for kind in KINDS:
                if more := sorted(files[kind].names - names[kind]):
                    raise ValueError(f"{kind} has {more[0]}, which this recipe does not train so")
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise RecipeError(
                f"{saved} cannot be resumed: {error}",
                hint="[model] or adamw_matrices changed, or files are missing; delete it to restart",
            ) from error
        self.optimizer.taken(self.progress.updates)
        return True

    def _wanted(self) -> Iterator[tuple[str, Piece, int]]:
        """(file, piece to fill, length of the whole): of parameters what is held here, of the rest what is owned."""
        lengths: dict[str, int] = {}
        for name, parameter in self.model.named_parameters():
            place = self.layout.place(name, parameter)
            lengths[name] = place.length * (self.layout.expert.size if is_expert(name) else 1)
            first = place.first + place.held(place.group.rank).start
            yield "parameters", Piece("parameters", name, local(parameter), first), lengths[name]
        for piece in self.optimizer.pieces():
            yield _file(piece), piece, lengths[piece.name]

    def _write(self, staging: Path) -> None:
        """This process's share of everything, and what the leading one alone writes."""
        world = self.layout.world
        pieces: dict[str, list[Piece]] = {kind: [] for kind in KINDS}
        for name, parameter in self.model.named_parameters():
            place = self.layout.place(name, parameter)
            rank = place.group.rank
            share = cut(local(parameter), place.held(rank), place.share(rank))
            pieces["parameters"].append(Piece("parameters", name, share, place.first + place.share(rank).start))
        for piece in self.optimizer.pieces():
            pieces[_file(piece)].append(piece)
        for kind, found in pieces.items():
            here = [piece for piece in found if len(piece.tensor)]
            path = staging / f"{kind}-{world.rank:05d}-of-{world.size:05d}.safetensors"
            tensors: dict[str, Tensor] = {_key(piece): piece.tensor for piece in here}
            firsts = {_key(piece): piece.first for piece in here}
            safetensors_torch.save_file(tensors, path, metadata={FIRSTS: json.dumps(firsts)})
            sync(path)
        if world.leads:
            path = staging / "progress.json"
            path.write_text(json.dumps(dataclasses.asdict(self.progress)), encoding="utf-8")
            sync(path)
            sync(staging)

    def _together(self, write: Callable[[], None]) -> str | None:
        """What went wrong on one process, on all of them; only then is anybody sure that all is written."""
        problem: str | None = None
        try:
            write()
        except (OSError, SafetensorError) as error:
            problem = str(error) or type(error).__name__
        return self.layout.world.first(problem)

    def _not_finite(self) -> str | None:
        names = (name for name, p in self.model.named_parameters() if not local(p).isfinite().all())
        return next(names, None)


def _file(piece: Piece) -> str:
    return "adamw" if piece.kind.startswith("exp_avg") else piece.kind


def _key(piece: Piece) -> str:
    return f"{piece.kind}.{piece.name}" if _file(piece) == "adamw" else piece.name
