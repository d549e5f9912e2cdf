"""Which matrix is packed in which format, and how packed matrices lie in files.

A packed checkpoint (`baltoro quantize`) is safetensors shards like any other, but its matrices have the bytes that the
kernels read, so that loading is reading. `X.weight` keeps its name and holds the panels; its scales are
`X.weight_scale`, as every other format of weights with scales calls them, not `_scale_inv`: no value of another
meaning under a known name. kv_b_proj is three stacks, as model/heads.py multiplies with them: `kv_b_proj.keys.weight`,
`kv_b_proj.values.weight`, `kv_b_proj.absorbed_keys.weight`. Embedding, norms and routers are as in the source.

A shard has one layer: first its routed experts, each a block of its own,

    gate weight, gate scales, up weight, up scales, down weight, down scales, padding

which begins at a multiple of 4096 bytes in the file and is as long: one direct read brings one expert. The padding is a
tensor (`mlp.experts.7.padding`), for safetensors allows no holes. Behind them the other matrices, then what is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.counts import TensorSpec
from baltoro.errors import BaltoroError
from baltoro.kernels import formats
from baltoro.kernels.formats import Format

PACKED_SCALE = "_scale"
PAGE = 4096  # what direct reads are aligned to
HEADS = ("keys", "values", "absorbed_keys")
# The head chooses the token: it keeps more bits than the projections, yet is read as fast as they are
HEAD_FORMATS: dict[Format, Format] = {"bf16": "bf16", "fp8": "bf16", "int8": "int8", "int4": "int8"}
_SPELLED = {"fp8": "F32", "int8": "BF16", "int4": "BF16"}  # of scales
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"(.*\.mlp\.experts\.\d+\.)(?:gate|up|down)_proj\.weight")


class Stored(NamedTuple):
    """A packed matrix, or a stack of them, in a file."""

    name: str  # of its weight
    format: Format
    outputs: int
    inputs: int
    experts: int | None = None  # or heads: the height of the stack

    def specs(self) -> list[TensorSpec]:
        lead = () if self.experts is None else (self.experts,)
        data, scales = formats.shapes(self.format, self.outputs, self.inputs)
        found = [TensorSpec(self.name, (*lead, *data), "U8")]
        if self.format != "bf16":
            found.append(TensorSpec(self.name + PACKED_SCALE, (*lead, *scales), _SPELLED[self.format]))
        return found


class Matrix(NamedTuple):
    """A matrix of the source, and what it becomes."""

    source: str
    parts: tuple[Stored, ...]  # one, of kv_b_proj three

    def specs(self) -> list[TensorSpec]:
        return [spec for part in self.parts for spec in part.specs()]


@dataclass(frozen=True, slots=True)
class Block:
    """A routed expert."""

    prefix: str  # model.layers.3.mlp.experts.7.
    matrices: list[Matrix] = field(default_factory=list[Matrix])  # gate, up, down

    def specs(self) -> list[TensorSpec]:
        found = [spec for matrix in self.matrices for spec in matrix.specs()]
        padding = -sum(spec.nbytes for spec in found) % PAGE
        return [*found, TensorSpec(self.prefix + "padding", (padding,), "U8")] if padding else found


@dataclass(frozen=True, slots=True)
class Shard:
    """One file, in the order of its bytes. The first layer's has the embedding, the last layer's the head."""

    file: str
    blocks: list[Block] = field(default_factory=list[Block])
    matrices: list[Matrix] = field(default_factory=list[Matrix])
    kept: list[TensorSpec] = field(default_factory=list[TensorSpec])

    def sources(self) -> list[str]:
        """Names of the source's tensors, scales not among them."""
        packed = [matrix.source for block in self.blocks for matrix in block.matrices]
        return packed + [matrix.source for matrix in self.matrices] + [spec.name for spec in self.kept]

    def specs(self) -> list[TensorSpec]:
        found = [spec for part in (*self.blocks, *self.matrices) for spec in part.specs()]
        return found + self.kept


def format_of(name: str, format: Format) -> Format:
    """What a matrix is packed in."""
    return HEAD_FORMATS[format] if name == "lm_head.weight" else format


def heads_pack(config: ModelConfig) -> bool:
    """Whether attention's heads are of widths that panels take."""
    return config.qk_nope_head_dim % formats.PANEL == 0 == config.v_head_dim % formats.PANEL


def head_stacks(H: int, N: int, V: int, C: int) -> list[tuple[int, int, int]]:
    """Shapes of the stacks `HEADS` that kv_b_proj is packed as."""
    if N % formats.PANEL or V % formats.PANEL:
        raise BaltoroError(
            f"qk_nope_head_dim is {N} and v_head_dim {V}, expected multiples of {formats.PANEL} in every format",
            hint="leave this model unpacked, without --format",
        )
    return [(H, N, C), (H, V, C), (H, C, N)]


def shards(config: ModelConfig, format: Format) -> list[Shard]:
    """All files of the model in `format`. Raises BaltoroError where it cannot hold one of the matrices."""
    total = config.num_hidden_layers
    found = [Shard(f"model-{layer + 1:05d}-of-{total:05d}.safetensors") for layer in range(total)]
    plain = replace(config, weight_block_size=None, packed_format=None)
    layer = 0  # the embedding comes before the first, norm and head behind the last
    for spec in counts.tensors(plain):
        if match := _LAYER.match(spec.name):
            layer = int(match[1])
        shard = found[layer]
        if not (counts.is_quantized(spec.name) or spec.name == "lm_head.weight"):
            shard.kept.append(spec)
        elif match := _EXPERT.fullmatch(spec.name):
            if not shard.blocks or shard.blocks[-1].prefix != match[1]:
                shard.blocks.append(Block(match[1]))
            shard.blocks[-1].matrices.append(_matrix(config, spec, format))
        else:
            shard.matrices.append(_matrix(config, spec, format))
    for shard in found:
        shard.kept.sort(key=lambda spec: spec.dtype != "F32")  # so that all are aligned
    return found


def tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor of a checkpoint, packed or not."""
    if config.packed_format is None:
        yield from counts.tensors(config)
    else:
        for shard in shards(config, cast("Format", config.packed_format)):
            yield from shard.specs()


def _matrix(config: ModelConfig, spec: TensorSpec, format: Format) -> Matrix:
    outputs, inputs = spec.shape
    if not spec.name.endswith("kv_b_proj.weight"):
        return Matrix(spec.name, (Stored(spec.name, format_of(spec.name, format), outputs, inputs),))
    stacks = head_stacks(config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank)
    names = head_names(spec.name)
    return Matrix(
        spec.name, tuple(Stored(name, format, O, I, H) for name, (H, O, I) in zip(names, stacks, strict=True))
    )


def head_names(name: str) -> list[str]:
    """...kv_b_proj.weight -> the names of its stacks."""
    return [f"{name.removesuffix('weight')}{part}.weight" for part in HEADS]
