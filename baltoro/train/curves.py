"""The picture of a run: loss by kind over tokens, and what training is watched for. Read from log.jsonl."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "fontsize": 8, "frameon": False}
SMOOTHING = 0.9  # exponential mean over logged steps


def draw(log: Path, picture: Path) -> None:
    """Write `picture` (PNG) from a run's log. Does nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    scores = [entry for entry in steps if "scores" in entry]
    steps = [entry for entry in steps if "loss" in entry]
    if not steps:
        return
    figure, (losses, heads, rates) = plt.subplots(3, 1, figsize=(12, 12), sharex=True, height_ratios=(3, 2, 2))
    millions = [entry["tokens"] / 1e6 for entry in steps]
    for axes in (losses, rates):
        axes.set_prop_cycle(color=[plt.get_cmap("tab20")(index) for index in (*range(0, 20, 2), *range(1, 20, 2))])
    by_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry, x in zip(steps, millions, strict=True):
        for kind, loss in entry["by_kind"].items():
            by_kind[kind].append((x, loss))
    for kind, points in sorted(by_kind.items()):
        losses.plot([x for x, _ in points], smooth([y for _, y in points]), label=kind, linewidth=1)
    losses.set_ylabel("loss, nats a learned token")
    losses.set_ylim(bottom=0)
    losses.legend(**BESIDE)
    heads.plot(millions, [entry["max_logit"] for entry in steps], linewidth=0.8, label="largest score before softmax")
    heads.plot(millions, [entry["clipped_heads"] for entry in steps], linewidth=0.8, label="heads clipped")
    heads.plot(millions, [entry["expert_load"] for entry in steps], linewidth=0.8, label="worst expert load / mean")
    heads.set_yscale("symlog")
    heads.legend(**BESIDE)
    for kind, points in score_lines(scores, "tokens", 1e-6).items():
        rates.plot([x for x, _ in points], [y for _, y in points], marker="o", label=kind, linewidth=1)
    rates.plot(
        millions, [entry["lr_scale"] for entry in steps], color="grey", linewidth=0.8, label="learning rate / peak"
    )
    rates.set_ylim(0, 1.02)
    rates.set_ylabel("held-out score")
    rates.set_xlabel("million tokens")
    rates.legend(**BESIDE)
    start = 0
    for index in range(1, len(steps) + 1):  # name the phases
        if index == len(steps) or steps[index]["phase"] != steps[start]["phase"]:
            losses.axvline(millions[start], color="lightgrey", linewidth=0.8, zorder=0)
            losses.annotate(
                steps[start]["phase"], (millions[start], 1), xycoords=("data", "axes fraction"), rotation=30, fontsize=8
            )
            start = index
    figure.tight_layout()
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(picture)


def smooth(values: list[float]) -> list[float]:
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else SMOOTHING * smoothed[-1] + (1 - SMOOTHING) * value)
    return smoothed


def score_lines(entries: list[dict[str, Any]], along: str, scale: float = 1.0) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in entries:
        for kind, score in entry["scores"].items():
            lines[kind].append((scale * entry[along], score["mean"]))
    return lines
