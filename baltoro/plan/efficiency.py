"""How much of what paper says is reached: one row for each class of machine, never for one machine.

Each figure is (least, expected, most). Where they come from: the public results of docs/plan.md, which the tests
replay. They are those of the better-kept engines of 2025 and 2026 on that class, not of the best that anybody wrote;
a row can be beaten, and then the plan was too careful.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from baltoro.plan.machine import Machine


class Band(NamedTuple):
    least: float
    expected: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    memory: Band  # of a bandwidth, in decode
    compute: Band  # of the peak, in prefill
    layer_s: Band  # a layer and step besides: launches, reductions; least is the slowest


# RAM of one socket as channels * transfers. Reads reach 0.8 of that; what is left is lost in launches, in threads that
# wait for each other and in experts too small to hide both.
CPU = Efficiency(
    memory=Band(0.33, 0.48, 0.62), compute=Band(0.35, 0.5, 0.75), layer_s=Band(200e-6, 100e-6, 30e-6)
)  # fmt: skip
# Measured bandwidths and peaks, our own kernels: docs/numbers.md, "Layers".
MEASURED = Efficiency(
    memory=Band(0.6, 0.8, 0.95), compute=Band(0.4, 0.6, 0.75), layer_s=Band(200e-6, 60e-6, 20e-6)
)  # fmt: skip
# A second socket adds this much of itself: weights lie beside one socket and are read from both.
SECOND_SOCKET = Band(0.1, 0.4, 0.7)
# Macs: small launches, and products of one token that do not fill the GPU.
UNIFIED = Efficiency(
    memory=Band(0.26, 0.38, 0.55), compute=Band(0.2, 0.5, 0.65), layer_s=Band(150e-6, 60e-6, 20e-6)
)  # fmt: skip
NVIDIA = Efficiency(
    memory=Band(0.5, 0.7, 0.85), compute=Band(0.08, 0.14, 0.3), layer_s=Band(300e-6, 130e-6, 60e-6)
)  # fmt: skip
AMD = Efficiency(
    memory=Band(0.3, 0.45, 0.65), compute=Band(0.04, 0.08, 0.16), layer_s=Band(500e-6, 300e-6, 150e-6)
)  # fmt: skip
# Resident weights on a GPU, experts in RAM: each layer hands its tokens over and waits.
HYBRID_LAYER_S = Band(500e-6, 250e-6, 100e-6)
# A reduction over the network, twice a layer, where a layer is shared by several nodes.
NETWORK_LAYER_S = Band(1000e-6, 500e-6, 150e-6)
# Prefill on GPUs whose experts come over PCIe, layer by layer; and how much of it a second GPU does not halve.
CARRIED = Band(0.22, 0.37, 0.6)
SERIAL = 0.17
# Experts on disk: of its bandwidth.
DISK = Band(0.7, 0.85, 0.95)

# Of one core in prefill, a second: products of bf16 or int8 weights as llama.cpp and KTransformers do them.
CORE_FLOPS = {"avx2": 60e9, "avx512": 220e9, "amx": 640e9}


def of_gpu(machine: Machine) -> Efficiency:
    return AMD if machine.gpu is not None and machine.gpu.kind == "amd" else NVIDIA


def hybrid_layer_s(machine: Machine) -> Band:
    """A layer's hand-over costs HYBRID_LAYER_S, or half more than the GPU's own launches where these are slower."""
    return Band(*(max(a, 1.5 * b) for a, b in zip(HYBRID_LAYER_S, of_gpu(machine).layer_s, strict=True)))


def of_ram(machine: Machine) -> Efficiency:
    return MEASURED if machine.measured else UNIFIED if machine.unified else CPU


def ram_bandwidth(machine: Machine) -> Band:
    """Bytes a second that decode reads of one node's RAM."""
    share = of_ram(machine).memory
    if machine.sockets == 1:
        return Band(*(machine.ram_bandwidth * each for each in share))
    one = machine.ram_bandwidth / machine.sockets
    more = machine.sockets - 1
    return Band(*(one * (1 + more * second) * each for each, second in zip(share, SECOND_SOCKET, strict=True)))


def cpu_flops(machine: Machine) -> Band:
    """Operations a second of prefill on one node's cores (a Mac's: its GPU's)."""
    peak = machine.flops or machine.cores * CORE_FLOPS.get(machine.matrix, CORE_FLOPS["avx512"])
    return Band(*(peak * each for each in of_ram(machine).compute))


def hit_rate(share: float) -> Band:
    """Uses of experts that find them in memory, where `share` of all experts is there.

    Least: every expert as likely as another, hits = share. Most: share ** 0.22, from 71 and 72 % of hits that were
    reported with 0.2 and 0.28 of the experts in memory, kept by use (flash-moe, colibrì). Real text lies between.
    """
    return Band(share, share**0.45, share**0.22)
