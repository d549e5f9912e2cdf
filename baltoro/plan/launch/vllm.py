"""vLLM, as 0.32 has it: tensor parallel over nodes by its own `--nnodes`, or data parallel with expert parallel.

tests/plan/test_launch.py has vLLM's own parser read every line that is written here.
"""

from __future__ import annotations

from baltoro.plan.launch.processes import Launch, Process, Site, gateway, load_seconds
from baltoro.plan.machine import GPU_SHARE
from baltoro.plan.memory import GPU_CHUNK
from baltoro.plan.planner import Plan

IMAGE = "vllm/vllm-openai:v0.32.0"
MASTER_PORT, RPC_PORT = 29500, 13345
NODES = frozenset(  # options with a value that say who else there is
    {"--nnodes", "--node-rank", "--master-addr", "--master-port", "--data-parallel-address",
     "--data-parallel-rpc-port", "--data-parallel-size-local"}
)  # fmt: skip
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "kimi_k2")


def launch(plan: Plan, site: Site) -> Launch:
    layout = plan.memory.layout
    assert layout is not None
    processes = tuple(_node(plan, site, node) for node in range(plan.machine.nodes))
    notes = [
        "every node needs the same files at the same path, or a hub that it reaches",
        "the gateway enforces tools itself; vLLM's own parser stays on for those who ask vLLM directly",
    ]
    if layout.dp > 1:
        notes.append("each node computes with its own ranks; the first one takes all requests and shares them out")
    return Launch(
        engine="vllm", image=IMAGE, install="pip install 'vllm>=0.32'", processes=processes,
        gateway=gateway(site, (f"http://{site.host(0)}:{site.port}",)), load_s=load_seconds(plan), notes=tuple(notes),
    )  # fmt: skip


def options(plan: Plan) -> tuple[str, ...]:
    """What every process is told alike, of the plan alone: no address, no name."""
    layout, wish = plan.memory.layout, plan.wish
    assert layout is not None
    argv = ["--trust-remote-code", "--max-model-len", str(wish.context)]
    argv += ["--max-num-seqs", str(-(-plan.requests // layout.dp)), "--max-num-batched-tokens", str(GPU_CHUNK)]
    argv += ["--gpu-memory-utilization", f"{GPU_SHARE:g}", *TOOLS]
    if wish.cache_value_bytes == 1:
        argv += ["--kv-cache-dtype", "fp8"]
    argv += ["--tensor-parallel-size", str(layout.tp)]
    if layout.pp > 1:
        argv += ["--pipeline-parallel-size", str(layout.pp)]
    if layout.dcp > 1:
        argv += ["--decode-context-parallel-size", str(layout.dcp)]
    if layout.ep:
        argv += ["--enable-expert-parallel"]
    if layout.dp > 1:
        argv += ["--data-parallel-size", str(layout.dp)]
    return tuple(argv)


def _node(plan: Plan, site: Site, node: int) -> Process:
    layout, machine = plan.memory.layout, plan.machine
    assert layout is not None
    head = node == 0
    argv = ["vllm", "serve", site.model, "--served-model-name", site.served_name, *options(plan)]
    if layout.dp > 1:
        local = layout.dp // machine.nodes
        argv += ["--data-parallel-size-local", str(local)]
        argv += ["--data-parallel-address", site.host(0), "--data-parallel-rpc-port", str(RPC_PORT)]
        if not head:
            argv += ["--data-parallel-start-rank", str(node * local)]
    elif machine.nodes > 1:
        argv += ["--nnodes", str(machine.nodes), "--node-rank", str(node)]
        argv += ["--master-addr", site.host(0), "--master-port", str(MASTER_PORT)]
    argv += ["--host", "0.0.0.0", "--port", str(site.port)] if head else ["--headless"]
    return Process(
        name=f"vllm-{node}", node=node, argv=tuple(argv), port=site.port, health="/health" if head else None,
        gpus=machine.gpus,
    )  # fmt: skip


def by_ray(plan: Plan, site: Site) -> tuple[str, ...]:
    """Its one command where Ray has joined the nodes already."""
    layout = plan.memory.layout
    assert layout is not None
    argv = _node(plan, site, 0).argv
    own = {place + step for place, word in enumerate(argv) if word in NODES for step in (0, 1)}
    kept = [word for place, word in enumerate(argv) if place not in own]
    kept += ["--data-parallel-backend", "ray"] if layout.dp > 1 else ["--distributed-executor-backend", "ray"]
    return tuple(kept)
