"""A whole model as one call a forward: what else runs in this process has the interpreter to itself meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from baltoro.kernels.door import check, check_packed, check_scale, described
from baltoro.kernels.formats import Packed
from baltoro.kernels.rows import Rows
from baltoro.kernels.steps import AttentionStep, DenseStep, MixtureStep
from baltoro.kernels.targets import chosen_target, native


class Layer(NamedTuple):
    input_norm: Tensor  # (D,) float32, as the other one
    attention: AttentionStep
    post_norm: Tensor
    mlp: MixtureStep | DenseStep


class ForwardStep:
    """Token ids to logits, by way of the latent cache. It gives the bits of its layers' own steps.

    embedding: (V, D) float32 or bf16; norm: (D,) float32; head: (V', D)
    scale:     of the scores, as in latents.py
    """

    def __init__(
        self, embedding: Tensor, layers: Sequence[Layer], norm: Tensor, head: Packed, *, eps: float, scale: float
    ) -> None:
        (V, D), is_bf16 = embedding.shape, embedding.dtype is torch.bfloat16
        check("embedding", embedding, torch.bfloat16 if is_bf16 else torch.float32, (V, D))
        check("norm", norm, torch.float32, (D,))
        check_packed("head", head, None)
        check_scale(scale)
        if not embedding.is_contiguous() or head.inputs != D or not layers:
            raise ValueError(f"head takes {head.inputs} numbers, the embedding has {D}, there are {len(layers)} layers")
        first = layers[0].attention
        shape = (first.heads, first.rotary, first.width)
        for index, layer in enumerate(layers):
            check(f"input_norm of layer {index}", layer.input_norm, torch.float32, (D,))
            check(f"post_norm of layer {index}", layer.post_norm, torch.float32, (D,))
            found = (layer.attention.heads, layer.attention.rotary, layer.attention.width)
            if (found, layer.attention.hidden, layer.mlp.hidden) != (shape, D, D):
                raise ValueError(f"layer {index} has {found} of {layer.attention.hidden}, expected {shape} of {D}")
        self.vocabulary, self.hidden, self.outputs, self.num_layers = V, D, head.outputs, len(layers)
        self.width, self.rotary = first.width, first.rotary
        self._kept = (embedding, tuple(layers), norm, head)  # native code has addresses only
        described_layers = [
            native().LayerWeights(
                layer.input_norm.data_ptr(), layer.post_norm.data_ptr(), layer.attention.weights, layer.mlp.weights
            )
            for layer in layers
        ]
        self._weights = native().ModelWeights(
            embedding.data_ptr(), is_bf16, D, described_layers, norm.data_ptr(), described("head", head), eps, scale,
            first.heads, first.rotary,
        )  # fmt: skip

    def __call__(
        self, ids: Tensor, positions: Tensor, table: tuple[Tensor, Tensor], cache: Tensor, rows: Rows,
        wanted: Tensor | None, *, target: str | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits (rows, V') float32 behind the rows `wanted`, or behind all.

        ids, positions: (T,) int64; wanted: int64
        table:  cos and sin of every position up to the largest, both (., R / 2) float32
        cache:  (layers, any, C + R) bf16
        """
        T = rows.tokens
        cos, sin = table
        check("ids", ids, torch.int64, (T,))
        check("positions", positions, torch.int64, (T,))
        check("cos", cos, torch.float32, (cos.shape[0], self.rotary // 2))
        check("sin", sin, torch.float32, cos.shape)
        check("cache", cache, torch.bfloat16, (self.num_layers, rows.cache_rows, self.width))
        named = [("ids", ids, self.vocabulary), ("positions", positions, cos.shape[0])]
        if wanted is not None:
            check("wanted", wanted, torch.int64, (wanted.shape[0],))
            named.append(("wanted", wanted, T))
        for name, numbers, end in named:
            if not (numbers.is_contiguous() and native().within(numbers.data_ptr(), len(numbers), end)):
                raise ValueError(f"{name} hold {int(numbers.min())} .. {int(numbers.max())}, expected 0 .. {end - 1}")
        if not (cache.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()):
            raise ValueError("cache or table is not contiguous")
        count = T if wanted is None else len(wanted)
        logits = torch.from_numpy(np.empty((count, self.outputs), np.float32))  # torch.empty lets the interpreter go
        if not native().forward(
            target or chosen_target(), self._weights, ids.data_ptr(), positions.data_ptr(), cos.data_ptr(),
            sin.data_ptr(), rows.native, cache.data_ptr(), cache.stride(0), 0 if wanted is None else wanted.data_ptr(),
            count, logits.data_ptr(), torch.get_num_threads(),
        ):  # fmt: skip
            raise ValueError("experts were chosen that are not here")
        return logits
