"""A launch as files: plain shell, systemd, compose; kubernetes.py and ray beside them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from baltoro.errors import PlanError
from baltoro.plan.launch import kubernetes, vllm, yaml
from baltoro.plan.launch.processes import Launch, Process, Site
from baltoro.plan.planner import Plan

FORMS = ("shell", "systemd", "compose", "kubernetes", "ray")
POLL_S = 10
RAY_PORT = 6379


def files(form: str, plan: Plan, launch: Launch, site: Site) -> dict[str, str]:
    """Name -> text. What every node has to run bears the node's number."""
    makers: Mapping[str, Callable[[Plan, Launch, Site], dict[str, str]]] = {
        "shell": _shell, "systemd": _systemd, "compose": _compose, "kubernetes": kubernetes.files, "ray": _ray,
    }  # fmt: skip
    if form not in makers:
        raise PlanError(f"files in the form {form!r}", hint=f"one of {', '.join(FORMS)}")
    if form in ("compose", "kubernetes") and not launch.image:
        raise PlanError(f"{launch.engine} has no image of its makers'", hint="--form shell or systemd")
    if form in ("compose", "kubernetes") and launch.engine == "tensorrt-llm" and plan.machine.nodes > 1:
        raise PlanError(
            f"TensorRT-LLM on {plan.machine.nodes} nodes starts by mpirun over ssh, which no {form} file can say",
            hint="--form shell",
        )
    return makers[form](plan, launch, site)


def head_lines(plan: Plan, launch: Launch) -> list[str]:
    """What a reader should know first, as comments."""
    layout = f", {plan.memory.layout.name}" if plan.memory.layout is not None else ""
    lines = [
        f"{plan.model} in {plan.format.name} by {launch.engine}{layout}: {plan.machine.title}",
        f"by `baltoro plan`; {launch.install}",
        *launch.notes,
    ]
    return [f"# {line}" for line in lines]


def _on_node(launch: Launch, node: int) -> list[Process]:
    """The gateway is at home on the first one."""
    return [process for process in launch.everything if max(0, process.node) == node]


def _wait(process: Process, load_s: int) -> str:
    """Shell: until it answers, or until no start takes so long."""
    url, tries = f"http://127.0.0.1:{process.port}{process.health}", -(-load_s // POLL_S)
    return (
        f"for try in $(seq {tries}); do curl -sf {url} > /dev/null && break; "
        f'[ "$try" = {tries} ] && {{ echo "{process.name} did not answer in {load_s} s" >&2; exit 1; }}; '
        f"sleep {POLL_S}; done"
    )


def _shell(plan: Plan, launch: Launch, site: Site) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in range(launch.nodes):
        lines = ["#!/bin/sh", *head_lines(plan, launch), f"# node {node}: {site.host(node)}", "set -eu"]
        found[f"node{node}.sh"] = "\n".join([*lines, *_started(_on_node(launch, node), launch.load_s)]) + "\n"
    return found


def _started(processes: list[Process], load_s: int, at_exit: str = "") -> list[str]:
    """Shell: one after the other, each when the one before answers; all end together, when the last one does."""
    *first, last = processes
    if not first and not at_exit:
        return [f"exec {last.line}"]
    lines = ["pids=", f"trap 'kill $pids 2> /dev/null || true{at_exit}' EXIT", "trap 'exit 143' INT TERM"]
    for process in first:
        lines += [f"{process.line} &", 'pids="$pids $!"']
        if process.health is not None:
            lines.append(_wait(process, load_s))
    return [*lines, f"{last.line} &", 'pids="$pids $!"', "wait $!"]


def _systemd(plan: Plan, launch: Launch, site: Site) -> dict[str, str]:
    found: dict[str, str] = {}
    for process in launch.everything:
        node = max(0, process.node)
        others = [each.name for each in _on_node(launch, node) if each is not process and process.node == -1]
        unit = [
            *head_lines(plan, launch),
            f"# /etc/systemd/system/baltoro-{process.name}.service on node {node}, {site.host(node)}",
            "[Unit]",
            f"Description={process.name} of {plan.model}",
            f"After=network-online.target {' '.join(f'baltoro-{each}.service' for each in others)}".rstrip(),
            "Wants=network-online.target",
            "",
            "[Service]",
            "Type=exec",
            *(f"Environment={name}={value}" for name, value in process.environment.items()),
            f"ExecStart=/usr/bin/env {process.line}",
        ]
        if process.node == -1:
            upstreams = [each for each in launch.processes if each.health is not None and each.node == 0][-1:]
            waits = "; ".join(_wait(each, launch.load_s) for each in upstreams)
            unit.insert(-1, f"ExecStartPre=/bin/sh -c {shlex.quote(waits.replace('$', '$$'))}")
            unit.append("StateDirectory=baltoro")
            unit.append("Environment=XDG_DATA_HOME=%S")
        unit += [
            f"TimeoutStartSec={launch.load_s + 60}",
            "Restart=on-failure",
            "RestartSec=15",
            "LimitMEMLOCK=infinity",
        ]
        unit += ["", "[Install]", "WantedBy=multi-user.target"]
        found[f"node{node}/baltoro-{process.name}.service"] = "\n".join(unit) + "\n"
    return found


def _compose(plan: Plan, launch: Launch, site: Site) -> dict[str, str]:
    """One file a node; all on the host's network, which NCCL and InfiniBand want."""
    found: dict[str, str] = {}
    for node in range(launch.nodes):
        services: dict[str, Any] = {}
        for process in _on_node(launch, node):
            services[process.name] = service = _service(launch, process, site)
            if process.node == -1:
                before = [each for each in _on_node(launch, node) if each is not process and each.health is not None]
                service["depends_on"] = {each.name: {"condition": "service_healthy"} for each in before}
        document: dict[str, Any] = {"name": f"baltoro-node{node}", "services": services}
        if any(_is_ours(launch, process) for process in _on_node(launch, node)):
            document["volumes"] = {"keys": None}
        text = yaml.dump(document)
        found[f"node{node}.compose.yaml"] = "\n".join(
            [*head_lines(plan, launch), f"# node {node}: {site.host(node)}", text]
        )
    return found


def _is_ours(launch: Launch, process: Process) -> bool:
    return process.node == -1 or launch.engine == "baltoro"


def _service(launch: Launch, process: Process, site: Site) -> dict[str, Any]:
    ours = _is_ours(launch, process)
    service: dict[str, Any] = {
        "image": "baltoro:latest" if ours else launch.image,
        "entrypoint": [process.argv[0]],
        "command": list(process.argv[1:]),
        "network_mode": "host",
        "restart": "unless-stopped",
    }
    if process.environment:
        service["environment"] = dict(process.environment)
    mounts = [each for each in dict.fromkeys((site.model, site.tokenizer)) if each.startswith("/")]
    service["volumes"] = [f"{each}:{each}:ro" for each in mounts]
    if ours:
        service["volumes"].append("keys:/var/lib/baltoro")
    if process.gpus:
        devices = [{"driver": "nvidia", "count": process.gpus, "capabilities": ["gpu"]}]
        service |= {
            "ipc": "host",
            "ulimits": {"memlock": -1},
            "deploy": {"resources": {"reservations": {"devices": devices}}},
        }
    if process.health is not None:
        url = f"http://127.0.0.1:{process.port}{process.health}"
        asks = ["CMD", "python3", "-c", f"import urllib.request as r; r.urlopen({url!r}, timeout=5)"]
        service["healthcheck"] = {"test": asks, "interval": "10s", "start_period": f"{launch.load_s}s", "retries": 6}
    return service


def _ray(plan: Plan, launch: Launch, site: Site) -> dict[str, str]:
    """Ray joins the nodes, and vLLM is started once, on the first."""
    if launch.engine != "vllm":
        raise PlanError(f"Ray for {launch.engine}", hint="Ray is planned for --engine vllm")
    head = site.host(0)
    found: dict[str, str] = {}
    for node in range(1, launch.nodes):
        join = f"exec ray start --address={head}:{RAY_PORT} --num-gpus={plan.machine.gpus} --block"
        found[f"node{node}.sh"] = (
            "\n".join(["#!/bin/sh", f"# node {node}: {site.host(node)}, before node 0", join]) + "\n"
        )
    assert launch.gateway is not None
    lines = ["#!/bin/sh", *head_lines(plan, launch), f"# node 0: {head}", "set -eu"]
    lines.append(f"ray start --head --port={RAY_PORT} --num-gpus={plan.machine.gpus}")
    asked = f"ray status | grep -q '/{plan.machine.gpu_count}.0 GPU'"
    lines.append(f"until {asked}; do echo 'waiting for the other nodes' >&2; sleep {POLL_S}; done")
    engine = replace(launch.processes[0], argv=vllm.by_ray(plan, site))
    lines += _started([engine, launch.gateway], launch.load_s, at_exit="; ray stop")
    found["node0.sh"] = "\n".join(lines) + "\n"
    return found
