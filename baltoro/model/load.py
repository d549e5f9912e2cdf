"""Checkpoint -> Transformer and back: the only place where the file's names and the modules' differ.

They differ in one thing: a file has `mlp.experts.7.gate_proj.weight`, the module stacks all experts of a
layer in `mlp.experts.gate_proj.weight`, (E, O, I).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from baltoro.config import ModelConfig, resolve
from baltoro.counts import is_quantized
from baltoro.errors import CheckpointError
from baltoro.kernels import formats
from baltoro.kernels.formats import Format, Packed
from baltoro.kernels.slab import ALIGNMENT, Slab, aligned
from baltoro.model.heads import Heads, PackedHeads
from baltoro.model.linear import Linear
from baltoro.model.moe import MoE, StackedLinear
from baltoro.model.streamed import StreamedExperts
from baltoro.model.transformer import Transformer
from baltoro.weights import fp8, pack
from baltoro.weights.checkpoint import SCALE, Checkpoint, check
from baltoro.weights.experts import ExpertStore
from baltoro.weights.layout import format_of, head_stacks
from baltoro.weights.save import write

STACKED = re.compile(r"(.*\.mlp\.experts)\.((?:gate|up|down)_proj\.weight)$")


def build(config: ModelConfig) -> Transformer:
    """The module tree without memory: on the meta device, in seconds for a trillion parameters."""
    with torch.device("meta"):
        return Transformer(config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How random parameters are drawn. The defaults suit large models; recipes/pretrain_nano.toml has a small one's."""

    embedding_std: float | None = None  # None: the config's initializer_range
    head_scale: float | None = None  # the head starts as this multiple of the embeddings; None: as the embeddings are


def initialise(config: ModelConfig, *, seed: int, start: Start | None = None) -> Transformer:
    """A model of `random_parameters`, for training."""
    model = build(config).to_empty(device="cpu")
    with torch.no_grad():
        for (_, parameter), (_, drawn) in zip(
            model.named_parameters(), random_parameters(config, seed=seed, start=start), strict=True
        ):
            parameter.copy_(drawn)
    return model


def random_parameters(config: ModelConfig, *, seed: int, start: Start | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, float32, one at a time in the model's order.

    Matrices are normal with variance 1 / inputs, those that write into the residual stream smaller by
    sqrt(2 layers); embedding and head as `start` says.
    """
    start = Start() if start is None else start
    generator = torch.Generator().manual_seed(seed)
    std = config.initializer_range if start.embedding_std is None else start.embedding_std
    embedding = torch.empty(0)
    for name, parameter in build(config).named_parameters():
        drawn = torch.empty(parameter.shape)
        if name.endswith("e_score_correction_bias"):
            drawn.zero_()
        elif parameter.dim() == 1:
            drawn.fill_(1.0)
        elif "lm_head" in name and start.head_scale is not None:
            drawn = start.head_scale * embedding
        elif "embed_tokens" in name or "lm_head" in name:
            drawn.normal_(0.0, std, generator=generator)
        else:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            depth = (2 * config.num_hidden_layers) ** -0.5 if into_residual else 1.0
            drawn.normal_(0.0, depth * parameter.shape[-1] ** -0.5, generator=generator)
        if "embed_tokens" in name and start.head_scale is not None:
            embedding = drawn
        yield name, drawn


def checkpoint_parameters(model: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of a checkpoint that is not packed, float32, one at a time in the model's order."""
    directory = resolve(model)
    config, checkpoint = ModelConfig.open(directory), Checkpoint.open(directory)
    check(config, checkpoint)
    for name, parameter in build(config).named_parameters():
        yield name, _gather(name, tuple(parameter.shape), checkpoint, torch.float32)


def load(
    model: str | Path, *, dtype: torch.dtype = torch.float32, format: Format | None = None,
    expert_memory: int | None = None,
) -> Transformer:  # fmt: skip
    """A directory or preset -> Transformer for inference, computing in `dtype`.

    format: projections and head are packed for the kernels, straight from the file's type; None: parameters in `dtype`.
    A packed checkpoint (`baltoro quantize`) has its format, and is only copied.
    expert_memory: bytes for routed experts of a packed checkpoint, which are read from it when they are wanted
    (Transformer.store); None: all are in memory.
    Beside the weights no more than one matrix is in memory, of the file either.
    Raises CheckpointError naming every missing, unexpected or misshapen tensor.
    """
    directory = resolve(model)
    config = ModelConfig.open(directory)
    checkpoint = Checkpoint.open(directory)
    check(config, checkpoint)
    format = format_to_load(config, format, directory)
    transformer = build(config)
    transformer.dtype = dtype
    if expert_memory is not None:
        stream(transformer, checkpoint, expert_memory)
    slab = Slab(packed_bytes(transformer, format)) if format else None
    for name in [name for name, _ in transformer.named_parameters()]:
        module = transformer.get_submodule(name.rpartition(".")[0])
        if format and slab and isinstance(module, Heads):
            module.pack(_pack_heads(name, module, checkpoint, format, slab))
        elif format and slab and isinstance(module, (Linear, StackedLinear)):
            module.pack(_pack(name, module, checkpoint, format_of(name, format), slab))
        else:
            kept = torch.float32 if name.endswith("e_score_correction_bias") else dtype
            if format and name.endswith(".mlp.gate.weight") and checkpoint.dtype(name) is torch.bfloat16:
                kept = torch.bfloat16  # half of what a step reads of it; its sums are float32 in any case
            tensor = _gather(name, tuple(transformer.get_parameter(name).shape), checkpoint, kept)
            module.register_parameter(name.rpartition(".")[2], nn.Parameter(tensor, requires_grad=False))
    return transformer.eval()


def stream(transformer: Transformer, checkpoint: Checkpoint, budget_bytes: int) -> None:
    """Routed experts stay on disk; a store keeps as many as the budget holds."""
    config = transformer.config
    if config.packed_format is None:
        raise CheckpointError(
            f"{checkpoint.directory} is not packed, and its experts cannot be read one by one",
            hint="`baltoro quantize SRC DIR --format int4` makes a directory from which they can",
        )
    transformer.store = ExpertStore(checkpoint, config, budget_bytes=budget_bytes)
    for layer, block in enumerate(transformer.model.layers):
        mixture = block.get_submodule("mlp")
        if isinstance(mixture, MoE):
            mixture.experts = cast("Any", StreamedExperts(config, layer, transformer.store))


def format_to_load(config: ModelConfig, asked: Format | None, directory: Path) -> Format | None:
    """What the matrices will be in. Packed ones stay as they are: another format would add its error to theirs."""
    if config.packed_format is None:
        return asked
    if asked not in (None, config.packed_format):
        raise CheckpointError(
            f"{directory} is packed in {config.packed_format}, not in {asked}",
            hint="leave --format out, or quantize the original checkpoint once more",
        )
    return cast("Format", config.packed_format)


def packed_bytes(transformer: Transformer, format: Format) -> int:
    """What all packed matrices need of a slab. Raises BaltoroError where `format` cannot hold one of them."""
    total = 0
    for name, module in cast("Iterable[tuple[str, nn.Module]]", transformer.named_modules()):
        if isinstance(module, Heads):
            shapes = head_shapes(module)
        elif isinstance(module, (Linear, StackedLinear)):
            shapes = [tuple(module.weight.shape)]
        else:
            continue
        for *experts, outputs, inputs in shapes:
            kept = formats.nbytes(format_of(f"{name}.weight", format), outputs, inputs)
            total += aligned(math.prod(experts) * kept) + 2 * ALIGNMENT
    return total


def head_shapes(heads: Heads) -> list[tuple[int, int, int]]:
    """Of the stacks of PackedHeads."""
    (N, V), C = heads.split, heads.weight.shape[1]
    return head_stacks(heads.weight.shape[0] // (N + V), N, V, C)


def _pack_heads(name: str, heads: Heads, checkpoint: Checkpoint, format: Format, slab: Slab) -> PackedHeads:
    stacks = [formats.empty(format, O, I, slab=slab, experts=H) for H, O, I in head_shapes(heads)]
    pack.fill_heads(stacks, name, checkpoint, heads.split)
    return PackedHeads(*stacks)


def _pack(name: str, module: Linear | StackedLinear, checkpoint: Checkpoint, format: Format, slab: Slab) -> Packed:
    """A matrix, or a layer's experts one by one, from the file straight into the slab."""
    *experts, outputs, inputs = module.weight.shape
    packed = formats.empty(format, outputs, inputs, slab=slab, experts=experts[0] if experts else None)
    if experts:
        pack.fill_stack(packed, _parts(name, tuple(module.weight.shape)), checkpoint)
    else:
        pack.fill(packed, name, checkpoint)
    return packed


def _gather(name: str, shape: tuple[int, ...], checkpoint: Checkpoint, dtype: torch.dtype) -> Tensor:
    """The file's tensor of this module parameter; a layer's experts are read one by one into their stack."""
    if not STACKED.match(name):
        tensor = checkpoint.read_weight(name, dtype)
        pack.release(name, checkpoint)
        return tensor
    stack = torch.empty(shape, dtype=dtype)
    for place, part in zip(stack, _parts(name, shape), strict=True):
        place.copy_(checkpoint.read_weight(part, dtype))
        pack.release(part, checkpoint)
    return stack


def _parts(name: str, shape: tuple[int, ...]) -> list[str]:
    """The file's names of a module's parameter: one, or those of all experts."""
    stacked = STACKED.match(name)
    return [f"{stacked[1]}.{expert}.{stacked[2]}" for expert in range(shape[0])] if stacked else [name]


def file_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint of the model holds: see `stored`."""
    assert not any(getattr(module, "packed", None) for module in model.modules()), "packed for inference"
    yield from stored(model.named_parameters(), model.config)


def stored(parameters: Iterable[tuple[str, Tensor]], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters under the checkpoint's names and in its types, experts apart.

    With config.weight_block_size the matrices are quantized to block-fp8 as they pass, each followed by its scales.
    """
    for name, parameter in parameters:
        tensor, stacked = parameter.detach(), STACKED.match(name)
        if stacked is None:
            yield from _as_stored(name, tensor, config)
        else:
            for expert, weight in enumerate(tensor):
                yield from _as_stored(f"{stacked[1]}.{expert}.{stacked[2]}", weight, config)


def _as_stored(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    if name.endswith("e_score_correction_bias"):
        yield name, tensor.float()
    elif config.weight_block_size and is_quantized(name):
        quantized, scale_inv = fp8.quantize(tensor)
        yield name, quantized
        yield name + SCALE, scale_inv
    else:
        yield name, tensor.bfloat16()


def save(model: Transformer, directory: str | Path) -> None:
    """Write a checkpoint directory that transformers and `load` read: bf16, or block-fp8 if the config says so."""
    write(directory, file_tensors(model), model.config.to_dict())
