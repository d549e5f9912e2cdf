"""What a coding agent sends first: 24 tools and a prompt of 28,000 tokens, over HTTP, while others go on speaking."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from baltoro.chat.tokenizer import Tokenizer
from baltoro.weights.save import write
from tests import tiny, vocabulary

TOKENS = 28_000
WORDS = ("path", "edit", "read the file", "glob", "session", "0x1f", "naïve", "run", "{", "}", "\n", "    return")
MOST_BYTES = 160 * 2**20  # beside weights and cache: all of a chunk's activations, and the body with its many strings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """K2's architecture in miniature with K2's context, of sizes that the native kernels take."""
    directory = tmp_path_factory.mktemp("long-k2")
    vocabulary.write_vocabulary(directory)
    tokenizer = Tokenizer.open(directory)
    config = tiny.config(
        vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.num_base, eos_token_id=tokenizer.num_base + 1,
        hidden_size=64, intermediate_size=64, moe_intermediate_size=32, q_lora_rank=32, kv_lora_rank=32,
        qk_nope_head_dim=32, v_head_dim=32, max_position_embeddings=131_072,
    )  # fmt: skip
    write(directory, tiny.weights(config), config.to_dict())
    return directory


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[tuple[int, openai.OpenAI]]:
    command = [sys.executable, "-m", "baltoro", "serve", str(checkpoint), "--port", "0", "--max-context", "40000"]
    process = subprocess.Popen([*command, "--threads", "2"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(line for line in process.stderr if line.startswith("serving")).split(" on ")[1].split()[0]
    drained = threading.Thread(target=lambda: list(process.stderr or ()))
    drained.start()
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(url.removesuffix("/v1") + "/health").status_code == 200
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield process.pid, client
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    drained.join()


def tools() -> list[dict[str, Any]]:
    chance, declared = random.Random(1), list[dict[str, Any]]()
    for number in range(24):
        properties = {
            f"{chance.choice(WORDS[:3]).replace(' ', '_')}_{place}": {
                "type": chance.choice(["string", "integer", "boolean"]),
                "description": " ".join(chance.choices(WORDS, k=9)),
            }
            for place in range(4)
        }
        schema = {"type": "object", "properties": properties, "required": [next(iter(properties))]}
        about = " ".join(chance.choices(WORDS, k=30))
        function = {"name": f"Tool{number}", "description": about, "parameters": schema}
        declared.append({"type": "function", "function": function})
    return declared


def peak_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for a process's memory")
def test_a_first_turn_of_28_000_tokens_streams_within_its_memory_and_the_second_turn_finds_it(
    server: tuple[int, openai.OpenAI], checkpoint: Path
) -> None:
    pid, client = server
    chance, tokenizer = random.Random(0), Tokenizer.open(checkpoint)
    lengths = {word: len(tokenizer.encode(" " + word)) for word in WORDS}
    words: list[str] = []
    left = TOKENS + 2_000 - len(tokenizer.encode(json.dumps(tools())))
    while left > 0:
        words.append(chance.choice(WORDS))
        left -= lengths[words[-1]]
    messages: list[Any] = [
        {"role": "system", "content": " ".join(words)},
        {"role": "user", "content": "Fix the failing test."},
    ]
    asked: dict[str, Any] = {"model": "baltoro", "tools": tools(), "max_tokens": 8, "temperature": 0}
    small: dict[str, Any] = {"model": "baltoro", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    client.chat.completions.create(**small)  # everything that is made once
    before, spoken = peak_bytes(pid), 0

    first = client.chat.completions.create(
        **asked, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    others = threading.Thread(target=lambda: [client.chat.completions.create(**small) for _ in range(3)])
    others.start()
    usage = None
    for chunk in first:
        spoken += len(chunk.choices)
        usage = chunk.usage or usage
    others.join(60)
    assert not others.is_alive()
    assert usage is not None
    assert spoken >= 2
    assert usage.prompt_tokens >= TOKENS
    assert peak_bytes(pid) - before < MOST_BYTES

    messages += [{"role": "assistant", "content": "I read it."}, {"role": "user", "content": "Go on."}]
    second = client.chat.completions.create(**asked, messages=messages)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    found = second.usage.prompt_tokens_details.cached_tokens
    assert found is not None
    assert usage.prompt_tokens - 128 <= found < usage.prompt_tokens
    told = httpx.get(str(client.base_url).removesuffix("/v1/") + "/stats").json()["engine"]
    assert told["steps"] >= TOKENS // 2048, "in chunks"
    assert told["running"] == told["waiting"] == 0
