"""The two things that `baltoro doctor` does, each as data and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from baltoro.doctor import live, text

if TYPE_CHECKING:
    from baltoro.doctor.gather import Say
    from baltoro.kernels.formats import Format

Report = tuple[dict[str, Any], Iterator[str]]


def of_model(
    model: str, *, tokens: int, threads: int | None, format: Format | None, expert_memory: int | None, say: Say
) -> Report:
    from baltoro.doctor.gather import gather
    from baltoro.doctor.judge import judge

    facts = gather(model, tokens=tokens, threads=threads, format=format, expert_memory=expert_memory, say=say)
    verdict = judge(facts)
    return {"facts": asdict(facts), "verdict": asdict(verdict)}, text.lines(facts, verdict)


def of_server(url: str, *, seconds: float, key: str | None = None) -> Report:
    activity = live.watch(url, seconds, key)
    return {"activity": asdict(activity), "meaning": live.meaning(activity)}, live.lines(activity)
