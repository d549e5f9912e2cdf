"""Layers of Kimi K2's real size with random weights: ours beside llama.cpp, taking turns on one machine.

    python bench/decode_k2.py [--llama-bench PROGRAM --models DIR] [--prompt 512 --answer 32 --rounds 3 --threads 2]
        [--format int4]

One dense layer, two mixtures of 48 experts, 1,024 tokens, in int4 and int8. DIR holds Q4_0.gguf and Q8_0.gguf, the same
shapes as bench/peers/k2_gguf.py writes them; without it ours runs alone. Both get huge pages, and memory anew in each
round: in a virtual machine some of it is slower than other. The best of the rounds counts. Prints a JSON line for each
format.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.kernels import measure
from baltoro.kernels.formats import Format
from baltoro.kernels.slab import Slab
from baltoro.kernels.targets import chosen_target
from baltoro.model import slices
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.bench import CHUNK_TOKENS
from baltoro.model.transformer import Transformer

PEERS: dict[Format, str] = {"int4": "Q4_0", "int8": "Q8_0"}
DENSE, MIXTURES, EXPERTS, VOCABULARY = 1, 2, 48, 1024
PAGE_TOKENS = 64
ROOF_BYTES = 2**31


def ours(model: Transformer, prompt: int, answer: int) -> tuple[float, float]:
    """Tokens a second: of a prompt, 2,048 tokens a forward, and of `answer` single tokens from an empty context."""
    config = model.config
    pages = tuple(range(-(-max(prompt, answer) // PAGE_TOKENS)))
    cache = LatentCache(config, num_pages=len(pages), page_tokens=PAGE_TOKENS)

    def run(start: int, end: int) -> None:
        ids = torch.randint(0, config.vocab_size, (end - start,))
        model(Batch(ids=ids, positions=torch.arange(start, end), edges=(0, end - start), pages=(pages,),
                    logit_rows=torch.tensor([end - start - 1])), cache)  # fmt: skip

    began = time.perf_counter()
    for start in range(0, prompt, CHUNK_TOKENS):
        run(start, min(start + CHUNK_TOKENS, prompt))
    read = time.perf_counter()
    for position in range(answer):
        run(position, position + 1)
    return prompt / (read - began), answer / (time.perf_counter() - read)


def theirs(program: Path, file: Path, prompt: int, answer: int, threads: int) -> tuple[float, float]:
    """The same two, of llama-bench; it warms up by itself."""
    repeated = "2" if prompt <= CHUNK_TOKENS else "1"
    command = [str(program), "-m", str(file), "-t", str(threads), "-r", repeated, "-o", "json", "-lm", "none",
               "-p", str(prompt), "-n", str(answer)]  # fmt: skip
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found = {bool(row["n_prompt"]): max(row["samples_ts"]) for row in json.loads(printed)}
    return found[True], found[False]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--format", choices=PEERS, action="append")
    given = parser.parse_args()
    if (given.llama_bench is None) != (given.models is None):
        parser.error("--llama-bench and --models go together")
    torch.set_num_threads(given.threads)
    scratch = Slab(ROOF_BYTES).cut((ROOF_BYTES,), torch.uint8).fill_(1)
    for format in given.format or PEERS:
        print(json.dumps(measured(format, scratch, given)), flush=True)


def measured(format: Format, scratch: Tensor, given: argparse.Namespace) -> dict[str, object]:
    short = slices.shorten(ModelConfig.open("kimi-k2-instruct"), dense=DENSE, mixtures=MIXTURES, vocabulary=VOCABULARY)
    mine: list[tuple[float, float]] = []
    peer: list[tuple[float, float]] = []
    roofs: list[float] = []
    with torch.inference_mode():
        for _ in range(given.rounds):
            model = slices.make(short, format, experts=EXPERTS)  # new memory each round, as the peer has
            ours(model, given.prompt, 4)
            roofs.append(measure.read_roof(scratch, chosen_target()))
            mine.append(ours(model, given.prompt, given.answer))
            del model
            if given.llama_bench is not None:
                file = given.models / f"{PEERS[format]}.gguf"
                peer.append(theirs(given.llama_bench, file, given.prompt, given.answer, given.threads))
    row: dict[str, object] = {"bench": "decode_k2", "format": format, "prompt": given.prompt, "answer": given.answer}
    for name, index in (("prefill", 0), ("decode", 1)):
        best = max(pair[index] for pair in mine)
        row[f"{name}_tokens_per_s"] = round(best, 2)
        if peer:
            other = max(pair[index] for pair in peer)
            row |= {f"{name}_llama_cpp_{PEERS[format]}": round(other, 2), f"{name}_ratio": round(best / other, 2)}
    return row | {
        "read_roof_gbps": round(max(roofs), 1), "target": chosen_target(), "threads": given.threads,
        "cpu": platform.processor() or platform.machine(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
