"""A layer of Kimi K2's experts at real size: ours beside kt-kernel, taking turns on one machine.

    python bench/experts.py [--kt DIR] [--experts 96 --tokens 1 16 171 --rounds 3 --seconds 1 --threads 2]

int4 in groups of 32 beside RAWINT4, and block-fp8 beside FP8. DIR is what `pip install --no-deps --target DIR
kt-kernel` filled; without it ours runs alone. The best of the rounds counts. A JSON line for each format and size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from baltoro.config import ModelConfig
from baltoro.kernels import measure
from baltoro.kernels.formats import Format
from baltoro.kernels.targets import chosen_target

PEERS: dict[Format, str] = {"int4": "RAWINT4", "fp8": "FP8"}


class Peer:
    def __init__(self, directory: Path, method: str, experts: int, threads: int) -> None:
        program = Path(__file__).parent / "peers" / "kt_experts.py"
        self._process = subprocess.Popen(
            [sys.executable, str(program), method, str(experts), str(threads)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(directory)},
        )  # fmt: skip
        while (line := self._read()) != "ready":
            print(line, file=sys.stderr)

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"kt-kernel ended with status {self._process.wait()}")
        return line.strip()

    def run(self, tokens: int, seconds: float) -> tuple[float, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{tokens} {seconds}\n")
        self._process.stdin.flush()
        best, touched = self._read().split()
        return float(best), int(touched)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kt", type=Path)
    parser.add_argument("--experts", type=int, default=96)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 171])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config, target = ModelConfig.open("kimi-k2-instruct"), chosen_target()
    for format, method in PEERS.items():
        peer = Peer(given.kt, method, given.experts, given.threads) if given.kt else None
        mixture = measure.random_mixture(config, format, given.experts)
        peak = measure.peak(format, target)
        flops = 6 * config.hidden_size * config.moe_intermediate_size * config.num_experts_per_tok
        for tokens in given.tokens:
            mine, others = [], []
            for _ in range(given.rounds):
                mine.append(measure.row_of(config, mixture, format, tokens, tokens, peak, given.seconds, target))
                if peer:
                    others.append(peer.run(tokens, given.seconds))
            best = min(mine, key=lambda row: row.seconds)
            row: dict[str, object] = {
                "bench": "experts", "format": format, "experts": given.experts, "tokens": tokens,
                "gbps": round(max(row.gbps for row in mine), 1),
                "roof_gbps": round(max(row.roof_gbps for row in mine), 1),
                "gflops": round(best.gflops), "peak_gflops": round(peak),
            }  # fmt: skip
            if others:
                seconds, touched = min(others)
                row |= {
                    "kt_kernel": method, "kt_gbps": round(touched * mixture.expert_bytes / seconds / 1e9, 1),
                    "kt_gflops": round(flops * tokens / seconds / 1e9), "ratio": round(seconds / best.seconds, 2),
                }  # fmt: skip
            row |= {"target": target, "threads": given.threads, "cpu": platform.machine(),
                    "date": datetime.now(UTC).date().isoformat()}  # fmt: skip
            print(json.dumps(row), flush=True)
        if peer:
            peer.close()


if __name__ == "__main__":
    main()
