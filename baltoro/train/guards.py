"""A step whose loss or gradients are not finite: found before it changes anything, and traced to where it began.

The step's forward is run once more, since it has changed nothing: each module's output is looked at as it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from baltoro.errors import RecipeError
from baltoro.model.transformer import Transformer
from baltoro.train.data import Microbatch
from baltoro.train.distributed import World
from baltoro.train.layout import local


class NotFiniteError(RecipeError):
    """A step that was not taken."""


def check(
    model: Transformer, world: World, sums: Tensor, gradients: Sequence[tuple[str, Tensor]],
    microbatches: Sequence[Microbatch], kinds: Sequence[str],
) -> None:  # fmt: skip
    """sums: nats by kind; gradients: by name, what is here of them. All processes call it together.

    Raises NotFiniteError with the first tensor, in the order of the forward pass, that is not finite.
    """
    largest = torch.stack(torch._foreach_norm([g for _, g in gradients if g.numel()], torch.inf))  # pyright: ignore
    if not world.any(not (sums.isfinite().all() and largest.isfinite().all())):
        return
    found = (
        world.first(_parameter(model)) or world.first(_activation(model, microbatches, kinds))
        or world.first(_gradient(gradients)) or "the loss"
    )  # fmt: skip
    present = sorted({kinds[index] for microbatch in microbatches for index in _kinds(microbatch)})
    raise NotFiniteError(
        f"{found} is not finite; the step is not taken; it learns from documents of {', '.join(present) or 'no kind'}",
        hint="lower the learning rate, or go on from an older state; the same step will fail again",
    )


def _kinds(microbatch: Microbatch) -> list[int]:
    return cast("list[int]", microbatch.kinds.unique().tolist())


def _parameter(model: Transformer) -> str | None:
    broken = (name for name, p in model.named_parameters() if not local(p).isfinite().all())
    return next((f"parameter {name}" for name in broken), None)


def _activation(model: Transformer, microbatches: Sequence[Microbatch], kinds: Sequence[str]) -> str | None:
    """Every process runs all of its microbatches, whatever it finds: others may wait for its experts."""
    found: list[str] = []
    for microbatch in microbatches:
        seen: list[str] = []
        handles = [
            module.register_forward_hook(_watch(name or "logits", seen))
            for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
            if not isinstance(module, nn.ModuleList)
        ]
        try:
            with torch.no_grad():
                losses = functional.cross_entropy(model(microbatch.batch), microbatch.targets, reduction="none")
        finally:
            for handle in handles:
                handle.remove()
        if not losses.isfinite().all():
            seen.append("the loss")
        if seen:
            found.append(f"{seen[0]} (of {', '.join(kinds[index] for index in _kinds(microbatch))})")
    return found[0] if found else None


def _watch(name: str, seen: list[str]) -> Any:
    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not all(tensor.isfinite().all() for tensor in _tensors(output)):
            seen.append(f"the output of {name}" if name != "logits" else "the logits")

    return look


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple):
        for part in cast("tuple[Any, ...]", output):
            yield from _tensors(part)


def _gradient(gradients: Sequence[tuple[str, Tensor]]) -> str | None:
    """Backward runs from the end, so the last one of several is nearest to the cause."""
    broken = [name for name, gradient in gradients if not gradient.isfinite().all()]
    if not broken:
        return None
    last = f" (as are {len(broken)} of {len(gradients)} up to that of {broken[-1]})" if len(broken) > 1 else ""
    return f"the gradient of {broken[0]}{last}"
