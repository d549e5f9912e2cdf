"""Load a model as `serve` would, let it decode, and measure: everything that judge.py wants to know."""

from __future__ import annotations

import queue
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from baltoro import counts
from baltoro.chat.messages import Message
from baltoro.chat.template import render
from baltoro.config import ModelConfig, resolve
from baltoro.doctor import process, reads, roofs
from baltoro.doctor.facts import Facts, Store
from baltoro.doctor.replays import replays
from baltoro.engine.engine import Engine
from baltoro.engine.request import Request, SamplingParams, Step
from baltoro.errors import BaltoroError, ContextError
from baltoro.kernels import cpus, memory
from baltoro.kernels.formats import Format
from baltoro.llm import LLM
from baltoro.weights import fit
from baltoro.weights.checkpoint import Checkpoint
from baltoro.weights.display import Counted
from baltoro.weights.eviction import Key, Pinned
from baltoro.weights.experts import ExpertStore, Statistics
from baltoro.weights.trace import Reader

PROMPT = (
    "The Baltoro glacier flows past four of the fourteen highest mountains of the world. Describe the way from the "
    "last village to its upper end, day by day, and say for each day what a traveller sees and must carry."
)
Say = Callable[[str], None]


class Unending:
    """A constraint: any token but those that end an answer, behind which a model writes what it never does."""

    def __init__(self, vocab_size: int, ends: Iterable[int]) -> None:
        self._allowed = np.ones(vocab_size, dtype=np.bool_)
        self._allowed[list(ends)] = False

    def mask(self) -> NDArray[np.bool_]:
        return self._allowed

    def advance(self, token: int) -> None:
        """Nothing changes."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a token was chosen, and what had happened by then."""

    at: float
    store: Statistics | None
    queued_s: float | None = None  # of the first and the last that are measured


def gather(
    model: str, *, tokens: int, threads: int | None, format: Format | None, expert_memory: int | None, say: Say
) -> Facts:
    """tokens: that are measured; as many before them warm the expert store."""
    with tempfile.TemporaryDirectory(prefix="baltoro-doctor-") as folder:
        trace = Path(folder) / "trace"
        say(f"loading {model} ...")
        began = time.perf_counter()
        llm = LLM.open(model, threads=threads, format=format, expert_memory=expert_memory, trace=trace)
        try:
            facts, earlier = _run(llm, model, tokens, time.perf_counter() - began, say)
        finally:
            llm.close()
        if facts.store is None:
            return facts
        affordable = facts.store.slots + facts.spare_bytes // facts.store.block_bytes
        config = ModelConfig.open(resolve(model))
        found = replays(
            Reader(trace), config, format=facts.format, slots=facts.store.slots,
            block_bytes=facts.store.block_bytes, affordable=affordable, warm_steps=tokens, earlier=earlier,
            smaller=[name for name, _ in facts.smaller_formats],
        )  # fmt: skip
        return replace(facts, replays=found)


def _run(llm: LLM, name: str, tokens: int, load_s: float, say: Say) -> tuple[Facts, Counter[Key]]:
    engine = llm.engine
    assert isinstance(engine, Engine)
    model, store = engine.model, engine.store
    config, threads, format = model.config, torch.get_num_threads(), reads.format_of(model)
    if store is not None:
        store.remembers = False  # a prompt of ours says nothing of what its user asks
    earlier = Counter(store.policy.uses) if store and isinstance(store.policy, Pinned) else Counter[Key]()
    prompt = render((Message(role="user", content=PROMPT),), ()).ids(llm.tokenizer)
    if len(prompt) + 2 * tokens > engine.max_context:
        raise ContextError(
            f"a prompt of {len(prompt)} tokens and twice {tokens} more, but the context holds {engine.max_context}",
            hint="fewer --tokens",
        )
    say("measuring memory and cores ...")
    roof, *others = roofs.roofs(format, threads, cpus.usable())
    disk = None
    if store is not None:
        say("measuring the disk ...")
        disk = roofs.disk(Checkpoint.open(resolve(name)), config)
    began = time.perf_counter()
    moments = _decode(engine, prompt, 2 * tokens, Unending(engine.vocab_size, llm.tokenizer.stop_ids))
    start, end = moments[tokens - 1], moments[-1]
    read, found = reads.of(model), process.look()
    context = len(prompt) + tokens + tokens // 2
    facts = Facts(
        model=name,
        format=format,
        threads=threads,
        load_s=load_s,
        prompt_tokens=len(prompt),
        prompt_s=moments[0].at - began,
        tokens=tokens,
        seconds=end.at - start.at,
        queued_s=None if start.queued_s is None or end.queued_s is None else (end.queued_s - start.queued_s) / threads,
        resident_bytes=read.resident,
        expert_bytes=read.experts,
        cache_bytes=context * engine.cache_token_bytes,
        flops=counts.decode_flops(config, context=context),
        last_cache_bytes=memory.last_cache(),
        slab_bytes=reads.slab_bytes(model),
        roof=roof,
        other_roofs=tuple(others),
        disk=disk,
        store=_between(store, reads.mixtures(config) * config.n_routed_experts, start, end),
        replays=(),
        smaller_formats=reads.smaller_formats(config, format, read),
        process=found,
        spare_bytes=max(0, found.free_bytes - fit.margin(found.free_bytes) - _unfilled(store, end)),
    )
    return facts, earlier


def _decode(engine: Engine, prompt: list[int], tokens: int, constraint: Unending) -> list[Moment]:
    """When each came; the second half is what is measured.

    They are drawn: the likeliest ones would soon go in circles, and their experts with them.
    """
    moments: list[Moment] = []
    steps: queue.SimpleQueue[Step] = queue.SimpleQueue()

    def sink(step: Step) -> None:  # on the engine's thread, which is the store's
        queued_s = process.queued_s() if len(moments) in (tokens // 2 - 1, tokens - 1) else None
        store = replace(engine.store.statistics) if engine.store else None
        moments.append(Moment(time.perf_counter(), store, queued_s))
        steps.put(step)

    sampling = SamplingParams(max_tokens=tokens, temperature=1.0, seed=0)
    engine.submit(Request(prompt=prompt, sampling=sampling, sink=sink, constraint=constraint))
    with Counted("decoding") as shown:
        for done in range(tokens):
            step = steps.get()
            if step.error is not None or step.token is None:
                raise step.error or BaltoroError("the model stopped")
            shown.update(done + 1, tokens)
    return moments


def _unfilled(store: ExpertStore | None, end: Moment) -> int:
    """Bytes of slots that nothing was read to: the system still counts them as free."""
    if store is None or end.store is None:
        return 0
    return max(0, store.blocks.nbytes - end.store.bytes_read)


def _between(store: ExpertStore | None, all_slots: int, start: Moment, end: Moment) -> Store | None:
    if store is None:
        return None
    assert start.store is not None and end.store is not None
    return Store(
        slots=store.slots,
        all_slots=all_slots,
        block_bytes=store.shape.nbytes,
        hits=end.store.hits - start.store.hits,
        misses=end.store.misses - start.store.misses,
        bytes_read=end.store.bytes_read - start.store.bytes_read,
        waited_s=end.store.waited_s - start.store.waited_s,
    )
