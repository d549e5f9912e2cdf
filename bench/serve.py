"""Servers beside each other: ours, vLLM and llama-server, the same model and load, one after the other.

    python bench/serve.py [--model nano] [--vllm PROGRAM --vllm-model DIR] [--llama PROGRAM --llama-model FILE.gguf]
        [--streams 1,8,32] [--prompt 128 --answer 64] [--shared 2000] [--rounds 2] [--threads 2]

DIR and FILE: the same model as those read one, by bench/peers/nano_hf.py. Each server is started, asked a little,
loaded with every number of streams, and stopped; rounds alternate between the servers, and the best round of each
counts, whoever's it is. Prompts are random token ids, all different, and answers are drawn at temperature 1 to their
full length. With `--shared` a second load follows: prompts that begin alike, one stream, the first time and later ones.
Prints a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
import load

START_S = 300.0
Json = load.Json


@dataclass(slots=True)
class Server:
    name: str
    command: list[str]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    pid: int = 0  # while it runs

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its URL, once it answers."""
        with tempfile.TemporaryFile() as log:
            child = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=os.environ | self.environment, start_new_session=True
            )
            self.pid = child.pid
            try:
                self._wait(child, log)
                yield self.url
            finally:
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.killpg(child.pid, signal.SIGTERM)
                    try:
                        child.wait(30)
                    except subprocess.TimeoutExpired:
                        os.killpg(child.pid, signal.SIGKILL)
                        child.wait()

    def _wait(self, child: subprocess.Popen[bytes], log: tempfile._TemporaryFileWrapper[bytes]) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until and child.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        log.seek(0)
        raise SystemExit(f"{self.name} does not answer:\n{log.read().decode(errors='replace')[-3000:]}")


def servers(given: argparse.Namespace) -> list[Server]:
    threads, context = str(given.threads), max(given.prompt, given.shared + 64) + given.answer
    ours = [sys.executable, "-m", "baltoro", "serve", given.model, "--port", "8110", "--threads", threads]
    found = [Server("baltoro", [*ours, *given.ours], 8110)]
    if given.vllm:
        command = [given.vllm, "serve", given.vllm_model, "--dtype", given.vllm_dtype, "--port", "8111"]
        command += ["--host", "127.0.0.1", "--served-model-name", "nano", "--max-num-seqs", "32"]
        command += ["--max-model-len", str(max(context, 2048))]
        silent = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
        found.append(Server("vllm", command, 8111, silent | {"VLLM_CPU_OMP_THREADS_BIND": f"0-{given.threads - 1}"}))
    if given.llama:
        slots = max(given.streams)
        command = [given.llama, "-m", given.llama_model, "--host", "127.0.0.1", "--port", "8112", "-np", str(slots)]
        command += ["-t", threads, "-c", str(slots * context), "--no-webui", "--yarn-beta-fast", "1"]
        found.append(Server("llama-server", [*command, "--yarn-beta-slow", "1", *given.llama_option], 8112))
    return found


def body(prompt: list[int], answer: int, seed: int) -> Json:
    """For all of them: nothing is cut from the distribution, and the answer has its full length."""
    return {
        "model": "nano", "prompt": prompt, "max_tokens": answer, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
        "min_p": 0.0, "seed": seed, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


class Prompts:
    """Random ids that every one of the servers takes."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def ids(self, count: int) -> list[int]:
        return [self._chance.randrange(300, 1700) for _ in range(count)]

    def bodies(self, count: int, prompt: int, answer: int, shared: list[int] | None = None) -> list[Json]:
        begin = shared or []
        return [body(begin + self.ids(prompt), answer, self._chance.randrange(2**31)) for _ in range(count)]


def measure(server: Server, given: argparse.Namespace, round_: int) -> dict[str, Json]:
    prompts = Prompts(round_)
    with server.running() as url:
        url += "/v1/completions"
        load.run(url, prompts.bodies(8, given.prompt, given.answer), 4)
        told: dict[str, Json] = {}
        for streams in given.streams:
            bodies = prompts.bodies(given.requests * max(streams, 4), given.prompt, given.answer)
            told[str(streams)] = load.run(url, bodies, streams).report()
        if given.shared:
            told["shared"] = _shared(url, prompts, given.shared)
    return told


def _shared(url: str, prompts: Prompts, tokens: int) -> Json:
    """Time to the first token of new prompts, and of others that begin like one of them; the rest is 32 new tokens."""
    first: list[float] = []
    later: list[float] = []
    for _ in range(8):
        begin = prompts.ids(tokens)
        for times in (first, later):
            (answer,) = load.run(url, prompts.bodies(1, 32, 2, begin), 1).answers
            times.append(answer.first_s or float("nan"))
    return {"tokens": tokens, "first_ms": round(1e3 * median(first), 2), "later_ms": round(1e3 * median(later), 2)}


def best(rounds: list[dict[str, Json]]) -> dict[str, Json]:
    """By output tokens a second; of the shared prompts the least."""
    told = {
        streams: max((each[streams] for each in rounds), key=lambda report: report["output_tokens_per_s"])
        for streams in rounds[0]
        if streams != "shared"
    }
    if "shared" in rounds[0]:
        told["shared"] = min((each["shared"] for each in rounds), key=lambda report: report["later_ms"])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--ours", nargs="*", default=[], help="further options of baltoro serve, without their --")
    parser.add_argument("--vllm")
    parser.add_argument("--vllm-model")
    parser.add_argument("--vllm-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--llama")
    parser.add_argument("--llama-model")
    parser.add_argument("--llama-option", action="append", default=[], help="as --llama-option=-fa --llama-option=off")
    parser.add_argument("--streams", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4, help="of each stream")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--shared", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    given.ours = [f"--{each}" for each in given.ours]
    found = servers(given)
    rounds: dict[str, list[dict[str, Json]]] = {server.name: [] for server in found}
    for round_ in range(given.rounds):
        for server in found:
            rounds[server.name].append(measure(server, given, round_))
            print(server.name, json.dumps(rounds[server.name][-1]), file=sys.stderr)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": given.threads}
    asked = {"prompt": given.prompt, "answer": given.answer, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    print(json.dumps(machine | asked | {name: best(each) for name, each in rounds.items()}))


if __name__ == "__main__":
    main()
