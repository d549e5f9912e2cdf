"""Whether a packed model fits into memory, and how much of it is left for experts where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError
from baltoro.kernels import memory
from baltoro.kernels.formats import Format
from baltoro.weights.layout import shards

MARGIN = 2 * 2**30  # for a prompt's activations, Python and torch; what other programs take meanwhile


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a packed checkpoint's tensors."""

    resident: int  # every token needs them
    experts: int  # routed ones, of which a token needs a few

    @staticmethod
    def of(config: ModelConfig) -> Need:
        resident = experts = 0
        for shard in shards(config, cast("Format", config.packed_format)):
            experts += sum(spec.nbytes for block in shard.blocks for spec in block.specs())
            resident += sum(spec.nbytes for part in shard.matrices for spec in part.specs())
            resident += sum(spec.nbytes for spec in shard.kept)
        return Need(resident, experts)


def expert_budget(need: Need, cache_bytes: int, *, free: int | None = None) -> int | None:
    """Bytes for experts beside what is resident and the latent cache; None where all experts fit."""
    free = memory.free() if free is None else free
    left = free - need.resident - cache_bytes - margin(free)
    if left >= need.experts:
        return None
    if left <= 0:
        raise BaltoroError(
            f"{need.resident / 1e9:.1f} GB of weights that every token needs, {cache_bytes / 1e9:.1f} GB of cache and "
            f"{margin(free) / 1e9:.1f} GB to work in do not fit into the {free / 1e9:.1f} GB that are free",
            hint="a smaller --max-context, or a checkpoint quantized to int4",
        )
    return left


def margin(free: int) -> int:
    """Of free bytes, those that experts do not get: small machines run small models."""
    return min(MARGIN, free // 8)
