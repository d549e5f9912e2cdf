"""Which engine a plan is for, and its launch."""

from __future__ import annotations

from baltoro.errors import PlanError
from baltoro.plan.launch import others, sglang, vllm
from baltoro.plan.launch.processes import Launch, Site
from baltoro.plan.planner import Plan

ENGINES = ("vllm", "sglang", "ktransformers", "tensorrt-llm", "tgi", "baltoro")


def default(plan: Plan) -> str:
    return {"gpu": "vllm", "hybrid": "ktransformers"}.get(plan.memory.place, "baltoro")


def launch(plan: Plan, engine: str, site: Site, *, prefill_nodes: int | None = None) -> Launch:
    """prefill_nodes: SGLang reads prompts on so many nodes, and answers on the others."""
    if prefill_nodes is not None and engine != "sglang":
        raise PlanError(
            f"--prefill-nodes with {engine}", hint="prefill and decode apart are planned for --engine sglang"
        )
    if engine in ("vllm", "sglang") and (plan.memory.place != "gpu" or plan.memory.layout is None):
        raise PlanError(
            f"{engine} wants the whole model on GPUs, and the plan is {plan.memory.place}",
            hint="--place gpu, or --engine ktransformers or baltoro",
        )
    if engine == "sglang" and prefill_nodes is not None:
        return sglang.disaggregated(plan, site, prefill_nodes)
    makers = {
        "vllm": vllm.launch, "sglang": sglang.launch, "ktransformers": others.ktransformers,
        "tensorrt-llm": others.tensorrt, "tgi": others.tgi, "baltoro": others.ours,
    }  # fmt: skip
    if engine not in makers:
        raise PlanError(f"the engine {engine!r}", hint=f"one of {', '.join(ENGINES)}")
    return makers[engine](plan, site)
