"""Tensors that several processes wrote piece by piece, read in any other cut: `KIND-00001-of-00004.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

FIRSTS = "firsts"  # of a file's metadata: JSON, each name in it -> where its piece begins in the whole


class Pieces:
    """All files of one kind in a directory."""

    def __init__(self, directory: Path, kind: str) -> None:
        """Raises ValueError where a file is missing; OSError and SafetensorError come as they are."""
        paths = sorted(directory.glob(f"{kind}-*-of-*.safetensors"))
        if not paths:
            raise ValueError(f"there are no {kind}-*-of-*.safetensors")
        processes = int(paths[0].stem.rpartition("-")[2])
        self._where: dict[str, list[tuple[int, Any]]] = {}  # name -> (first, open file)
        for rank in range(processes):
            path = directory / f"{kind}-{rank:05d}-of-{processes:05d}.safetensors"
            if not path.exists():
                raise ValueError(f"{path.name} is missing")
            file: Any = safe_open(path, framework="pt")
            firsts: dict[str, int] = json.loads(file.metadata()[FIRSTS])
            for name, first in firsts.items():
                self._where.setdefault(name, []).append((first, file))

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def read(self, name: str, tensor: Tensor, first: int, length: int) -> None:
        """Fill `tensor`, which begins at `first` of the whole, whose dimension 0 is `length` long.

        Raises ValueError where the pieces are not the whole, or of another shape.
        """
        found = sorted(self._where.get(name, []), key=lambda piece: piece[0])
        reached = 0
        for begin, file in found:
            piece = file.get_slice(name)
            shape = piece.get_shape()
            if begin != reached or tuple(shape[1:]) != tuple(tensor.shape[1:]):
                break
            reached += shape[0]
            start, stop = max(begin, first), min(reached, first + len(tensor))
            if start < stop:
                tensor[start - first : stop - first] = piece[start - begin : stop - begin]
        if reached != length:
            whole = (length, *tensor.shape[1:])
            raise ValueError(
                f"{name} of shape {whole} is not there" if not found else f"{name} is not of shape {whole}"
            )
