"""All that must be saved to continue a run bit for bit, and where it lies.

    out/state/       progress.json  parameters.safetensors  momentum.safetensors  adamw.safetensors
    out/log.jsonl    one line a step; lines after the resumed step are dropped on resume

No random state is kept: what a step sees is a function of the seed and the step (data.py).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from baltoro.errors import RecipeError
from baltoro.model.transformer import Transformer
from baltoro.train.muonclip import MuonClip


@dataclass(slots=True)
class Progress:
    """Where a run is. Steps are counted from 0 and name the next one to take."""

    step: int = 0  # over the whole run
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

    def save(self, out: Path) -> None:
        """Replaces the saved state only when the new one is whole, and fit to go on from."""
        staging, final, old = out / ".state-unfinished", out / "state", out / ".state-old"
        parameters = dict(self.model.state_dict())
        if broken := [name for name, value in parameters.items() if not value.isfinite().all()]:
            raise RecipeError(
                f"{broken[0]} is not finite any more at step {self.progress.step}",
                hint=f"lower the learning rate; running again goes on from the last state in {out}",
            )
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        optimizer = self.optimizer.state_dict()
        safetensors_torch.save_file(parameters, staging / "parameters.safetensors")
        safetensors_torch.save_file(optimizer["momentum"], staging / "momentum.safetensors")
        adamw: dict[int, dict[str, Tensor]] = optimizer["adamw"]["state"]
        safetensors_torch.save_file(
            {f"{index}.{key}": value for index, values in adamw.items() for key, value in values.items()},
            staging / "adamw.safetensors",
        )
        (staging / "progress.json").write_text(json.dumps(dataclasses.asdict(self.progress)), encoding="utf-8")
        if final.exists():  # otherwise an earlier call was killed between its renames, and `old` is all there is
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
        staging.replace(final)
        shutil.rmtree(old, ignore_errors=True)

    def resume(self, out: Path) -> bool:
        """Continue from `out` if a run was saved there."""
        saved = out / "state"
        if not saved.exists() and (out / ".state-old").exists():  # killed between the two renames of `save`
            saved = out / ".state-old"
        if not saved.exists():
            return False
        try:
            parameters = safetensors_torch.load_file(saved / "parameters.safetensors")
            momentum = safetensors_torch.load_file(saved / "momentum.safetensors")
            flat = safetensors_torch.load_file(saved / "adamw.safetensors")
            self.progress = Progress(**json.loads((saved / "progress.json").read_text(encoding="utf-8")))
            self.model.load_state_dict(parameters)
            if momentum.keys() != {matrix.name for matrix in self.optimizer.matrices}:
                raise ValueError("Muon trained other matrices when it was saved")
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise RecipeError(
                f"{saved} cannot be resumed: {error}",
                hint="[model] or adamw_matrices changed, or files are missing; delete it to restart",
            ) from error
        adamw: dict[str, Any] = self.optimizer.adamw.state_dict()
        adamw["state"] = {}
        for name, value in flat.items():
            index, key = name.split(".")
            adamw["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"momentum": momentum, "adamw": adamw})
        return True
