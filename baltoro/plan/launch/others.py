"""Engines with one form each: KTransformers, TensorRT-LLM, TGI, and our own."""

from __future__ import annotations

from baltoro.errors import PlanError
from baltoro.plan.launch.processes import Launch, Process, Site, gateway, load_seconds
from baltoro.plan.layout import Layout
from baltoro.plan.memory import RAM_CHUNK
from baltoro.plan.planner import Plan

KT_METHODS = {"fp8": "FP8", "w4a16": "RAWINT4", "int4": "AMXINT4", "int8": "AMXINT8", "bf16": "BF16"}
RUNNING = 32  # requests that our engine decodes together unless told otherwise
KT_PREFILL_TOKENS = 2048  # prompts from here on are computed on the GPUs, layer by layer


def ktransformers(plan: Plan, site: Site) -> Launch:
    """SGLang's fork of KTransformers: resident weights on GPUs, experts on the CPU (kt-kernel)."""
    machine, layout = plan.machine, plan.memory.layout
    method = KT_METHODS.get(plan.format.name)
    if plan.memory.place != "hybrid" or layout is None or method is None:
        raise PlanError(
            f"KTransformers wants resident weights on GPUs and experts in RAM, and the plan is {plan.memory.place} in "
            f"{plan.format.name}",
            hint=f"--place hybrid, and one of {', '.join(KT_METHODS)}",
        )
    argv = ["python", "-m", "sglang.launch_server", "--model", site.model, "--served-model-name", site.served_name]
    argv += ["--trust-remote-code", "--tool-call-parser", "kimi_k2", "--context-length", str(plan.wish.context)]
    argv += ["--max-running-requests", str(plan.requests), "--max-total-tokens"]
    argv += [str(plan.wish.context * plan.wish.concurrency), "--tensor-parallel-size", str(layout.tp)]
    argv += ["--kt-weight-path", site.model, "--kt-method", method, "--kt-cpuinfer", str(max(1, machine.cores - 4))]
    argv += ["--kt-threadpool-count", str(machine.sockets), "--kt-num-gpu-experts"]
    argv += [str(int(plan.memory.gpu_share * plan.config.n_routed_experts))]
    argv += ["--kt-gpu-prefill-token-threshold", str(KT_PREFILL_TOKENS), "--disable-shared-experts-fusion"]
    argv += ["--host", "0.0.0.0", "--port", str(site.port)]
    notes = [
        f"while it loads, all routed experts are in RAM, {plan.weights.experts / 1e9:,.0f} GB",
        "--kt-max-deferred-experts-per-token is left out: it changes what the model computes",
    ]
    if method.startswith("AMX"):
        notes.append("AMX methods read weights that kt-kernel's convert_cpu_weights.py has made of the checkpoint")
    process = Process(name="ktransformers", node=0, argv=tuple(argv), port=site.port, gpus=machine.gpus)
    return Launch(
        engine="ktransformers", image="", install="pip install ktransformers sglang-kt kt-kernel",
        processes=(process,), gateway=gateway(site, (f"http://{site.host(0)}:{site.port}",)), load_s=load_seconds(plan),
        notes=tuple(notes),
    )  # fmt: skip


def tensorrt(plan: Plan, site: Site) -> Launch:
    """trtllm-serve; over several nodes under MPI, which starts every process from the first one.

    Its program does not install without CUDA: these flags are checked against its documentation alone.
    """
    layout, machine = _all_on_gpus(plan, "TensorRT-LLM"), plan.machine
    if layout.dp > 1 or layout.dcp > 1:
        raise PlanError(f"{layout.name} for TensorRT-LLM", hint="--layout tp16, or tp16+ep")
    serve = ["trtllm-serve", site.model, "--backend", "pytorch", "--tp_size", str(layout.tp)]
    serve += ["--pp_size", str(layout.pp)] if layout.pp > 1 else []
    serve += ["--ep_size", str(layout.tp)] if layout.ep else []
    serve += ["--max_seq_len", str(plan.wish.context), "--max_batch_size", str(plan.requests)]
    serve += ["--kv_cache_free_gpu_memory_fraction", "0.9", "--trust_remote_code"]
    serve += ["--host", "0.0.0.0", "--port", str(site.port)]
    if machine.nodes > 1:
        hosts = ",".join(f"{site.host(node)}:{machine.gpus}" for node in range(machine.nodes))
        start = ["mpirun", "-np", str(machine.gpu_count), "-H", hosts, "--allow-run-as-root", "trtllm-llmapi-launch"]
        serve = [*start, *serve]
    process = Process(name="tensorrt-llm", node=0, argv=tuple(serve), port=site.port, gpus=machine.gpus)
    return Launch(
        engine="tensorrt-llm", image="nvcr.io/nvidia/tensorrt-llm/release:1.0.0",
        install="the image, or pip install tensorrt-llm", processes=(process,),
        gateway=None, load_s=load_seconds(plan),
        notes=(
            "flags are those of its documentation: its parser could not be asked here",
            "mpirun reaches the other nodes by ssh keys, and has the same files and image there",
            "Baltoro's gateway speaks to vLLM, SGLang and llama-server; TensorRT-LLM has no token ids out, so that it "
            "stands alone and its own parser makes the tool calls",
        ),
    )  # fmt: skip


def tgi(plan: Plan, site: Site) -> Launch:
    """Text Generation Inference, of one node. It is in maintenance mode: for those who run it already."""
    layout = _all_on_gpus(plan, "TGI")
    if plan.machine.nodes > 1 or layout.gpus != layout.tp:
        raise PlanError(
            f"{layout.name} on {plan.machine.nodes} nodes for TGI", hint="it knows tensor parallel in one node"
        )
    argv = ["text-generation-launcher", "--model-id", site.model, "--num-shard", str(layout.tp), "--trust-remote-code"]
    argv += ["--max-total-tokens", str(plan.wish.context), "--max-input-tokens", str(plan.wish.context - 1)]
    argv += ["--max-concurrent-requests", str(plan.requests), "--hostname", "0.0.0.0"]
    argv += ["--port", str(site.port)]
    process = Process(name="tgi", node=0, argv=tuple(argv), port=site.port, gpus=plan.machine.gpus)
    return Launch(
        engine="tgi", image="ghcr.io/huggingface/text-generation-inference:3.3.6", install="the image",
        processes=(process,), gateway=None, load_s=load_seconds(plan),
        notes=(
            "TGI is in maintenance mode: its makers send new users to vLLM and SGLang, and so do we",
            "it takes no token ids, so Baltoro's gateway does not stand before it; it has no parser for K2's calls",
            "flags are those of its documentation: its parser could not be asked here",
        ),
    )  # fmt: skip


def ours(plan: Plan, site: Site) -> Launch:
    """`baltoro serve`, which speaks the APIs itself. On CPUs, in RAM or from the disk."""
    if plan.memory.place not in ("ram", "disk") or (plan.machine.unified and plan.machine.nodes > 1):
        raise PlanError(
            f"our engine computes on one machine's CPUs, and the plan is {plan.memory.place}",
            hint="--place ram or disk; on GPUs: --engine vllm",
        )
    if plan.format.name not in ("bf16", "fp8", "int8", "int4"):
        raise PlanError(f"our engine has no format {plan.format.name}", hint="bf16, fp8, int8 or int4")
    argv = ["baltoro", "serve", site.model, "--format", plan.format.name, "--max-context", str(plan.wish.context)]
    argv += [
        "--max-running",
        str(max(plan.wish.concurrency, min(RUNNING, plan.requests))),
        "--threads",
        str(plan.machine.cores),
    ]
    notes = [f"prompts are read {RAM_CHUNK:,} tokens a step"]
    if plan.memory.place == "disk":
        experts = plan.memory.ram_share * plan.weights.experts
        argv += ["--expert-memory", f"{experts / 2**30:.1f}GiB"]
        notes.append(f"first: baltoro quantize {site.model} DIR --format {plan.format.name}, and serve DIR")
    argv += ["--host", "0.0.0.0", "--port", str(site.port), "--keys"]
    process = Process(name="baltoro", node=0, argv=tuple(argv), port=site.port)
    return Launch(
        engine="baltoro", image="baltoro:latest", install="pip install baltoro", processes=(process,), gateway=None,
        load_s=load_seconds(plan), notes=tuple(notes),
    )  # fmt: skip


def _all_on_gpus(plan: Plan, engine: str) -> Layout:
    layout = plan.memory.layout
    if plan.memory.place != "gpu" or layout is None:
        raise PlanError(
            f"{engine} wants the whole model on GPUs, and the plan is {plan.memory.place}", hint="--place gpu"
        )
    return layout
