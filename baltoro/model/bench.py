"""A slice of a large model run at several sizes, and timed.

A step is one forward of the slice, or those of one prompt. Hooks tell the time of each module. Between two steps more
memory is read than any cache holds: that is the roof, and it makes every weight come from memory again. The experts
that are chosen change from step to step, because the tokens do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.kernels import measure
from baltoro.kernels.formats import Format
from baltoro.model import slices
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.moe import MoE
from baltoro.model.rows import Row
from baltoro.model.transformer import Block, Observed, Transformer
from baltoro.model.watch import Share, Watch

CHUNK_TOKENS = 2048  # of a prompt taken into one forward, as engine/engine.py does
ROOF_BYTES = 2**27  # read at a stretch, about as many as a layer: on a busy machine longer reads are interrupted more


@dataclass(frozen=True, slots=True)
class Step:
    """One forward, or all those of one prompt."""

    seconds: dict[str, float]  # by module; `step`: the whole
    touched: int  # experts, summed over the forwards


class Bench:
    """A slice with its cache, run at several sizes."""

    def __init__(
        self, config: ModelConfig, model: Transformer, format: Format, cache: LatentCache, scratch: Tensor, target: str
    ) -> None:
        self.config, self.model, self.format, self.cache = config, model, format, cache
        self.scratch, self.target = scratch, target
        self.peak_gflops = measure.peak(format, target)
        self.generator = torch.Generator().manual_seed(0)
        self.blocks: dict[str, Block] = {}
        self.share: Share | None = None
        self.experts = 0
        model.by_layer = True  # hooks are to see each
        modules: dict[str, nn.Module] = {"head": model.lm_head}
        for block in model.model.layers:
            assert isinstance(block, Block)
            name = "mixture" if isinstance(block.mlp, MoE) else "dense"
            self.blocks[name] = block
            modules |= {name: block, f"{name} attention": block.self_attn}
            if isinstance(block.mlp, MoE):
                stack = block.mlp.experts.gate_proj.packed
                assert stack is not None and stack.experts is not None
                self.experts = stack.experts
                self.share = Share(block.mlp.experts, self.experts / config.n_routed_experts)
                modules |= {"mixture experts": block.mlp.experts, "share": self.share}
            else:
                modules["dense experts"] = block.mlp
        self.watch = Watch(modules)

    def decode(self, tokens: int, context: int, seconds: float) -> tuple[Row, ...]:
        """One new token for each of `tokens` sequences of the same length, each with pages of its own."""
        pages = -(-context // self.cache.page_tokens)
        owned = tuple(tuple(range(each * pages, (each + 1) * pages)) for each in range(tokens))

        def batch() -> list[Batch]:
            positions = torch.full((tokens,), context - 1)
            return [Batch(ids=self._ids(tokens), positions=positions, edges=tuple(range(tokens + 1)), pages=owned)]

        return self._rows("decode", tokens, context, *self._steps(batch, seconds))

    def prefill(self, tokens: int, seconds: float) -> tuple[Row, ...]:
        """A prompt, chunk after chunk; the experts that are here get their share of its tokens."""
        pages = tuple(range(-(-tokens // self.cache.page_tokens)))

        def chunks() -> list[Batch]:
            return [
                Batch(
                    ids=self._ids(end - start),
                    positions=torch.arange(start, end),
                    edges=(0, end - start),
                    pages=(pages,),
                    logit_rows=torch.tensor([end - start - 1] if end == tokens else [], dtype=torch.int64),
                )
                for start, end in chunks_of(tokens)
            ]

        with self._shared():
            steps, roof = self._steps(chunks, seconds)
        return self._rows("prefill", tokens, tokens, steps, roof)

    @contextmanager
    def _shared(self) -> Generator[None]:
        """The mixture's experts get their share of the tokens only."""
        if self.share is None:
            yield
            return
        mixture = self.blocks["mixture"].mlp
        assert isinstance(mixture, MoE)
        whole, mixture.experts = mixture.experts, cast("Any", self.share)
        try:
            yield
        finally:
            mixture.experts = whole

    def _ids(self, tokens: int) -> Tensor:
        return torch.randint(0, self.model.config.vocab_size, (tokens,), generator=self.generator)

    def _steps(self, batches: Callable[[], list[Batch]], seconds: float) -> tuple[list[Step], float]:
        """Steps until the time is over, at least one, and the roof beside them."""
        steps: list[Step] = []
        roofs = [self._roof()]
        end = time.perf_counter() + seconds
        while not steps or time.perf_counter() < end:
            self.watch.clear()
            work = batches()
            began = time.perf_counter()
            observed = Observed()
            for batch in work:
                self.model(batch, self.cache, observed)
            taken = time.perf_counter() - began
            touched = sum(self._touched(chosen) for chosen in observed.chosen)
            steps.append(
                Step({"mixture experts": self._routed_seconds(), **self.watch.seconds, "step": taken}, touched)
            )
            roofs.append(self._roof())
        return steps, max(roofs)

    def _routed_seconds(self) -> float:
        """Of the last forward, where a mixture is one native call and no hook sees its experts."""
        mixture = self.blocks["mixture"].mlp if "mixture" in self.blocks else None
        return mixture.step.routed_seconds if isinstance(mixture, MoE) and mixture.step is not None else 0.0

    def _touched(self, chosen: Tensor) -> int:
        assert self.share is not None
        some = self.share.tokens(len(chosen)) if "share" in self.watch.seconds else len(chosen)
        return int(chosen[:some].flatten().bincount().count_nonzero())

    def _roof(self) -> float:
        """GB/s of reading; afterwards nothing of the model is in a cache."""
        return max(measure.read_roof(piece, self.target) for piece in torch.split(self.scratch, ROOF_BYTES))

    def _rows(self, work: str, tokens: int, context: int, steps: list[Step], roof: float) -> tuple[Row, ...]:
        forwards = len(chunks_of(tokens)) if work == "prefill" else 1
        rows: list[Row] = []
        for name, block in self.blocks.items():
            best = min(steps, key=lambda step: self._seconds(step, name))
            scale = self._scale(best)
            touched = best.touched * scale / forwards
            nbytes = sum(packed.nbytes for packed in slices.packed_of(block)) * forwards
            nbytes += self._cache_bytes(work, tokens, context)
            expert_bytes = 0
            if isinstance(block.mlp, MoE):
                expert_bytes = slices.expert_bytes(block.mlp)
                nbytes += round(touched * forwards * expert_bytes) + block.mlp.gate.weight.nbytes * forwards
            flops = layer_flops(self.config, work, tokens, context, mixture=name == "mixture")
            attention = best.seconds[f"{name} attention"]
            experts = best.seconds[f"{name} experts"] * (scale if name == "mixture" else 1.0)
            seconds = self._seconds(best, name)
            parts = (seconds, attention, experts, seconds - attention - experts)
            rows.append(
                self._row(work, name, tokens, context, parts, nbytes, flops, roof, expert_bytes=expert_bytes,
                          touched=touched if name == "mixture" else 0.0)
            )  # fmt: skip
        best = min(steps, key=lambda step: self._head_seconds(step)[0])
        seconds, outside = self._head_seconds(best)
        packed = self.model.lm_head.packed
        assert packed is not None
        nbytes = packed.nbytes * self.config.vocab_size // self.model.config.vocab_size
        flops = head_flops(self.config) * (tokens if work == "decode" else 1)
        parts = (seconds, 0.0, 0.0, outside)
        rows.append(self._row(work, "head", tokens, context, parts, nbytes, flops, roof))
        return tuple(rows)

    def _row(
        self, work: str, layer: str, tokens: int, context: int, parts: tuple[float, float, float, float], nbytes: int,
        flops: int, roof: float, *, expert_bytes: int = 0, touched: float = 0.0,
    ) -> Row:  # fmt: skip
        seconds, attention, experts, rest = parts
        gbps, gflops = nbytes / seconds / 1e9, flops / seconds / 1e9
        return Row(
            work=work, layer=layer, format=self.format, tokens=tokens, context=context, seconds=seconds,
            attention_seconds=attention, experts_seconds=experts, rest_seconds=rest, tokens_per_s=tokens / seconds,
            bytes=nbytes, gbps=gbps, roof_gbps=roof, roof_fraction=gbps / roof, gflops=gflops,
            peak_gflops=self.peak_gflops, peak_fraction=gflops / self.peak_gflops,
            experts=self.experts if layer == "mixture" else 0, touched=touched, expert_bytes=expert_bytes,
            time_ratio=None, bytes_ratio=None, target=self.target, threads=torch.get_num_threads(),
        )  # fmt: skip

    def _scale(self, step: Step) -> float:
        return self.config.n_routed_experts / self.experts if "share" in step.seconds else 1.0

    def _seconds(self, step: Step, layer: str) -> float:
        """Of a layer. Where the experts had their share of a prompt only, as long as all of them would take."""
        seconds = step.seconds[layer]
        if layer == "mixture" and "share" in step.seconds:
            seconds += step.seconds["mixture experts"] * self._scale(step) - step.seconds["share"]
        return seconds

    def _head_seconds(self, step: Step) -> tuple[float, float]:
        """Of the whole head and of all outside the layers, and of the latter alone."""
        outside = step.seconds["step"] - step.seconds["head"] - sum(step.seconds[name] for name in self.blocks)
        return step.seconds["head"] * self.config.vocab_size / self.model.config.vocab_size + outside, outside

    def _cache_bytes(self, work: str, tokens: int, context: int) -> int:
        """Cached latents that a layer reads."""
        seen = tokens * context if work == "decode" else sum(end for _, end in chunks_of(tokens))
        return seen * counts.cache_bytes_per_token(self.model.config) // self.model.config.num_hidden_layers


def chunks_of(tokens: int) -> list[tuple[int, int]]:
    return [(start, min(start + CHUNK_TOKENS, tokens)) for start in range(0, tokens, CHUNK_TOKENS)]


def head_flops(config: ModelConfig) -> int:
    return 2 * config.vocab_size * config.hidden_size


def layer_flops(config: ModelConfig, work: str, tokens: int, context: int, *, mixture: bool) -> int:
    """Of one layer, by baltoro/counts.py."""
    layer = replace(config, num_hidden_layers=1, first_k_dense_replace=0 if mixture else 1, moe_layer_freq=1)
    if work == "decode":
        return tokens * (counts.decode_flops(layer, context=context) - head_flops(config))
    parts = (counts.prefill_flops(layer, tokens=end - start, past=start) for start, end in chunks_of(tokens))
    return sum(part - head_flops(config) for part in parts)
