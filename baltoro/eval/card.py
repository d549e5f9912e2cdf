"""The 32 benchmarks of Kimi K2's card: how each was run there, who runs it best, and what was published.

benchmarks.json has the protocols with their sources, published.json the card's own tables.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from baltoro.errors import BaltoroError

Json = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One row of the card."""

    benchmark: str
    metric: str
    section: str
    runner: str  # a runner of benchmarks.json, or git:OWNER/NAME
    runner_name: str  # what the runner calls it
    samples: int  # answers to each question, whose mean is the score
    max_tokens: int
    temperature: float
    judge: str | None  # a model that judges or plays a part
    needs: tuple[str, ...]  # download, docker, gated, git, ...
    task: str | None  # ours, where there is one
    note: str

    @property
    def slug(self) -> str:
        """A name to type: the benchmark's, and its metric's where it stands twice."""
        twice = [each.benchmark for each in benchmarks()].count(self.benchmark) > 1
        name = f"{self.benchmark} {self.metric}" if twice else self.benchmark
        return re.sub(r"\W+", "-", re.sub(r"\(.*?\)", "", name).strip()).lower().strip("-") + (
            "-agentless" if "Agentless" in name else ""
        )


def _read(name: str) -> Json:
    return json.loads(files("baltoro.eval").joinpath(name).read_text("utf-8"))


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    rows: list[dict[str, Json]] = _read("benchmarks.json")["benchmarks"]
    return tuple(Benchmark(needs=tuple(row.pop("needs")), **row) for row in rows)


def find(name: str) -> Benchmark:
    """By slug or by the card's own name; a name that means another thing on PyPI is refused with what to take."""
    trap = _read("benchmarks.json")["traps"].get(name)
    exact = [each for each in benchmarks() if name in (each.slug, each.benchmark)]
    if len(exact) == 1:
        return exact[0]
    if trap:
        raise BaltoroError(f"{name}: {trap}", hint="`baltoro eval list` has the names of the card")
    near = [each.slug for each in benchmarks() if name.lower() in each.slug]
    raise BaltoroError(
        f"{name} is {'several benchmarks' if len(exact) > 1 or near else 'no benchmark'} of the card",
        hint=f"one of {', '.join(near)}" if near else "`baltoro eval list` has the names",
    )


def command(found: Benchmark, url: str, model: str) -> str:
    """A line of shell that runs it by the card's protocol; what BALTORO_API_KEY holds is named, never written."""
    if found.runner.startswith("git:"):
        return f"git clone https://github.com/{found.runner[4:]}  # and follow its README, with the protocol above"
    form: str = _read("benchmarks.json")["runners"][found.runner]["command"]
    values = {"name": found.runner_name, "samples": found.samples, "temperature": found.temperature,
              "max_tokens": found.max_tokens}  # fmt: skip
    address = url.rstrip("/").removesuffix("/v1")
    return form.format(url=shlex.quote(address), model=shlex.quote(model), **values)


def missing(found: Benchmark) -> str:
    """What keeps it from running by a command here: the package to install, or a repository; nothing if it can."""
    if found.runner.startswith("git:"):
        return f"no package of an index has it: {found.runner[4:]} on GitHub"
    runner = _read("benchmarks.json")["runners"][found.runner]
    return "" if find_spec(runner["module"]) else f"pip install '{runner['package']}'"


def published() -> Mapping[str, Mapping[str, float]]:
    """benchmark and metric -> model -> percent; models without a figure are left out."""
    return {
        f"{row['benchmark']}|{row['metric']}": {
            model: cell["value"] for model, cell in row["scores"].items() if cell.get("value") is not None
        }
        for row in _read("published.json")["instruct"]
    }
