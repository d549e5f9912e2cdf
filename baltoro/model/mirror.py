"""A packed copy of a model that is being trained: rollouts run it, and every update is packed into the same memory.

The fast path reads packed weights by their addresses (kernels/forward.py), so that a refreshed copy needs nothing to
be described again. Nothing passes through a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from baltoro.kernels import formats
from baltoro.kernels.formats import Format, Packed
from baltoro.kernels.packing import pack_into
from baltoro.kernels.slab import Slab
from baltoro.model.heads import Heads, PackedHeads
from baltoro.model.linear import Linear
from baltoro.model.load import build, head_shapes, packed_bytes
from baltoro.model.moe import StackedLinear
from baltoro.model.transformer import Transformer
from baltoro.weights.layout import format_of


def mirror(model: Transformer, format: Format) -> Transformer:
    """A Transformer for inference with the parameters of `model`, its matrices packed in `format`.

    Raises BaltoroError where the format cannot hold one of them. What is not packed (norms, embeddings, routers) is
    float32, as it is in the model.
    """
    twin = build(model.config)
    twin.dtype = torch.float32
    slab = Slab(packed_bytes(twin, format))
    for name in [name for name, _ in twin.named_parameters()]:
        module = twin.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Heads):
            module.pack(
                PackedHeads(*(formats.empty(format, O, I, slab=slab, experts=H) for H, O, I in head_shapes(module)))
            )
        elif isinstance(module, (Linear, StackedLinear)):
            *experts, outputs, inputs = module.weight.shape
            height = experts[0] if experts else None
            module.pack(formats.empty(format_of(name, format), outputs, inputs, slab=slab, experts=height))
        else:
            kept = torch.empty_like(model.get_parameter(name))
            module.register_parameter(name.rpartition(".")[2], nn.Parameter(kept, requires_grad=False))
    refresh(twin, model)
    return twin.eval()


@torch.no_grad()
def refresh(twin: Transformer, model: Transformer) -> None:
    """Let `twin`, which `mirror` has made of this model, have the parameters that the model has now.

    Nothing may run `twin` meanwhile. Raises BaltoroError where a parameter is not finite any more.
    """
    for name, module in cast("Iterable[tuple[str, nn.Module]]", twin.named_modules()):
        if isinstance(module, Heads):
            assert module.packed is not None  # `mirror` has packed all of them
            _refresh_heads(module.packed, module.split, model.get_parameter(f"{name}.weight"))
        elif isinstance(module, (Linear, StackedLinear)):
            assert module.packed is not None
            weight = model.get_parameter(f"{name}.weight")
            if module.packed.experts is None:
                pack_into(module.packed, weight)
            else:
                _fill(module.packed, weight)
    for name, parameter in twin.named_parameters():
        parameter.copy_(model.get_parameter(name))


def _refresh_heads(packed: PackedHeads, split: Sequence[int], weight: Tensor) -> None:
    """weight: (H (N + V), C), as the checkpoint has it."""
    keys, values = torch.split(weight.view(-1, sum(split), weight.shape[1]), list(split), dim=1)
    for stack, part in ((packed.keys, keys), (packed.values, values), (packed.absorbed_keys, keys.mT)):
        _fill(stack, part)


def _fill(stack: Packed, matrices: Tensor) -> None:
    for index, matrix in enumerate(matrices):
        pack_into(stack, matrix, expert=index)
