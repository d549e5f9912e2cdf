"""Kill a small run with SIGKILL at random moments, start it again each time, compare its end with an unbroken one's.

    PYTHONPATH=. python tests/train/kill_runs.py OUT [--kills 10] [--seed 0]

Every step saves, so that the moments fall into steps, into files being written, and between renames. Prints one line of
JSON; exit 1 where losses, log or any bit of the state differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from baltoro.train import loop
from baltoro.train.distributed import World
from tests.train import tiny_runs

STEPS = 30


def train(out: Path) -> None:
    recipe = tiny_runs.recipe(out, phases=(tiny_runs.phase(steps=STEPS),), save_minutes=0.0)
    assert loop.run(World.alone(), recipe, None) is not None


def steps_of(out: Path) -> int:
    log = out / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def forked(out: Path, kill: tuple[int, float] | None) -> bool:
    """A process that trains, killed so many seconds after its log has so many steps. True where it had finished."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(out)
            code = 0
        finally:
            os._exit(code)
    if kill is not None:
        while steps_of(out) < kill[0] and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        time.sleep(kill[1])  # a random moment is what is wanted
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "a run failed by itself"
    return True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole, killed = options.out / "whole", options.out / "killed"
    shutil.rmtree(options.out, ignore_errors=True)
    began = time.monotonic()
    forked(whole, None)
    step, rng = (time.monotonic() - began) / STEPS, random.Random(options.seed)
    reached: list[int] = []  # steps in the log at each kill
    targets = sorted(rng.randrange(STEPS - 5) for _ in range(options.kills))
    while len(reached) < options.kills and not forked(killed, (targets[len(reached)], rng.uniform(0, step))):
        reached.append(steps_of(killed))
    forked(killed, None)
    found, expected = tiny_runs.saved(killed / "state"), tiny_runs.saved(whole / "state")
    same_state = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    same_log = tiny_runs.log(killed) == tiny_runs.log(whole)
    losses = [tiny_runs.log(out)[-1]["loss"] for out in (killed, whole)]
    print(json.dumps({"kills": len(reached), "at_steps": reached, "last_losses": losses, "same_log": same_log,
                      "same_state": same_state}))  # fmt: skip
    return 0 if same_state and same_log and len(reached) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
