"""SGLang: tensor parallel over nodes; or prefill and decode apart, each a group of nodes, behind its router.

tests/plan/test_launch.py has SGLang's own ServerArgs read every line that is written here.
"""

from __future__ import annotations

from baltoro.errors import PlanError
from baltoro.plan.launch.processes import Launch, Process, Site, gateway, load_seconds
from baltoro.plan.layout import Layout, cache_per_token, per_gpu
from baltoro.plan.machine import GPU_SHARE
from baltoro.plan.memory import GPU_CHUNK, activations
from baltoro.plan.planner import Plan

IMAGE = "lmsysorg/sglang:v0.5.23"
DIST_PORT, ROUTER_PORT = 20000, 8001


def launch(plan: Plan, site: Site) -> Launch:
    layout = plan.memory.layout
    assert layout is not None
    if layout.dcp > 1:
        raise PlanError(
            f"{layout.name} for SGLang", hint="decode context parallel is planned for vLLM alone: --engine vllm"
        )
    nodes = range(plan.machine.nodes)
    return Launch(
        engine="sglang", image=IMAGE, install="pip install 'sglang>=0.5.23'",
        processes=tuple(_process(plan, site, "sglang", nodes, node) for node in nodes),
        gateway=gateway(site, (f"http://{site.host(0)}:{site.port}",)), load_s=load_seconds(plan),
        notes=("every node needs the same files at the same path, or a hub that it reaches",),
    )  # fmt: skip


def disaggregated(plan: Plan, site: Site, prefill_nodes: int) -> Launch:
    """The first nodes read prompts, the others write answers; caches go over InfiniBand."""
    layout, count = plan.memory.layout, plan.machine.nodes
    assert layout is not None
    if not 1 <= prefill_nodes < count:
        raise PlanError(f"{prefill_nodes} of {count} nodes for prefill", hint="at least one for each of both")
    groups = {"prefill": range(prefill_nodes), "decode": range(prefill_nodes, count)}
    for role, nodes in groups.items():
        gpus = len(nodes) * plan.machine.gpus
        alone = Layout(dp=gpus, ep=True)  # attention on each GPU, experts shared out over the group
        cache = plan.wish.context * cache_per_token(plan.config, alone, value_bytes=plan.wish.cache_value_bytes)
        needed = sum(per_gpu(plan.config, plan.weights, alone)) + cache + activations(plan.config, GPU_CHUNK)
        if (short := needed - plan.machine.usable_gpu) > 0:
            raise PlanError(
                f"{role} on {len(nodes)} nodes needs {needed / 1e9:,.0f} GB of each GPU, {short / 1e9:,.1f} too many",
                hint="each group holds the whole model: more nodes, or no --prefill-nodes",
                short_bytes=int(short) + 1,
            )
        if plan.config.n_routed_experts % gpus:
            raise PlanError(
                f"{plan.config.n_routed_experts} experts do not divide by {role}'s {gpus} GPUs", hint="other nodes"
            )
    processes = [_process(plan, site, role, nodes, node, role=role) for role, nodes in groups.items() for node in nodes]
    first, second = site.host(0), site.host(prefill_nodes)
    router = Process(
        name="router", node=0, port=ROUTER_PORT,
        argv=("python", "-m", "sglang_router.launch_router", "--pd-disaggregation", "--prefill",
              f"http://{first}:{site.port}", "--decode", f"http://{second}:{site.port}", "--host", "0.0.0.0",
              "--port", str(ROUTER_PORT)),
    )  # fmt: skip
    return Launch(
        engine="sglang", image=IMAGE, install="pip install 'sglang>=0.5.23' sglang-router mooncake-transfer-engine",
        processes=(*processes, router), gateway=gateway(site, (f"http://{first}:{ROUTER_PORT}",)),
        load_s=load_seconds(plan),
        notes=(
            f"{site.devices} carries caches from prefill to decode; `ibv_devices` names yours (--ib-devices)",
            "the router is a program of its own, beside the first node",
        ),
    )  # fmt: skip


def _process(plan: Plan, site: Site, name: str, nodes: range, node: int, *, role: str | None = None) -> Process:
    layout, machine, wish = plan.memory.layout, plan.machine, plan.wish
    assert layout is not None
    head = nodes[0]
    world = len(nodes) * machine.gpus
    argv = ["python", "-m", "sglang.launch_server", "--model-path", site.model, "--served-model-name", site.served_name]
    argv += ["--trust-remote-code", "--tool-call-parser", "kimi_k2", "--context-length", str(wish.context)]
    argv += ["--max-running-requests", str(plan.requests), "--mem-fraction-static", f"{GPU_SHARE - 0.04:g}"]
    if wish.cache_value_bytes == 1:
        argv += ["--kv-cache-dtype", "fp8_e4m3"]
    if role is not None or layout.dp > 1:  # SGLang counts attention's data parallel inside of tp
        argv += ["--tp-size", str(world), "--dp-size", str(world if role else layout.dp), "--enable-dp-attention"]
        argv += ["--ep-size", str(world), "--moe-a2a-backend", "deepep"]
    else:
        argv += ["--tp-size", str(layout.tp)]
        argv += ["--pp-size", str(layout.pp)] if layout.pp > 1 else []
        argv += ["--ep-size", str(layout.tp)] if layout.ep else []
    if role is not None:
        argv += ["--disaggregation-mode", role, "--disaggregation-ib-device", site.devices]
        argv += ["--deepep-mode", "normal" if role == "prefill" else "low_latency"]
    if len(nodes) > 1:
        argv += ["--nnodes", str(len(nodes)), "--node-rank", str(node - head)]
        argv += ["--dist-init-addr", f"{site.host(head)}:{DIST_PORT}"]
    argv += ["--host", "0.0.0.0", "--port", str(site.port)]
    return Process(
        name=f"{name}-{node - head}", node=node, argv=tuple(argv), port=site.port,
        health="/health" if node == head else None, gpus=machine.gpus,
    )  # fmt: skip
