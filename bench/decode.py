"""Tokens a second of a checkpoint: prefill, and decode of one and of many requests, beside transformers.

    python bench/decode.py [MODEL] [--prompt 512 --answer 128 --batch 8 --repeats 3]

Both run the same weights (transformers: rounded to bfloat16) in float32 with the same number of threads, taking
turns in one process; the best of `repeats` counts. Ours is the whole
engine, scheduler and sampler included. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import queue
import resource
import tempfile
import time
from datetime import UTC, datetime

import torch

from baltoro.config import ModelConfig, resolve
from baltoro.engine.engine import Engine, EngineConfig
from baltoro.engine.request import Request, SamplingParams, Step
from baltoro.model.load import load, save


def ours(engine: Engine, prompts: list[list[int]], answer: int) -> tuple[float, float]:
    """Seconds to the last first token, and from there to the last token."""
    steps: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
    started = time.perf_counter()
    for index, prompt in enumerate(prompts):

        def sink(step: Step, index: int = index) -> None:
            if step.token is not None:
                steps.put((index, time.perf_counter()))

        engine.submit(Request(prompt=prompt, sampling=SamplingParams(max_tokens=answer), sink=sink))
    seen: dict[int, float] = {}
    last = started
    for _ in range(len(prompts) * answer):
        index, last = steps.get()
        seen.setdefault(index, last)
    first = max(seen.values())
    return first - started, last - first


def theirs(model: torch.nn.Module, prompts: list[list[int]], answer: int) -> tuple[float, float]:
    """The same of transformers' generate with its cache: prompts of one length, as one padded batch."""
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        started = time.perf_counter()
        out = model(ids, use_cache=True)
        first = time.perf_counter()
        for _ in range(answer - 1):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        return first - started, time.perf_counter() - first


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from transformers import DeepseekV3ForCausalLM

    directory = resolve(args.model)
    config = ModelConfig.open(directory)
    mine = load(directory)
    with tempfile.TemporaryDirectory() as plain:
        bf16 = load(directory)  # transformers cannot dequantize partial fp8 blocks
        bf16.config = dataclasses.replace(config, weight_block_size=None)
        save(bf16, plain)
        peer = DeepseekV3ForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    best: dict[str, float] = {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with Engine(mine, EngineConfig(cache_bytes=2**28, cache_dtype=torch.float32, prefill_tokens=4096)) as engine:
        for _ in range(args.repeats):
            for batch in {1, args.batch}:
                prompts = torch.randint(0, config.vocab_size, (batch, args.prompt), generator=generator).tolist()
                for who, run in (("baltoro", lambda p: ours(engine, p, args.answer)),
                                 ("transformers", lambda p: theirs(peer, p, args.answer))):  # fmt: skip
                    prefill, decode = run(prompts)
                    rates = {"prefill": batch * args.prompt / prefill, "decode": batch * (args.answer - 1) / decode}
                    for work, rate in rates.items():
                        key = f"{who}_{work}_batch{batch}_tokens_per_s"
                        best[key] = max(best.get(key, 0.0), rate)
    print(
        json.dumps(
            {name: round(rate) for name, rate in sorted(best.items())}
            | {
                "model": args.model,
                "prompt": args.prompt,
                "answer": args.answer,
                "threads": args.threads,
                "peak_memory_bytes_before_run": peak,
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "date": datetime.now(UTC).date().isoformat(),
            }
        )
    )


if __name__ == "__main__":
    main()
