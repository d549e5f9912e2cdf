"""How a model is spread over GPUs: which parallelism, whether it divides, and bytes of one GPU.

    tp    tensor parallel: heads, dense widths, vocabulary (and, without ep, expert widths) cut in tp pieces
    pp    pipeline: layers in pp groups
    dp    data parallel: attention repeated dp times, each with requests of its own
    ep    expert parallel: the tp * dp GPUs of a stage share out whole experts instead of cutting each of them
    dcp   decode context parallel: the cache of a tp group cut over its tokens instead of being repeated

A cut that block-fp8 scales (128 x 128) do not allow is an error in vLLM and SGLang at load time, hours after the
download; here it is one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.counts import BLOCK
from baltoro.errors import BaltoroError
from baltoro.plan.formats import Format
from baltoro.plan.machine import Machine
from baltoro.plan.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: bool = False
    dcp: int = 1

    @property
    def width(self) -> int:
        """GPUs that share a layer."""
        return self.tp * self.dp

    @property
    def gpus(self) -> int:
        return self.width * self.pp

    @property
    def name(self) -> str:
        parts = [("TP", self.tp), ("PP", self.pp), ("DP", self.dp), ("DCP", self.dcp)]
        named = [f"{word}{count}" for word, count in parts if count > 1]
        return "+".join([*(named or ["TP1"]), *([f"EP{self.width}"] if self.ep else [])])


def parse(text: str) -> Layout:
    """`tp8+pp2`, `dp16+ep`: as `Layout.name` writes it; EP's number may be left out, since it is tp * dp."""
    values = {"tp": 1, "pp": 1, "dp": 1, "dcp": 1}
    ep, ep_count = False, None
    for word in text.lower().replace(",", "+").replace(" ", "+").split("+"):
        name = word.rstrip("0123456789")
        count = word[len(name) :]
        if name == "ep":
            ep, ep_count = True, int(count) if count else None
        elif name in values and count and int(count) >= 1:
            values[name] = int(count)
        elif word:
            raise BaltoroError(f"a layout of {text!r}", hint="as tp16, tp8+pp2, or dp16+ep; dcp8 cuts the cache")
    layout = Layout(**values, ep=ep)
    if ep_count not in (None, layout.width):
        raise BaltoroError(
            f"{text}: expert parallel over {ep_count} GPUs", hint=f"it is over tp * dp of them, here {layout.width}"
        )
    return layout


def problems(config: ModelConfig, format: Format, layout: Layout) -> Iterator[str]:
    """Why this layout does not start; none if it does."""
    heads, tp = config.num_attention_heads, layout.tp
    if heads % tp:
        yield f"{heads} heads are not divisible by TP{tp}"
    if tp % layout.dcp:
        yield f"DCP{layout.dcp} does not divide TP{tp}"
    if layout.pp > config.num_hidden_layers:
        yield f"PP{layout.pp} for {config.num_hidden_layers} layers"
    if layout.ep and config.n_routed_experts % layout.width:
        yield f"{config.n_routed_experts} experts are not divisible by EP{layout.width}"
    if format.name != "fp8":
        return
    shared = config.n_shared_experts * config.moe_intermediate_size
    widths = {
        "intermediate_size": (config.intermediate_size, tp),
        "the shared experts' width": (shared, tp),
        "moe_intermediate_size": (config.moe_intermediate_size, 1 if layout.ep else layout.width),
        "o_proj's inputs": (heads * config.v_head_dim, tp),
    }
    for name, (width, ways) in widths.items():
        if width and (width % ways or (ways > 1 and width // ways % BLOCK)):
            piece = f"{width / ways:g}"
            yield f"{name} {width:,} cut in {ways} is {piece}, no multiple of block-fp8's {BLOCK}"


def per_gpu(config: ModelConfig, weights: Weights, layout: Layout) -> tuple[float, float]:
    """Bytes of weights of the fullest GPU: resident, routed experts.

    Experts are spread over all GPUs of a stage, cut or whole. Attention is repeated dp times, and what tensor
    parallelism does not cut (q_a, kv_a, norms) on each GPU. The embedding is on the first stage, the head on the last.
    """
    stage = -(-config.num_hidden_layers // layout.pp) / config.num_hidden_layers  # of the layers
    cut = weights.attention - weights.replicated_attention
    attention = cut / layout.tp + weights.replicated_attention
    ends = (weights.embedding + weights.head) if layout.pp == 1 else max(weights.embedding, weights.head)
    moe_stage = min(1.0, -(-config.num_hidden_layers // layout.pp) / max(1, weights.moe_layers))
    resident = stage * attention + (moe_stage * weights.shared + weights.dense / max(1, layout.pp)) / layout.tp
    return resident + ends / layout.tp, moe_stage * weights.experts / layout.width


def cache_per_token(config: ModelConfig, layout: Layout, *, value_bytes: int = 2) -> float:
    """Bytes on the fullest GPU for one token of one request that is its own: MLA's latents are one head, which tensor
    parallelism repeats on each GPU unless dcp cuts it."""
    whole = counts.cache_bytes_per_token(config, value_bytes=value_bytes)
    return whole * (-(-config.num_hidden_layers // layout.pp) / config.num_hidden_layers) / layout.dcp


def candidates(config: ModelConfig, format: Format, machine: Machine) -> list[Layout]:
    """Layouts that use all GPUs and start: TP inside nodes and PP over them, TP over all, DP with EP; in this order."""
    count, per_node = machine.gpu_count, machine.gpus
    wanted = [
        Layout(tp=per_node, pp=machine.nodes),
        Layout(tp=count),
        Layout(tp=count, ep=count > 1),
        Layout(tp=per_node, pp=machine.nodes, ep=per_node > 1),
        Layout(dp=count, ep=count > 1),
        Layout(tp=per_node, dp=machine.nodes, ep=count > 1),
        Layout(pp=count),
    ]
    if machine.nodes == 1:
        wanted.append(Layout(tp=max(1, count // 2), pp=2 if count > 1 else 1))
    return [each for each in dict.fromkeys(wanted) if not any(problems(config, format, each))]
