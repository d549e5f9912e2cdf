"""Kubernetes: a LeaderWorkerSet for each group of nodes (a Deployment where one node is enough), Services, the gateway.

Wanted in the cluster: the LeaderWorkerSet controller (leaderworkerset.x-k8s.io/v1), NVIDIA's device plugin, and a
claim `model` that has the checkpoint and can be read on all nodes. In a worker, LWS_LEADER_ADDRESS and
LWS_WORKER_INDEX stand for what plain commands have as a host and a number.
"""

from __future__ import annotations

import shlex
from typing import Any

from baltoro.errors import PlanError
from baltoro.plan.launch import yaml
from baltoro.plan.launch.processes import Launch, Process, Site
from baltoro.plan.planner import Plan

MODEL_CLAIM, KEYS_CLAIM = "model", "baltoro-keys"
RANKS = {"--node-rank": 1, "--data-parallel-start-rank": 0}  # flags that differ from worker to worker; 0: times GPUs
PERIOD_S = 10


def files(plan: Plan, launch: Launch, site: Site) -> dict[str, str]:
    if not site.model.startswith("/"):
        raise PlanError(f"the model {site.model!r} in Kubernetes", hint="--path /DIR: where the claim is mounted")
    groups: dict[str, list[Process]] = {}
    for process in launch.processes:
        name = process.name.rsplit("-", 1)[0] if process.gpus else process.name
        groups.setdefault(name, []).append(process)
    hosts = {site.host(group[0].node): name for name, group in groups.items() if group[0].gpus}
    documents: list[dict[str, Any]] = []
    for name, group in groups.items():
        documents += [
            _workload(plan, launch, site, name, group, hosts),
            _service(name, group[0], several=len(group) > 1),
        ]
    if launch.gateway is not None:
        documents.append(_claim())
        upstream = next((each for each in launch.processes if each.name == "router"), launch.processes[0])
        name = upstream.name.rsplit("-", 1)[0] if upstream.gpus else upstream.name
        documents += [*_gateway(launch, launch.gateway, site, f"http://{name}:{upstream.port}")]
    elif launch.engine == "baltoro":
        documents.append(_claim())
    return {"kubernetes.yaml": yaml.dump(*documents)}


def _workload(
    plan: Plan, launch: Launch, site: Site, name: str, group: list[Process], hosts: dict[str, str]
) -> dict[str, Any]:
    if len(group) == 1:
        template = _pod(launch, site, group[0], name, _command(group[0], hosts, "", 0))
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": {"app": name}},
                "progressDeadlineSeconds": launch.load_s + 600,
                "template": template,
            },
        }
    head = site.host(group[0].node)
    leader, worker = (
        _pod(launch, site, each, name, _command(each, hosts, head, plan.machine.gpus), role=role)
        for each, role in ((group[0], "leader"), (group[1], "worker"))
    )
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {
                "size": len(group),
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": leader,
                "workerTemplate": worker,
            },
        },
    }


def _command(process: Process, hosts: dict[str, str], head: str, gpus: int) -> list[str]:
    """For sh: each word quoted, but for what Kubernetes knows at start alone."""
    words: list[str] = []
    previous = ""
    for word in process.argv:
        if previous in RANKS and process.health is None:
            rank = "$LWS_WORKER_INDEX" if RANKS[previous] else f"$((LWS_WORKER_INDEX * {gpus}))"
            words.append(f'"{rank}"')
        elif head and word.split(":")[0] == head:
            words.append(f'"$LWS_LEADER_ADDRESS{word[len(head) :]}"')
        else:
            for host, service in hosts.items():
                word = word.replace(f"//{host}:", f"//{service}:")
            words.append(shlex.quote(word))
        previous = word
    exported = "".join(f"export {key}='{value}'; " for key, value in process.environment.items())
    lines = " ".join(words).replace(" --", " \\\n  --")
    return ["/bin/sh", "-c", f"{exported}exec {lines}"]


def _pod(
    launch: Launch, site: Site, process: Process, app: str, command: list[str], *, role: str = ""
) -> dict[str, Any]:
    ours = launch.engine == "baltoro"
    container: dict[str, Any] = {
        "name": process.name.rsplit("-", 1)[0],
        "image": "baltoro:latest" if ours else launch.image,
        "command": command,
        "volumeMounts": [
            {"name": "model", "mountPath": site.model, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if process.gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(process.gpus)}}
    if process.health is not None:
        asks = {"httpGet": {"path": process.health, "port": process.port}, "periodSeconds": PERIOD_S}
        container["ports"] = [{"containerPort": process.port}]
        container["startupProbe"] = asks | {"failureThreshold": -(-launch.load_s // PERIOD_S)}
        container["readinessProbe"] = asks
    volumes: list[dict[str, Any]] = [
        {"name": "model", "persistentVolumeClaim": {"claimName": MODEL_CLAIM, "readOnly": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
    ]
    if ours:
        container["env"] = [{"name": "XDG_DATA_HOME", "value": "/data"}]
        container["volumeMounts"].append({"name": "keys", "mountPath": "/data"})
        volumes.append({"name": "keys", "persistentVolumeClaim": {"claimName": KEYS_CLAIM}})
    labels = {"app": app} | ({"role": role} if role else {})
    return {
        "metadata": {"labels": labels},
        "spec": {
            "containers": [container],
            "volumes": volumes,
        },
    }


def _service(name: str, process: Process, *, several: bool) -> dict[str, Any]:
    selector = {"app": name} | ({"role": "leader"} if several else {})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": process.port, "targetPort": process.port}]},
    }


def _claim() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": KEYS_CLAIM},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def _gateway(launch: Launch, process: Process, site: Site, upstream: str) -> list[dict[str, Any]]:
    """Keys in SQLite on a claim of its own, so one replica; PostgreSQL and more of them: deploy/helm."""
    argv = list(process.argv)
    argv[argv.index("--upstream") + 1] = upstream
    port = {"containerPort": process.port}
    probe = {"httpGet": {"path": "/health", "port": process.port}, "periodSeconds": PERIOD_S}
    container = {
        "name": "gateway",
        "image": "baltoro:latest",
        "command": argv,
        "env": [{"name": "XDG_DATA_HOME", "value": "/data"}],
        "ports": [port],
        "startupProbe": probe | {"failureThreshold": -(-launch.load_s // PERIOD_S)},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": process.port}, "periodSeconds": PERIOD_S},
        "volumeMounts": [
            {"name": "model", "mountPath": site.tokenizer, "readOnly": True},
            {"name": "keys", "mountPath": "/data"},
        ],
    }
    volumes = [
        {"name": "model", "persistentVolumeClaim": {"claimName": MODEL_CLAIM, "readOnly": True}},
        {"name": "keys", "persistentVolumeClaim": {"claimName": KEYS_CLAIM}},
    ]
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "gateway", "labels": {"app": "gateway"}},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": "gateway"}},
            "template": {
                "metadata": {"labels": {"app": "gateway"}},
                "spec": {"containers": [container], "volumes": volumes},
            },
        },
    }
    return [deployment, _service("gateway", process, several=False)]
