"""A plan, or a refusal, as JSON: what `baltoro plan --json` prints and /plan.json answers. Bytes and seconds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import PlanError
from baltoro.plan.efficiency import Band
from baltoro.plan.formats import FORMATS
from baltoro.plan.machine import Machine
from baltoro.plan.memory import Wish
from baltoro.plan.planner import CONTEXTS, REQUESTS, Plan, layout_name
from baltoro.plan.weights import weights


def document(plan: Plan) -> dict[str, Any]:
    """For scripts: JSON types alone; bytes and seconds."""
    memory = plan.memory
    return {
        "model": plan.model,
        "fits": True,
        "format": plan.format.name,
        "quality": plan.format.quality,
        "machine": machine_document(plan.machine),
        "place": memory.place,
        "layout": layout_name(memory),
        "context": plan.wish.context,
        "concurrency": plan.wish.concurrency,
        "cache_bytes": {str(each): plan.cache_bytes(each) for each in CONTEXTS},
        "cache_bytes_by_requests": {
            str(count): {str(each): plan.cache_bytes(each, count) for each in CONTEXTS} for count in REQUESTS
        },
        "free_cache_tokens": memory.free_cache_tokens,
        "resident_bytes": round(plan.weights.resident),
        "expert_bytes": round(plan.weights.experts),
        "cold_bytes_per_token": round(plan.cold_bytes_per_token),
        "memory": [asdict(item) | {"bytes": round(item.bytes)} for item in memory.items],
        "capacity": {where: round(room) for where, room in memory.capacity},
        "experts_in_memory": memory.gpu_share + memory.ram_share,
        "tokens_per_s": _band(plan.tokens_per_s),
        "tokens_per_s_cold": plan.cold and _band(plan.cold),
        "tokens_per_s_by_context": {str(each): _band(band) for each, band in plan.by_context.items()},
        "tokens_per_s_by_hit_rate": {str(hit): value for hit, value in plan.by_hits.items()},
        "throughput": _band(plan.throughput) | asdict(plan.mix),
        "step": [
            {"resource": term.resource, "seconds": term.seconds.expected, "formula": term.formula}
            for term in plan.single.terms
        ],
        "binding": plan.single.binding,
        "prefill": [
            {
                "tokens": each.tokens, "tokens_per_s": _band(each.tokens_per_s), "ttft_s": _seconds(each.seconds),
                "binding": each.binding, "formula": each.formula,
            }
            for each in plan.prompts
        ],
        "load_s": _seconds(plan.load.seconds),
        "load_peak": {"where": plan.load_peak[0], "bytes": round(plan.load_peak[1]), "formula": plan.load_peak[2]},
        "disk": {name: round(value) for name, value in asdict(plan.disk).items()},
        "cost": plan.cost and asdict(plan.cost),
        "formats": [asdict(each) | {"tokens_per_s": _maybe(each.tokens_per_s)} for each in plan.formats],
        "layouts": [asdict(each) | {"tokens_per_s": _maybe(each.tokens_per_s)} for each in plan.layouts],
        "advice": [asdict(each) for each in plan.advice],
    }  # fmt: skip


def machine_document(machine: Machine) -> dict[str, Any]:
    return asdict(machine) | {
        "gpu": machine.gpu and machine.gpu.name,
        "gpu_memory_bytes": machine.gpu and machine.gpu.memory_bytes,
    }


def refused(model: str, config: ModelConfig, machine: Machine, wish: Wish, error: PlanError) -> dict[str, Any]:
    """The document of a plan that there is not."""
    sizes = {name: weights(config, format) for name, format in FORMATS.items()}
    per_token = counts.cache_bytes_per_token(config, value_bytes=wish.cache_value_bytes)
    return {
        "model": model, "fits": False, "error": error.message, "hint": error.hint, "short_bytes": error.short_bytes,
        "machine": machine_document(machine), "context": wish.context, "concurrency": wish.concurrency,
        "cache_bytes": {str(each): each * per_token for each in CONTEXTS},
        "weight_bytes": {name: round(each.whole) for name, each in sizes.items()},
        "tokens_per_s": None, "binding": "memory",
    }  # fmt: skip


def _band(band: Band) -> dict[str, float]:
    """Of rates: low, expected, high."""
    return {"low": band.least, "expected": band.expected, "high": band.most}


def _maybe(band: Band | None) -> dict[str, float] | None:
    return None if band is None else _band(band)


def _seconds(band: Band) -> dict[str, float]:
    """Of times, where the slowest is the highest."""
    return {"low": band.most, "expected": band.expected, "high": band.least}
