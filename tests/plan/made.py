"""Plans of Kimi K2 for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from baltoro.plan import planner
from baltoro.plan.formats import format_of
from baltoro.plan.layout import parse
from baltoro.plan.memory import Wish
from baltoro.plan.planner import Plan
from tests.plan.anchors import CATALOGUE, K2


def plan(
    machine: str, *, layout: str | None = None, format: str | None = None, context: int = 32768, concurrency: int = 1,
    place: str | None = None, **changes: Any,
) -> Plan:  # fmt: skip
    """changes: of the catalogue's machine"""
    wish = Wish(
        context=context, concurrency=concurrency, layout=parse(layout) if layout else None, place=place
    )  # fmt: skip
    return planner.make(
        "kimi-k2-instruct", K2, replace(CATALOGUE.machines[machine], **changes), wish,
        card=CATALOGUE.gpus["RTX-4090"], format=format_of(format) if format else None,
    )  # fmt: skip
