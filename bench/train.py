"""Training tokens a second: our step (MuonClip, bfloat16) beside transformers' DeepseekV3 with torch's AdamW.

    python bench/train.py [--recipe recipes/pretrain_nano.toml --tokens 8192 --seconds 60 --threads 2]

Both train the model of the recipe's [model] from the same weights on the same sequences, taking turns in one process
with the same number of threads; the best step of each counts. transformers runs in whichever of its own ways is
fastest here: attention eager or sdpa, experts eager, batched or grouped, bfloat16 autocast or float32.
Before the clock starts both must give the same loss in float32. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor

from baltoro.model.batch import Batch
from baltoro.model.load import initialise, save
from baltoro.train import loop
from baltoro.train.data import Microbatch, PhaseData
from baltoro.train.recipe import Recipe, read
from baltoro.train.state import TrainState

ROOT = Path(__file__).parents[1]
SEQUENCE = 256  # tokens; documents of one length, so that neither side pads


class Sequences:
    """Stands in for PhaseData: the same microbatches of random ids in every step, all tokens learned."""

    kinds = ("random",)

    def __init__(self, vocabulary: int, lanes: int, microbatch_tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (lanes, max(microbatch_tokens // SEQUENCE, 1), min(SEQUENCE, microbatch_tokens))
        self.ids = torch.randint(0, vocabulary, shape, generator=generator)  # (lanes, B, L)

    def microbatch(self, _step: int, lane: int) -> Microbatch:
        ids = self.ids[lane]
        batch = Batch.of(cast("list[list[int]]", ids.tolist()))
        rows = torch.arange(ids.numel()).view_as(ids)[:, :-1].flatten()
        kinds = torch.zeros(len(rows), dtype=torch.int64)
        return Microbatch(dataclasses.replace(batch, logit_rows=rows), ids[:, 1:].flatten(), kinds)


def our_step(state: TrainState, data: Sequences, recipe: Recipe) -> None:
    lanes = len(data.ids)
    loop.train_step(state, cast(PhaseData, data), lanes, recipe.balance_rate, 1.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """One of the ways in which transformers can run the model."""

    attention: str
    experts: str
    dtype: torch.dtype

    def loss(self, peer: Any, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return peer(input_ids=ids, labels=ids, use_cache=False).loss

    def choose(self, peer: Any) -> None:
        peer.set_attn_implementation(self.attention)
        peer.set_experts_implementation(self.experts)

    def __str__(self) -> str:
        precision = "bfloat16 autocast" if self.dtype == torch.bfloat16 else "float32"
        return f"{self.attention} attention, {self.experts} experts, {precision}"


def fastest(peer: Any, ids: Tensor) -> tuple[Way, dict[str, float]]:
    """The way with the shortest forward and backward of one microbatch, and the seconds of all that work here."""
    seconds: dict[Way, float] = {}
    for attention, experts, dtype in itertools.product(
        ("eager", "sdpa"), ("eager", "batched_mm", "grouped_mm"), (torch.bfloat16, torch.float32)
    ):
        way = Way(attention, experts, dtype)
        way.choose(peer)
        try:
            seconds[way] = min(timed(lambda way=way: way.loss(peer, ids).backward()) for _ in range(2))
        except (RuntimeError, NotImplementedError):  # what this build of torch has no CPU kernel for
            continue
        finally:
            peer.zero_grad(set_to_none=True)
    best = min(seconds, key=lambda way: seconds[way])
    best.choose(peer)
    return best, {str(way): round(taken, 4) for way, taken in seconds.items()}


def peer_step(peer: Any, optimizer: torch.optim.Optimizer, way: Way, ids: Tensor) -> None:
    for lane in ids:
        (way.loss(peer, lane) / len(ids)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def same_loss(state: TrainState, data: Sequences, peer: Any) -> None:
    """Both sides compute the same function, or the comparison means nothing."""
    microbatch = data.microbatch(0, 0)
    trained_in, state.model.dtype = state.model.dtype, torch.float32
    with torch.no_grad():
        ours = functional.cross_entropy(state.model(microbatch.batch), microbatch.targets)
        theirs = Way("eager", "eager", torch.float32).loss(peer, data.ids[0])
    state.model.dtype = trained_in
    assert abs(float(ours - theirs)) < 1e-3, f"losses differ: {float(ours)} and {float(theirs)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Training tokens a second, beside transformers.")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "pretrain_nano.toml")
    parser.add_argument("--tokens", type=int, help="of a step; default: the recipe's")
    parser.add_argument("--seconds", type=float, default=60.0, help="of taking turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    recipe = read(args.recipe)
    if recipe.model is None:
        parser.error(f"{args.recipe} has no [model]")
    tokens = args.tokens or recipe.tokens_per_step
    microbatch_tokens = min(recipe.microbatch_tokens, tokens)
    if tokens % microbatch_tokens or microbatch_tokens % min(SEQUENCE, microbatch_tokens):
        parser.error(f"--tokens must be a multiple of {microbatch_tokens}")
    config = dataclasses.replace(recipe.model, weight_block_size=None)  # transformers trains no block-fp8
    data = Sequences(config.vocab_size, tokens // microbatch_tokens, microbatch_tokens)
    with tempfile.TemporaryDirectory() as directory:
        save(initialise(config, seed=recipe.seed, start=recipe.start), directory)
        state = loop.start(dataclasses.replace(recipe, init=directory, model=None))
        peer = transformers.DeepseekV3ForCausalLM.from_pretrained(directory, dtype=torch.float32)
    peer.train()
    Way("eager", "eager", torch.float32).choose(peer)
    same_loss(state, data, peer)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, fused=True)
    way, ways = fastest(peer, data.ids[0])
    our_step(state, data, recipe)
    peer_step(peer, optimizer, way, data.ids)
    ours: list[float] = []
    theirs: list[float] = []
    began = time.perf_counter()
    while len(ours) < 3 or time.perf_counter() - began < args.seconds:
        ours.append(timed(lambda: our_step(state, data, recipe)))
        theirs.append(timed(lambda: peer_step(peer, optimizer, way, data.ids)))
    print(
        json.dumps(
            {
                "baltoro_tokens_per_s": round(tokens / min(ours)),
                "transformers_tokens_per_s": round(tokens / min(theirs)),
                "ratio": round(min(theirs) / min(ours), 2),
                "transformers_way": str(way),
                "transformers_microbatch_s": ways,
                "steps": len(ours),
                "tokens_per_step": tokens,
                "microbatch_tokens": microbatch_tokens,
                "sequence_tokens": data.ids.shape[-1],
                "recipe": args.recipe.name,
                "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
                "baltoro_dtype": recipe.dtype,
                "threads": args.threads,
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "date": datetime.now(UTC).date().isoformat(),
            }
        )
    )


if __name__ == "__main__":
    main()
