"""Where the bytes go: four ways to run a model, each with its bill.

    gpu      everything in GPU memory, spread by a layout
    hybrid   what every token needs on GPUs, and as many experts as have room there; the other experts in RAM
    ram      everything in RAM (of several nodes only where they are Macs that share the layers)
    disk     what every token needs in RAM, and as many experts as have room; the others are read when they are wanted

A `Memory` is one of them with its items. What does not fit says by how many bytes: `short`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.plan import layout as layouts
from baltoro.plan.formats import Format
from baltoro.plan.layout import Layout
from baltoro.plan.machine import Machine
from baltoro.plan.weights import Weights, weights

GPU_CHUNK = 8192  # prompt tokens of one step on GPUs
RAM_CHUNK = 2048  # the same in RAM
CHUNK = {"gpu": GPU_CHUNK, "hybrid": GPU_CHUNK, "ram": RAM_CHUNK, "disk": RAM_CHUNK}
PLACES = ("gpu", "hybrid", "ram", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the model is to do."""

    context: int  # tokens of a request, prompt and answer
    concurrency: int = 1  # requests at once
    cache_value_bytes: int = 2  # of a latent's value: 2 bf16, 1 fp8
    layout: Layout | None = None  # None: the fastest that fits
    place: str | None = None  # the same


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the bill."""

    where: str  # each GPU, RAM (of each node), disk
    purpose: str
    bytes: float
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    place: str
    layout: Layout | None  # of GPUs
    items: tuple[Item, ...]
    capacity: tuple[tuple[str, float], ...]  # where -> bytes that may be taken there
    gpu_share: float  # of the routed experts, in GPU memory
    ram_share: float  # in RAM
    free_cache_tokens: int  # that fit beside the weights, of all requests together

    def used(self, where: str) -> float:
        return sum(item.bytes for item in self.items if item.where == where)

    @property
    def short(self) -> tuple[str, float] | None:
        """Where it does not fit, and by how many bytes; None if it fits."""
        over = [(where, self.used(where) - room) for where, room in self.capacity]
        worst = max(over, key=lambda each: each[1], default=("", 0.0))
        return worst if worst[1] >= 1.0 else None  # what is filled to the brim may be over by a rounding


def memories(config: ModelConfig, format: Format, machine: Machine, wish: Wish) -> Iterator[Memory]:
    """Every way that this machine has hardware for, whether or not it fits."""
    held = weights(config, format)
    places = (wish.place,) if wish.place else ("gpu",) if wish.layout else PLACES
    if machine.gpu is not None and "gpu" in places:
        wanted = layouts.candidates(config, format, machine) if wish.layout is None else [wish.layout]
        for each in wanted:
            yield _gpu(config, held, machine, wish, each)
    if machine.gpu is not None and "hybrid" in places and machine.nodes == 1:
        hybrid = _hybrid(config, held, machine, wish)
        if hybrid.ram_share > 0:  # else it is `gpu`
            yield hybrid
    if "ram" in places:
        yield _ram(config, held, machine, wish)
    if "disk" in places:
        yield _disk(config, held, machine, wish)


def activations(config: ModelConfig, tokens: int) -> float:
    """Bytes of a step of `tokens`, at most: the residual and its copies, and K experts' inputs and widths for each."""
    hidden, chosen = config.hidden_size, config.num_experts_per_tok
    return tokens * (4 * hidden + chosen * (hidden + 2 * config.moe_intermediate_size)) * 2


def _activation_formula(tokens: int) -> str:
    return f"{tokens:,} tokens x (4 D + K (D + 2 F)) x 2 bytes"


def cache_bytes(config: ModelConfig, context: int, wish: Wish) -> int:
    """Of one request."""
    return context * counts.cache_bytes_per_token(config, value_bytes=wish.cache_value_bytes)


def _cache_formula(config: ModelConfig, wish: Wish, requests: int) -> str:
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    return (
        f"{requests:,} x {wish.context:,} tokens x {config.num_hidden_layers} layers x {latent} values x "
        f"{wish.cache_value_bytes} bytes"
    )


def _room(capacity: float, used: float, cache: float, per_token: float) -> int:
    return max(0, int((capacity - used + cache) / per_token)) if per_token else 0


def _gpu(config: ModelConfig, held: Weights, machine: Machine, wish: Wish, layout: Layout) -> Memory:
    resident, experts = layouts.per_gpu(config, held, layout)
    requests = -(-wish.concurrency // layout.dp)
    per_token = layouts.cache_per_token(config, layout, value_bytes=wish.cache_value_bytes)
    cache = requests * wish.context * per_token
    where, working = "each GPU", activations(config, GPU_CHUNK) / layout.tp
    cut = f" / {layout.pp} stages" * (layout.pp > 1) + f" / {layout.dcp}" * (layout.dcp > 1)
    items = (
        Item(where, "resident weights", resident, f"attention / TP{layout.tp}, q_a and kv_a whole, dense, head"),
        Item(where, "routed experts", experts, f"{held.experts / 1e9:,.1f} GB / {layout.width} GPUs" + cut),
        Item(where, "cache", cache, _cache_formula(config, wish, requests) + cut),
        Item(where, "activations", working, _activation_formula(GPU_CHUNK) + f" / TP{layout.tp}"),
    )  # fmt: skip
    used = sum(item.bytes for item in items)
    return Memory(
        place="gpu", layout=layout, items=items, capacity=((where, machine.usable_gpu),), gpu_share=1.0, ram_share=0.0,
        free_cache_tokens=_room(machine.usable_gpu, used, cache, per_token) * layout.dp,
    )  # fmt: skip


def _hybrid(config: ModelConfig, held: Weights, machine: Machine, wish: Wish) -> Memory:
    layout = _hybrid_layout(config, machine)
    resident, _ = layouts.per_gpu(config, held, layout)
    per_token = layouts.cache_per_token(config, layout, value_bytes=wish.cache_value_bytes)
    cache = wish.concurrency * wish.context * per_token
    working = activations(config, GPU_CHUNK) / layout.tp
    left = max(0.0, machine.usable_gpu - resident - cache - working) * layout.tp
    share = min(1.0, left / held.experts)
    items = (
        Item("each GPU", "resident weights", resident, f"attention / TP{layout.tp}, q_a and kv_a whole, dense, head"),
        Item("each GPU", "cache", cache, _cache_formula(config, wish, wish.concurrency)),
        Item("each GPU", "activations", working, _activation_formula(GPU_CHUNK) + f" / TP{layout.tp}"),
        Item("each GPU", "routed experts", share * held.experts / layout.tp, f"what is left: {share:.0%} of all"),
        Item("RAM", "routed experts", (1 - share) * held.experts, f"{1 - share:.0%} of {held.experts / 1e9:,.1f} GB"),
    )
    used = resident + cache + working
    return Memory(
        place="hybrid", layout=layout, items=items, gpu_share=share, ram_share=1 - share,
        capacity=(("each GPU", machine.usable_gpu), ("RAM", machine.usable_ram)),
        free_cache_tokens=_room(machine.usable_gpu, used, cache, per_token),
    )  # fmt: skip


def _hybrid_layout(config: ModelConfig, machine: Machine) -> Layout:
    """As many GPUs as heads divide by."""
    return Layout(tp=max(n for n in range(1, machine.gpus + 1) if config.num_attention_heads % n == 0))


def _ram(config: ModelConfig, held: Weights, machine: Machine, wish: Wish) -> Memory:
    nodes = machine.nodes if machine.unified else 1
    cache = wish.concurrency * cache_bytes(config, wish.context, wish)
    by = f" / {nodes} nodes" * (nodes > 1)
    items = (
        Item("RAM", "resident weights", held.resident / nodes, "attention, dense layers, shared experts, head" + by),
        Item("RAM", "routed experts", held.experts / nodes, _experts_formula(held) + by),
        Item("RAM", "cache", cache, _cache_formula(config, wish, wish.concurrency)),
        Item("RAM", "activations", activations(config, RAM_CHUNK), _activation_formula(RAM_CHUNK)),
    )
    used = sum(item.bytes for item in items)
    return Memory(
        place="ram", layout=None, items=items, capacity=(("RAM", machine.usable_ram),), gpu_share=0.0, ram_share=1.0,
        free_cache_tokens=_room(machine.usable_ram, used, cache, cache / max(1, wish.concurrency * wish.context)),
    )  # fmt: skip


def _disk(config: ModelConfig, held: Weights, machine: Machine, wish: Wish) -> Memory:
    cache = wish.concurrency * cache_bytes(config, wish.context, wish)
    working = activations(config, RAM_CHUNK)
    left = machine.usable_ram - held.resident - cache - working
    least = held.chosen * held.expert  # of one layer: fewer, and a token cannot be computed
    share = min(1.0, max(least, left) / held.experts) if held.experts else 1.0
    items = [
        Item("RAM", "resident weights", held.resident, "attention, dense layers, shared experts, embedding, head"),
        Item("RAM", "cache", cache, _cache_formula(config, wish, wish.concurrency)),
        Item("RAM", "activations", working, _activation_formula(RAM_CHUNK)),
        Item("RAM", "routed experts", share * held.experts, f"what is left: {share:.1%} of all"),
        Item("disk", "checkpoint", held.whole, "all weights, read when they are wanted"),
    ]  # fmt: skip
    capacity = [("RAM", machine.usable_ram)]
    if machine.disk_free_bytes is not None:
        capacity.append(("disk", machine.disk_free_bytes))
    used = held.resident + cache + working + least
    return Memory(
        place="disk", layout=None, items=tuple(items), capacity=tuple(capacity), gpu_share=0.0, ram_share=share,
        free_cache_tokens=_room(machine.usable_ram, used, cache, cache / max(1, wish.concurrency * wish.context)),
    )  # fmt: skip


def _experts_formula(held: Weights) -> str:
    return f"{held.moe_layers} layers x {held.num_experts} x {held.expert / 1e6:,.1f} MB"
