"""What a launch consists of, whichever engine and whichever form: processes on nodes, and a gateway before them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from baltoro.plan.planner import Plan

LOAD_MARGIN = 2.0  # times the expected load time, before a health check gives up
LEAST_LOAD_S = 300.0
GATEWAY_PORT = 8080
ENGINE_PORT = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a plan does not know: names and places of the one who runs it."""

    model: str  # what the engine loads: a directory that each node has, or a name on the hub
    tokenizer: str  # what the gateway reads: a directory with config.json and tiktoken.model
    served_name: str = "kimi-k2"
    hosts: tuple[str, ...] = ()  # of the nodes, the first is the head; empty: node0, node1, ...
    port: int = ENGINE_PORT
    gateway_port: int = GATEWAY_PORT
    devices: str = "mlx5_0"  # InfiniBand devices that move caches

    def host(self, node: int) -> str:
        return self.hosts[node] if node < len(self.hosts) else f"node{node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One command on one node. A `node` of -1 is beside the first one: routers and the gateway."""

    name: str
    node: int
    argv: tuple[str, ...]
    port: int
    health: str | None = "/health"  # None: this process answers nobody
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    gpus: int = 0

    @property
    def line(self) -> str:
        """For a shell."""
        before = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*before, *map(shlex.quote, self.argv)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    engine: str
    image: str
    install: str  # how its program comes onto a node
    processes: tuple[Process, ...]
    gateway: Process | None  # None: the engine is ours and speaks the APIs itself
    load_s: int  # how long a health check waits
    notes: tuple[str, ...] = ()

    @property
    def everything(self) -> tuple[Process, ...]:
        return (*self.processes, *([self.gateway] if self.gateway is not None else []))

    @property
    def nodes(self) -> int:
        return 1 + max(process.node for process in self.processes)


def load_seconds(plan: Plan) -> int:
    """At the band's slow end, and twice that: a start that is slower than this has failed."""
    return round(max(LEAST_LOAD_S, LOAD_MARGIN * plan.load.seconds.least))


def gateway(site: Site, upstreams: tuple[str, ...]) -> Process:
    """Baltoro before it: K2's tool calls, ids, grammar, keys and limits, whatever the engine."""
    asked = tuple(word for url in upstreams for word in ("--upstream", url))
    argv = ("baltoro", "serve", site.tokenizer, *asked, "--host", "0.0.0.0", "--port", str(site.gateway_port), "--keys")
    return Process(name="gateway", node=-1, argv=argv, port=site.gateway_port)
