"""The picture of a run is drawn from its log, whatever the log has so far."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from baltoro.train import curves


def line(step: int, phase: str, **by_kind: float) -> dict[str, Any]:
    return {
        "step": step, "phase": phase, "tokens": 1000 * step, "seconds": 0.1, "lr_scale": 1.0, "loss": 2.0,
        "by_kind": by_kind, "max_logit": 12.0, "clipped_heads": 0, "expert_load": 1.5,
    }  # fmt: skip


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


STEPS = [line(1, "copy", copy=4.0), line(2, "copy", copy=3.0), line(3, "language", copy=2.0, text=5.0)]
SCORES = {"step": 3, "tokens": 3000, "scores": {"single": {"mean": 0.5, "low": 0.4, "high": 0.6}}}


def test_a_picture_of_losses_phases_and_scores_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    lines: dict[str, tuple[list[float], list[float]]] = {}
    texts: list[str] = []
    plot, annotate = Axes.plot, Axes.annotate

    def plot_seen(self: Axes, x: Any, y: Any, *rest: Any, **options: Any) -> Any:
        lines[options.get("label", "")] = (list(x), list(y))
        return plot(self, x, y, *rest, **options)

    def annotate_seen(self: Axes, text: str, *rest: Any, **options: Any) -> Any:
        texts.append(text)
        return annotate(self, text, *rest, **options)

    monkeypatch.setattr(Axes, "plot", plot_seen)
    monkeypatch.setattr(Axes, "annotate", annotate_seen)
    curves.draw(write(tmp_path / "log.jsonl", [*STEPS, SCORES]), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "log.jsonl"]
    assert lines["copy"] == (pytest.approx([0.001, 0.002, 0.003]), pytest.approx([4.0, 3.9, 3.71]))
    assert lines["text"] == (pytest.approx([0.003]), [5.0])
    assert lines["single"] == (pytest.approx([0.003]), [0.5])
    assert texts == ["copy", "language"]


def test_a_log_without_steps_draws_nothing(tmp_path: Path) -> None:
    curves.draw(write(tmp_path / "log.jsonl", [SCORES]), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_without_matplotlib_there_is_no_picture_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    curves.draw(write(tmp_path / "log.jsonl", STEPS), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
