"""The picture of a run of reinforcement learning: rewards by kind, the policy, held-out scores. Read from log.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from baltoro.train.curves import BESIDE, score_lines, smooth


def draw(log: Path, picture: Path) -> None:
    """Write `picture` (PNG) from a run's log. Does nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    scores = [entry for entry in entries if "scores" in entry]
    lines = [entry for entry in entries if "reward" in entry]
    if not lines:
        return
    figure, axes = plt.subplots(5, 1, figsize=(12, 16), sharex=True, height_ratios=(3, 2, 2, 2, 3))
    rewards, policy, distance, lengths, heldout = axes
    steps = [entry["step"] for entry in lines]
    for kind in sorted({kind for entry in lines for kind in entry["by_kind"]}):
        seen = [(entry["step"], entry["by_kind"][kind]) for entry in lines if kind in entry["by_kind"]]
        rewards.plot([x for x, _ in seen], smooth([y for _, y in seen]), label=kind, linewidth=1)
    rewards.plot(steps, smooth([entry["reward"] for entry in lines]), label="all", color="black", linewidth=1.5)
    rewards.set_ylabel("reward")
    policy.plot(steps, [entry["entropy"] for entry in lines], label="entropy, nats a token", linewidth=0.8)
    policy.plot(steps, [entry["temperature"] for entry in lines], label="temperature", linewidth=0.8)
    policy.plot(steps, [entry["agreed"] for entry in lines], label="groups that agree", linewidth=0.8)
    far = [(entry["step"], entry["kl"]) for entry in lines if entry["kl"] is not None]
    distance.plot([x for x, _ in far], [y for _, y in far], label="KL to the start, nats a token", linewidth=0.8)
    distance.plot(
        steps, [entry["mismatch"] for entry in lines], label="|trainer - engine|, nats a token", linewidth=0.8
    )
    distance.set_yscale("symlog", linthresh=1e-3)
    lengths.plot(steps, [entry["length"] for entry in lines], label="drawn tokens an episode", linewidth=0.8)
    lengths.plot(steps, [100 * entry["cut"] for entry in lines], label="cut, %", linewidth=0.8)
    for kind, points in score_lines(scores, "step").items():
        heldout.plot([x for x, _ in points], [y for _, y in points], marker="o", label=kind, linewidth=1)
    heldout.set_ylim(0, 1.02)
    heldout.set_ylabel("held-out score")
    heldout.set_xlabel("iteration")
    for each in axes:
        each.legend(**BESIDE)
    figure.tight_layout()
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(picture)
