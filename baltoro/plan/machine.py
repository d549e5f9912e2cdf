"""What a model is to run on: described by options, by a catalogue file, or measured (doctor/here.py).

Bandwidths are those on paper, of one node, unless `measured`; efficiency.py says how much of them is reached. What a
description leaves out is assumed, and said to be: `assumed`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from baltoro.errors import BaltoroError
from baltoro.sizes import UNITS, parse_bytes

CATALOGUE = Path(__file__).parent / "machines.toml"
GPU_RESERVE_BYTES = 4e9  # of each GPU: CUDA's context and graphs, NCCL's buffers
GPU_SHARE = 0.92  # of its memory that engines take (vLLM's --gpu-memory-utilization)
RAM_RESERVE = 0.04  # of the RAM, and never less than this:
LEAST_RAM_RESERVE = 2 * 2**30  # the system, Python, what other programs take meanwhile
UNIFIED_SHARE = 0.92  # of a Mac's memory that its GPU may take (iogpu.wired_limit_mb raises the default of 75 %)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    memory_bytes: float
    bandwidth: float  # bytes a second of its memory
    bf16_flops: float  # a second, dense
    fp8_flops: float | None = None  # None: block-fp8 does not run on it
    link: float = 0.0  # bytes a second to the GPUs beside it, one direction; 0: by PCIe
    pcie: float = 25e9  # bytes a second from RAM, reached
    kind: str = "nvidia"  # or amd: what the class of its efficiency is


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    name: str
    nodes: int = 1
    ram_bytes: float  # of a node
    ram_bandwidth: float  # bytes a second of a node, all sockets together
    sockets: int = 1
    cores: int = 8  # of a node
    matrix: str = "avx512"  # avx2, avx512, amx, gpu (unified): what products run on where no GPU is named
    flops: float | None = None  # a second of a node in prefill, where they are known
    disk_bandwidth: float = 3e9  # bytes a second of a node, reading
    disk_free_bytes: float | None = None
    gpu: Gpu | None = None
    gpus: int = 0  # of a node
    network: float = 50e9  # bytes a second of a node
    unified: bool = False  # CPU and GPU share the RAM
    measured: bool = False
    price_hour: float | None = None  # money, of a node
    watts: float | None = None  # of a node under load
    assumed: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For people."""
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        if self.gpu is not None:
            return f"{nodes}{self.gpus} x {self.gpu.name}" + (f" ({self.name})" if self.name != "described" else "")
        return f"{self.name}, {nodes}{self.ram_bytes / 2**30:,.0f} GiB of RAM"

    @property
    def gpu_count(self) -> int:
        return self.nodes * self.gpus

    @property
    def usable_ram(self) -> float:
        """Of a node."""
        if self.unified:
            return self.ram_bytes * UNIFIED_SHARE
        return max(0.0, self.ram_bytes - max(LEAST_RAM_RESERVE, RAM_RESERVE * self.ram_bytes))

    @property
    def usable_gpu(self) -> float:
        """Of one GPU."""
        return 0.0 if self.gpu is None else max(0.0, self.gpu.memory_bytes * GPU_SHARE - GPU_RESERVE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    gpus: Mapping[str, Gpu]
    machines: Mapping[str, Machine]


def catalogue(*files: Path) -> Catalogue:
    """Our own, and files of the same form behind it: later ones win."""
    gpus: dict[str, Gpu] = {}
    machines: dict[str, Machine] = {}
    for path in (CATALOGUE, *files):
        document = _read(path)
        for name, table in _tables(document, "gpu", path):
            gpus[name] = cast("Gpu", _built(Gpu, name, table, path))
        for name, table in _tables(document, "machine", path):
            if isinstance(wanted := table.get("gpu"), str):
                table = table | {"gpu": gpu_named(wanted, gpus)}
            machines[name] = cast("Machine", _built(Machine, name, table, path))
    return Catalogue(gpus=gpus, machines=machines)


def gpu_named(name: str, gpus: Mapping[str, Gpu]) -> Gpu:
    folded = {re.sub(r"[\s_]+", "-", key.lower()): key for key in gpus}
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower())
    if wanted not in folded:
        near = get_close_matches(wanted, folded, n=1)
        known = f"did you mean {folded[near[0]]}?" if near else f"known are {', '.join(gpus)}"
        raise BaltoroError(f"the GPU {name!r} is not in the catalogue", hint=f"{known}; --machines FILE adds others")
    return gpus[folded[wanted]]


def machine_named(name: str, known: Catalogue) -> Machine:
    if name not in known.machines:
        near = get_close_matches(name, known.machines, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known.machines)}"
        raise BaltoroError(f"the machine {name!r} is not in the catalogue", hint=f"{hint}; --machines FILE adds others")
    return known.machines[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A machine as options describe it; None: not said. Bandwidths in bytes a second."""

    ram: float | None = None
    ram_bandwidth: float | None = None
    sockets: int | None = None
    cores: int | None = None
    disk: float | None = None
    gpu: str | None = None  # 8xH200, or H200 for one
    nodes: int | None = None
    network: float | None = None
    price_hour: float | None = None
    watts: float | None = None

    @property
    def says_anything(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))


def described(options: Described, known: Catalogue, base: Machine | None = None) -> Machine:
    """`base`, where one is named, with what the options say in place of what it has."""
    assumed: list[str] = [] if base is None else list(base.assumed)
    if base is None:
        base = Machine(name="described", ram_bytes=0.0, ram_bandwidth=0.0)
        if options.ram is None:
            assumed.append("64 GiB of RAM for each GPU, 64 GiB without one")
        if options.ram_bandwidth is None:
            assumed.append(
                "a RAM of 80 GB/s (two channels of DDR5-5000)" if options.gpu is None else "a RAM of 400 GB/s"
            )
        if options.cores is None:
            assumed.append(f"{base.cores if options.gpu is None else 64} cores with AVX-512")
        if options.disk is None:
            assumed.append(f"a disk of {base.disk_bandwidth / 1e9:g} GB/s")
        base = replace(
            base, ram_bandwidth=80e9 if options.gpu is None else 400e9, cores=8 if options.gpu is None else 64
        )
    gpu, count = base.gpu, base.gpus
    if options.gpu is not None:
        gpu, count = gpus_of(options.gpu, known)
    ram = options.ram if options.ram is not None else base.ram_bytes or max(1, count) * 64 * 2.0**30
    changes: dict[str, Any] = {
        "ram_bandwidth": options.ram_bandwidth, "sockets": options.sockets, "cores": options.cores,
        "disk_bandwidth": options.disk, "nodes": options.nodes, "network": options.network,
        "price_hour": options.price_hour, "watts": options.watts,
    }  # fmt: skip
    given = {name: value for name, value in changes.items() if value is not None}
    return _checked(replace(base, ram_bytes=ram, gpu=gpu, gpus=count, assumed=tuple(assumed), **given), "--machine")


def gpus_of(text: str, known: Catalogue) -> tuple[Gpu, int]:
    """8xH200 -> that GPU, 8."""
    found = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?(.+)", text.strip())
    count = int(found[1] or 1) if found else 0
    if found is None or not 1 <= count <= 64:
        raise BaltoroError(f"GPUs of {text!r}", hint="how many of which in one node, as 8xH200")
    return gpu_named(found[2], known.gpus), count


def parse_rate(text: str) -> float:
    """`460GB/s` -> bytes a second."""
    size, slash, second = text.strip().rpartition("/")
    if not slash or second.strip() != "s":
        raise BaltoroError(f"a bandwidth of {text!r}", hint=f"bytes a second, as 7GB/s: {', '.join(UNITS)}")
    return float(parse_bytes(size))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaltoroError(
            f"{path}: {error.strerror}", hint="--machines takes a TOML file, as docs/plan.md has one"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BaltoroError(f"{path}: not a TOML file: {error}") from error


def _tables(document: dict[str, Any], kind: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    if unknown := document.keys() - {"gpu", "machine"}:
        raise BaltoroError(f"{path}: {min(unknown)!r} is no table of a catalogue", hint="[gpu.NAME] and [machine.NAME]")
    found = document.get(kind, {})
    if not isinstance(found, dict) or not all(
        isinstance(each, dict) for each in cast("dict[str, Any]", found).values()
    ):
        raise BaltoroError(f"{path}: {kind} is no table of tables", hint=f"write [{kind}.NAME]")
    return list(cast("dict[str, dict[str, Any]]", found).items())


RATES = frozenset({"bandwidth", "link", "pcie", "ram_bandwidth", "disk_bandwidth", "network"})
SIZES = frozenset({"memory", "ram", "disk_free"})  # in the file; `_bytes` behind them here
NUMBERS = frozenset({"bf16_flops", "fp8_flops", "flops", "price_hour", "watts", "nodes", "sockets", "cores", "gpus"})


def _built(kind: type[Gpu] | type[Machine], name: str, table: dict[str, Any], path: Path) -> Gpu | Machine:
    names = {field.name for field in fields(kind)} - {"name", "assumed", "measured"}
    spelled = {each.removesuffix("_bytes"): each for each in names}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in spelled:
            near = get_close_matches(key, spelled, n=1)
            raise BaltoroError(
                f"{path}: {name} has {key!r}",
                hint=f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(spelled))}",
            )
        values[spelled[key]] = _value(key, value, f"{path}: {name}: {key}")
    try:
        made = kind(name=name, **values)
    except TypeError as error:
        needed = "memory, bandwidth and bf16_flops" if kind is Gpu else "ram and ram_bandwidth"
        raise BaltoroError(f"{path}: {name} says too little", hint=f"it needs {needed}") from error
    return _checked(made, f"{path}: {name}") if isinstance(made, Machine) else made


def _value(key: str, value: Any, where: str) -> Any:
    if key in RATES and isinstance(value, str):
        return parse_rate(value)
    if key in SIZES and isinstance(value, str):
        return float(parse_bytes(value))
    if key in NUMBERS and isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return value
    if (
        (key == "unified" and isinstance(value, bool))
        or key == "gpu"
        or (key in {"matrix", "kind"} and isinstance(value, str))
    ):
        return value
    raise BaltoroError(f"{where} is {value!r}", hint="sizes as 512GiB, bandwidths as 460GB/s, the rest as numbers")


def _checked(machine: Machine, where: str) -> Machine:
    wrong = [
        name
        for name in ("nodes", "ram_bytes", "ram_bandwidth", "sockets", "cores", "disk_bandwidth", "network")
        if getattr(machine, name) <= 0
    ]
    if wrong:
        raise BaltoroError(f"{where}: {wrong[0]} is {getattr(machine, wrong[0])}, expected more than 0")
    if (machine.gpu is None) != (machine.gpus == 0):
        raise BaltoroError(
            f"{where}: {machine.gpus} GPUs of {machine.gpu and machine.gpu.name}", hint="name both: gpu = and gpus ="
        )
    if machine.matrix not in {"avx2", "avx512", "amx", "gpu"}:
        raise BaltoroError(f"{where}: matrix is {machine.matrix!r}", hint="avx2, avx512, amx or gpu")
    return machine
