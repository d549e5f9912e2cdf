"""Layers of a large model at their real size, without its checkpoint: random weights, made in packed form.

A slice is a Transformer like any other, with the first layers only, some of each layer's experts and some rows of
the vocabulary. Its routers are whole: their bias keeps the experts that are not here from being chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from baltoro.config import ModelConfig
from baltoro.kernels import formats, noise
from baltoro.kernels.formats import Format, Packed
from baltoro.kernels.slab import Slab
from baltoro.model.heads import Heads, PackedHeads
from baltoro.model.linear import Linear
from baltoro.model.load import build, head_shapes, packed_bytes
from baltoro.model.moe import MoE, StackedLinear
from baltoro.model.transformer import Transformer
from baltoro.weights.layout import format_of

ABSENT = -2.0  # a router's scores lie between 0 and 1: this bias is below every choice
TILE = 2**22  # random numbers, repeated in the embedding


def shorten(config: ModelConfig, *, dense: int, mixtures: int, vocabulary: int) -> ModelConfig:
    """The same layers, but fewer of them, and fewer rows of embedding and head."""
    return replace(
        config,
        num_hidden_layers=dense + mixtures,
        first_k_dense_replace=dense,
        moe_layer_freq=1,
        vocab_size=min(vocabulary, config.vocab_size),
        bos_token_id=None,
        eos_token_id=None,
    )


def make(
    config: ModelConfig, format: Format, *, experts: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Transformer:
    """A model of random weights in huge pages, with the first `experts` experts of each layer, computing in `dtype`."""
    model = _outline(config, experts)
    model.dtype = dtype
    slab = Slab(packed_bytes(model, format))
    generator = torch.Generator().manual_seed(seed)
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    for index, (name, module) in enumerate(modules):
        if isinstance(module, Heads):
            module.pack(_heads(module, format, slab, seed + index))
        elif isinstance(module, (Linear, StackedLinear)):
            *stack, outputs, inputs = module.weight.shape
            packed = formats.empty(
                format_of(f"{name}.weight", format), outputs, inputs, slab=slab, experts=stack[0] if stack else None
            )
            module.pack(noise.fill(packed, seed=seed + index))
    for name, parameter in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        tensor = torch.empty(parameter.shape, dtype=dtype)
        if name.endswith("e_score_correction_bias"):
            tensor = torch.full(parameter.shape, ABSENT)
            tensor[:experts] = 0.0
        elif tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            numbers = torch.randn(min(tensor.numel(), TILE), generator=generator)
            if "embed_tokens" not in name:
                numbers *= tensor.shape[1] ** -0.5
            for piece in torch.split(tensor.view(-1), TILE):
                piece.copy_(numbers[: len(piece)])
        owner.register_parameter(name.rpartition(".")[2], nn.Parameter(tensor, requires_grad=False))
    return model.eval()


def _heads(heads: Heads, format: Format, slab: Slab, seed: int) -> PackedHeads:
    stacks = [formats.empty(format, O, I, slab=slab, experts=H) for H, O, I in head_shapes(heads)]
    noise.fill_heads(stacks, seed=seed)
    return PackedHeads(*stacks)


def _outline(config: ModelConfig, experts: int) -> Transformer:
    """The module tree without memory, its stacks as high as `experts`."""
    model = build(config)
    for module in model.modules():
        if isinstance(module, StackedLinear):
            module.weight = nn.Parameter(torch.empty(experts, *module.weight.shape[1:], device="meta"))
    return model


def nbytes(config: ModelConfig, format: Format, *, experts: int, dtype: torch.dtype = torch.float32) -> int:
    """What such a model takes: packed matrices, and embedding, norms and routers in `dtype`.

    With all experts this is what model/load.py takes for a checkpoint. Raises BaltoroError where `format` cannot hold
    one of the matrices.
    """
    model = _outline(config, experts)
    packed = packed_bytes(model, format)
    for module in list(model.modules()):
        if isinstance(module, (Heads, Linear, StackedLinear)):
            del module.weight
    return packed + dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())


def packed_of(module: nn.Module) -> list[Packed]:
    """The matrices that one token is multiplied with in `module`, absorbed attention taken, routed experts left out."""
    found: list[Packed] = []
    for each in module.modules():
        if isinstance(each, Heads) and each.packed is not None:
            found += [each.packed.absorbed_keys, each.packed.values]
        elif isinstance(each, Linear) and each.packed is not None:
            found.append(each.packed)
    return found


def expert_bytes(mixture: MoE) -> int:
    """Of one routed expert."""
    stacks = (mixture.experts.gate_proj.packed, mixture.experts.up_proj.packed, mixture.experts.down_proj.packed)
    return sum(packed.nbytes // (packed.experts or 1) for packed in stacks if packed is not None)
