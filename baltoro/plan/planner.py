"""A model, a machine and a wish -> a `Plan`: every figure that `baltoro plan` prints, each with its formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import PlanError
from baltoro.plan import layout as layouts
from baltoro.plan import speed
from baltoro.plan.advice import Advice, advice
from baltoro.plan.choice import DEPTH, Choice, best, choose, order
from baltoro.plan.efficiency import Band
from baltoro.plan.formats import FORMATS, Format, of_checkpoint
from baltoro.plan.machine import Gpu, Machine
from baltoro.plan.memory import Memory, Wish, memories
from baltoro.plan.money import Cost, cost
from baltoro.plan.speed import Time, per_second
from baltoro.plan.weights import Weights, weights

CONTEXTS = (1024, 32768, 131072)
REQUESTS = (1, 8, 64)
MOST_REQUESTS = 256
HITS = (0.0, 0.5, 0.7, 0.9)
SHARD_BYTES = 17.2e9  # Kimi K2's largest: what a conversion or a loader holds at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a request looks like, for throughput and its price."""

    prompt: int = 2048
    answer: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    tokens: int
    seconds: Band  # to the first token, nothing else running
    tokens_per_s: Band
    binding: str
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A format beside the planned one."""

    format: str
    weight_bytes: float
    place: str | None  # None: nothing fits
    layout: str | None
    tokens_per_s: Band | None
    short_bytes: float | None
    quality: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutRow:
    """A way over the same GPUs."""

    name: str
    problems: tuple[str, ...]
    gpu_bytes: float  # of the fullest
    short_bytes: float  # 0: it fits
    free_cache_tokens: int
    tokens_per_s: Band | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    fetch_bytes: int  # what is published
    packed_bytes: float  # after `baltoro quantize`; of fp8 and bf16 the same as fetched
    convert_peak_bytes: float  # where shards are fetched, packed and deleted one after the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    model: str
    config: ModelConfig
    machine: Machine
    wish: Wish
    mix: Mix
    choice: Choice
    weights: Weights
    single: Time  # a step of one request, DEPTH tokens deep
    by_context: Mapping[int, Band]  # tokens/s of one request so deep
    cold: Band | None  # no expert in memory yet; None: nothing is read from disk
    by_hits: Mapping[float, float]  # hit rate -> tokens/s that the disk alone allows
    throughput: Band  # tokens/s of all requests together, prompts included
    prompts: tuple[Prompt, ...]
    load: Time
    load_peak: tuple[str, float, str]  # where, bytes, formula
    disk: Disk
    cost: Cost | None
    formats: tuple[Option, ...]
    layouts: tuple[LayoutRow, ...]
    advice: tuple[Advice, ...]

    @property
    def format(self) -> Format:
        return self.choice.format

    @property
    def memory(self) -> Memory:
        return self.choice.memory

    @property
    def tokens_per_s(self) -> Band:
        return per_second(1, self.single.seconds)

    @property
    def cold_bytes_per_token(self) -> float:
        """Routed experts that one token reads, wherever they are."""
        return self.weights.read_experts

    @property
    def requests(self) -> int:
        """That fit into the cache at the mix's length, up to what engines decode together; never less than wished."""
        fitting = self.memory.free_cache_tokens // (self.mix.prompt + self.mix.answer)
        return max(self.wish.concurrency, min(MOST_REQUESTS, fitting))

    def cache_bytes(self, context: int, requests: int = 1) -> int:
        per_token = counts.cache_bytes_per_token(self.config, value_bytes=self.wish.cache_value_bytes)
        return requests * context * per_token


def make(
    model: str,
    config: ModelConfig,
    machine: Machine,
    wish: Wish,
    *,
    card: Gpu,
    format: Format | None = None,
    mix: Mix | None = None,
    electricity: float | None = None,
    fetch_bytes: int | None = None,
) -> Plan:
    """PlanError where it does not fit.

    card: the GPU that advice may add. electricity: money for a kWh. fetch_bytes: of the files, where they are known
    """
    if wish.context > config.max_position_embeddings:
        raise PlanError(
            f"a context of {wish.context:,} tokens, and the model has {config.max_position_embeddings:,}",
            hint="a shorter --context",
        )
    mix = mix or Mix()
    try:
        choice = choose(config, machine, wish, format)
    except PlanError as error:
        raise _with_a_way_out(error, config, machine, wish, format, card) from error
    memory, held = choice.memory, weights(config, choice.format)

    def step(context: int, batch: int) -> Time:
        return speed.decode(config, choice.format, machine, memory, wish, context=context, batch=batch)

    single = step(min(DEPTH, wish.context), 1)
    prompts = tuple(
        _prompt(config, choice, machine, tokens) for tokens in CONTEXTS if tokens <= config.max_position_embeddings
    )
    mixed = speed.serving(
        step(min(mix.prompt + mix.answer // 2, wish.context), wish.concurrency).seconds,
        speed.prefill(config, choice.format, machine, memory, tokens=mix.prompt).seconds,
        batch=wish.concurrency,
        answer=mix.answer,
    )
    throughput = per_second(wish.concurrency, mixed)
    return Plan(
        model=model, config=config, machine=machine, wish=wish, mix=mix, choice=choice, weights=held, single=single,
        by_context={each: per_second(1, step(each, 1).seconds) for each in CONTEXTS if each <= wish.context},
        cold=_cold(config, choice, machine, wish) if memory.place == "disk" else None,
        by_hits=_by_hits(held, machine) if memory.place == "disk" else {},
        throughput=throughput, prompts=prompts, load=speed.load(held, machine, memory),
        load_peak=_load_peak(held, machine, memory),
        disk=_disk(config, held, fetch_bytes),
        cost=cost(machine, throughput, electricity),
        formats=tuple(_options(config, machine, wish)), layouts=tuple(_layouts(config, choice, machine, wish)),
        advice=tuple(advice(config, choice.format, machine, wish, choice, card)),
    )  # fmt: skip


def _with_a_way_out(
    error: PlanError, config: ModelConfig, machine: Machine, wish: Wish, format: Format | None, card: Gpu
) -> PlanError:
    """The refusal with the cheapest change that makes it fit, where bytes are missing and one of those tried does."""
    if error.short_bytes is None:
        return error
    found = advice(config, format or order(config, machine)[0], machine, wish, None, card)
    if not found:
        return error
    first = found[0]
    hint = f"cheapest of what would: {first.change}, {first.tokens_per_s:.2f} tokens/s"
    return PlanError(error.message, hint=hint, short_bytes=error.short_bytes)


def own_format(config: ModelConfig) -> Format:
    """As its files are."""
    return of_checkpoint(config.weight_block_size is not None, config.packed_format)


def _prompt(config: ModelConfig, choice: Choice, machine: Machine, tokens: int) -> Prompt:
    time = speed.prefill(config, choice.format, machine, choice.memory, tokens=tokens)
    formula = "; ".join(f"{term.resource}: {term.formula}" for term in time.terms)
    return Prompt(
        tokens=tokens, seconds=time.seconds, tokens_per_s=per_second(tokens, time.seconds), binding=time.binding,
        formula=formula,
    )  # fmt: skip


def _cold(config: ModelConfig, choice: Choice, machine: Machine, wish: Wish) -> Band:
    """As if no expert had come yet: each that a token chooses is a read."""
    empty = Memory(place="disk", layout=None, items=(), capacity=(), gpu_share=0.0, ram_share=0.0, free_cache_tokens=0)
    time = speed.decode(config, choice.format, machine, empty, wish, context=1, batch=1)
    return per_second(1, time.seconds)


def _by_hits(held: Weights, machine: Machine) -> dict[float, float]:
    return {hit: machine.disk_bandwidth / (held.read_experts * (1 - hit)) for hit in HITS}


def _load_peak(held: Weights, machine: Machine, memory: Memory) -> tuple[str, float, str]:
    """The most RAM of a node while it loads, where that is more than afterwards."""
    if memory.place == "gpu":
        count = machine.gpus
        return "RAM of each node", count * SHARD_BYTES, f"{count} processes x one shard, pages of files that give way"
    if memory.place == "hybrid":
        formula = "all routed experts, those of the GPUs too, until they are copied (ktransformers#1816)"
        return "RAM", held.experts, formula
    peak = memory.used("RAM")
    return "RAM", peak, "as afterwards: packed files are read where they stay"


def _disk(config: ModelConfig, held: Weights, fetch_bytes: int | None) -> Disk:
    published = fetch_bytes or counts.tensor_bytes(config)
    as_published = abs(held.whole / published - 1) < 0.001
    shard = min(SHARD_BYTES, published / 2)
    packed = published if as_published else held.whole
    return Disk(
        fetch_bytes=published, packed_bytes=packed, convert_peak_bytes=packed if as_published else packed + shard
    )


def _options(config: ModelConfig, machine: Machine, wish: Wish) -> Sequence[Option]:
    names = dict.fromkeys([*FORMATS, order(config, machine)[0].name])
    found: list[Option] = []
    for format in (FORMATS[name] for name in names):
        if format.name == "w4a16" and not machine.gpus:
            continue
        here = best(config, format, machine, wish)
        shorts = [short[1] for memory in memories(config, format, machine, wish) if (short := memory.short)]
        found.append(
            Option(
                format=format.name, weight_bytes=weights(config, format).whole,
                place=here and here.memory.place, layout=layout_name(here.memory) if here else None,
                tokens_per_s=here and per_second(1, here.step.seconds),
                short_bytes=min(shorts, default=0.0) if here is None else None, quality=format.quality,
            )
        )  # fmt: skip
    return found


def layout_name(memory: Memory) -> str | None:
    return memory.layout.name if memory.layout is not None else None


def _layouts(config: ModelConfig, choice: Choice, machine: Machine, wish: Wish) -> Sequence[LayoutRow]:
    """What else these GPUs could do with the same format, and why some of it cannot start."""
    if machine.gpu is None:
        return []
    count, per_node = machine.gpu_count, machine.gpus
    wanted = [
        layouts.Layout(tp=count), layouts.Layout(tp=count, ep=True), layouts.Layout(tp=per_node, pp=machine.nodes),
        layouts.Layout(dp=count, ep=True), layouts.Layout(pp=count), layouts.Layout(tp=count, dcp=per_node),
    ]  # fmt: skip
    rows: list[LayoutRow] = []
    for each in dict.fromkeys(wanted):
        problems = tuple(layouts.problems(config, choice.format, each))
        asked = Wish(
            context=wish.context, concurrency=wish.concurrency, cache_value_bytes=wish.cache_value_bytes, layout=each,
            place="gpu",
        )  # fmt: skip
        memory = next(iter(memories(config, choice.format, machine, asked)))
        short = memory.short[1] if memory.short else 0.0
        time = None
        if not problems and not short:
            depth = min(DEPTH, wish.context)
            time = speed.decode(config, choice.format, machine, memory, asked, context=depth, batch=wish.concurrency)
        rows.append(
            LayoutRow(
                name=each.name, problems=problems, gpu_bytes=memory.used("each GPU"), short_bytes=short,
                free_cache_tokens=memory.free_cache_tokens, tokens_per_s=time and per_second(1, time.seconds),
            )
        )  # fmt: skip
    return rows
