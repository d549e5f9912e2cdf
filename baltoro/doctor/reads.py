"""How many bytes of weights one decoded token is multiplied with, in this format and in smaller ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, cast

from torch import nn

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError
from baltoro.kernels.formats import FORMATS, Format
from baltoro.model import slices
from baltoro.model.linear import Linear
from baltoro.model.moe import StackedLinear
from baltoro.model.transformer import Transformer
from baltoro.weights.fit import Need

SMALLER = 0.9  # of the bytes: what is hardly smaller is no advice


class Reads(NamedTuple):
    resident: int  # bytes that every token reads
    experts: int  # of the routed ones that it chooses


def of(model: Transformer) -> Reads:
    """Of a loaded model. One row of the embedding is nothing beside the rest."""
    config = model.config
    resident = sum(packed.nbytes for packed in slices.packed_of(model))
    experts = 0
    for name, module in named(model):
        if isinstance(module, StackedLinear):
            whole = module.weight.nbytes if module.packed is None else module.packed.nbytes
            experts += whole * config.num_experts_per_tok // config.n_routed_experts
        elif name != "model.embed_tokens":
            resident += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    if model.store is not None:
        experts = mixtures(config) * config.num_experts_per_tok * model.store.shape.nbytes
    return Reads(resident, experts)


def slab_bytes(model: Transformer) -> int:
    """Packed matrices, routed experts or their slots among them: what was cut from huge pages."""
    stacks = [each.packed.nbytes for _, each in named(model) if isinstance(each, StackedLinear) and each.packed]
    slots = model.store.blocks.nbytes if model.store else 0
    return sum(packed.nbytes for packed in slices.packed_of(model)) + sum(stacks) + slots


def format_of(model: Transformer) -> str:
    """What its projections are kept in: a format of the kernels, or a type of torch."""
    projection = next(each for name, each in named(model) if name.endswith("o_proj") and isinstance(each, Linear))
    return (
        str(projection.weight.dtype).removeprefix("torch.") if projection.packed is None else projection.packed.format
    )


def smaller_formats(config: ModelConfig, format: str, reads: Reads) -> tuple[tuple[str, float], ...]:
    """Packed formats in which a token reads less, each with its share of what it reads now, the smallest first."""
    packed = {name: found for name in FORMATS if (found := _packed_reads(config, name)) is not None}
    now = sum(packed.get(format, reads))
    shares = [(name, sum(found) / now) for name, found in packed.items()]
    return tuple(sorted(((name, share) for name, share in shares if share < SMALLER), key=lambda each: each[1]))


def block_bytes(config: ModelConfig, format: Format) -> int:
    """Of one routed expert, packed."""
    return Need.of(_packed(config, format)).experts // (mixtures(config) * config.n_routed_experts)


def mixtures(config: ModelConfig) -> int:
    """Layers with experts."""
    return sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))


def named(model: Transformer) -> Iterable[tuple[str, nn.Module]]:
    return cast("Iterable[tuple[str, nn.Module]]", model.named_modules())


def _packed_reads(config: ModelConfig, format: Format) -> Reads | None:
    """None: this format cannot hold the model's matrices."""
    try:
        need = Need.of(_packed(config, format))
    except BaltoroError:
        return None
    chosen = need.experts * config.num_experts_per_tok // config.n_routed_experts if config.n_routed_experts else 0
    return Reads(need.resident, chosen)


def _packed(config: ModelConfig, format: Format) -> ModelConfig:
    return replace(config, packed_format=format, weight_block_size=None)
