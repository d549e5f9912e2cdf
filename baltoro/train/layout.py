"""Which process holds which part of the model: data, expert and parameter parallelism as one piece of arithmetic.

    N processes, each with microbatches of its own
    dense parameters      shared by all N
    experts               split by number over `expert` neighbouring processes, between which tokens travel
                          (model/distributed_experts.py); each such part is shared by the N / expert replicas
    shared, shard=false   every process has the whole parameter
    shared, shard=true    FSDP2: every process has a piece along dimension 0 and gathers it for a layer's time
    optimizer states      always one copy among the processes that share the parameter (ZeRO-1)

Source of the nesting: torchtitan, where expert parallelism takes its processes from data parallelism as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from baltoro.config import ModelConfig
from baltoro.errors import RecipeError
from baltoro.model.distributed_experts import DistributedExperts
from baltoro.model.load import build
from baltoro.model.moe import MoE
from baltoro.model.transformer import Block, Transformer
from baltoro.train.distributed import World


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """[parallel] of a recipe. How the model is spread; what is trained is the same up to rounding."""

    expert: int = 1  # processes over which a layer's experts are split; must divide both their numbers
    shard: bool = False  # keep a piece of every parameter on each process (FSDP2) instead of all of it


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parts of one parameter are. Ranges are of its dimension 0: rows of a matrix, experts of a stack."""

    group: World  # who shares it
    first: int  # where what the group shares begins in the whole parameter
    length: int  # of what the group shares
    sharded: bool  # each holds its own share, not all

    def share(self, rank: int) -> range:
        """The part that process `rank` of the group answers for, as FSDP2 cuts: in equal pieces, the last ones less."""
        size = -(-self.length // self.group.size)
        return range(min(rank * size, self.length), min((rank + 1) * size, self.length))

    def held(self, rank: int) -> range:
        return self.share(rank) if self.sharded else range(self.length)


@dataclass(frozen=True, slots=True)
class Layout:
    world: World
    expert: World  # those that have a layer's experts together
    replicas: World  # those that have the same experts
    shard: bool

    @staticmethod
    def alone() -> Layout:
        world = World.alone()
        return Layout(world, world, world, False)

    @staticmethod
    def planned(world: World, parallel: ParallelConfig, config: ModelConfig) -> Layout:
        """The arithmetic alone. Raises RecipeError where a number does not divide."""
        for number, things in ((world.size, "processes"), (config.n_routed_experts, "experts of a layer")):
            if parallel.expert < 1 or number % parallel.expert:
                raise RecipeError(
                    f"[parallel] expert is {parallel.expert}, which does not divide the {number} {things}",
                    hint=f"expert may be one of {', '.join(map(str, _divisors(world.size, config.n_routed_experts)))}",
                )
        expert = World(world.rank % parallel.expert, parallel.expert)
        alike = World(world.rank // parallel.expert, world.size // parallel.expert)
        replicas = world if parallel.expert == 1 else alike
        return Layout(world, expert, replicas, parallel.shard and world.size > 1)

    @staticmethod
    def connected(world: World, parallel: ParallelConfig, config: ModelConfig) -> Layout:
        """With groups to talk in; all processes call it together."""
        plan = Layout.planned(world, parallel, config)
        if plan.expert.size == 1:
            return plan
        starts, width = range(0, world.size, plan.expert.size), plan.expert.size
        together = _group([list(range(start, start + width)) for start in starts])
        alike = _group([list(range(rank, world.size, width)) for rank in range(width)])
        return Layout(
            world, World(plan.expert.rank, plan.expert.size, together),
            World(plan.replicas.rank, plan.replicas.size, alike), plan.shard,
        )  # fmt: skip

    @property
    def groups(self) -> list[World]:
        """Those that share parameters: `Place.group` is one of them."""
        return [self.world] if self.replicas is self.world else [self.world, self.replicas]

    @property
    def split(self) -> bool:
        """No process has the whole model."""
        return self.shard or self.expert.size > 1

    def place(self, name: str, parameter: Tensor) -> Place:
        """parameter: as it is in a model that `spread` made; a DTensor's shape is that of what its group shares."""
        length = parameter.shape[0]
        if name.endswith("e_score_correction_bias"):  # not trained by gradients, and small
            return Place(self.world, 0, length, False)
        if is_expert(name):
            return Place(self.replicas, self.expert.rank * length, length, self.shard and self.replicas.size > 1)
        return Place(self.world, 0, length, self.shard)

    def shares(self, name: str, parameter: Tensor) -> list[range]:
        """Of the whole parameter, what each process of the world answers for; together all of it, once."""
        place = self.place(name, parameter)
        if not is_expert(name):
            return [place.share(rank) for rank in range(self.world.size)]
        found: list[range] = []
        for rank in range(self.world.size):
            first, share = rank % self.expert.size * place.length, place.share(rank // self.expert.size)
            found.append(range(first + share.start, first + share.stop))
        return found


def is_expert(name: str) -> bool:
    return ".mlp.experts." in name


def spread(config: ModelConfig, layout: Layout, parameters: Iterable[tuple[str, Tensor]]) -> Transformer:
    """This process's part of a model, float32. parameters: whole ones, by name, in the model's order."""
    model = split(config, layout).to_empty(device="cpu")
    with torch.no_grad():
        for (name, parameter), (given, whole) in zip(model.named_parameters(), parameters, strict=True):
            assert name == given, (name, given)
            place = layout.place(name, parameter)
            held = place.held(place.group.rank)
            local(parameter).copy_(whole[place.first + held.start : place.first + held.stop])
    return model


def split(config: ModelConfig, layout: Layout, *, connected: bool = True) -> Transformer:
    """The modules of this process's part, without memory. connected=False: to be counted only, not to be run."""
    model = build(config)
    mixtures = [block.mlp for block in _blocks(model) if isinstance(block.mlp, MoE)]
    if layout.expert.size > 1:
        for mixture in mixtures:
            with torch.device("meta"):
                mixture.experts = DistributedExperts(config, layout.expert.size, layout.expert.group)
    if layout.shard and connected:
        _shard(model, layout, [mixture.experts for mixture in mixtures])
    return model


def _shard(model: Transformer, layout: Layout, experts: Sequence[nn.Module]) -> None:
    from torch.distributed.device_mesh import DeviceMesh  # seconds to import
    from torch.distributed.fsdp import FSDPModule, fully_shard

    def mesh(world: World) -> DeviceMesh:
        group = dist.group.WORLD if world.group is None else world.group
        assert group is not None
        return DeviceMesh.from_group(group, "cpu")

    everywhere = mesh(layout.world)
    ignored = {p for name, p in model.named_parameters() if name.endswith("e_score_correction_bias")}
    if layout.replicas.size == 1:  # nobody to share experts with
        ignored |= {p for stack in experts for p in stack.parameters()}
    elif layout.expert.size > 1:
        apart = mesh(layout.replicas)
        for stack in experts:
            fully_shard(stack, mesh=apart)
    for block in _blocks(model):
        fully_shard(block, mesh=everywhere, ignored_params=ignored)
    fully_shard(model, mesh=everywhere, reshard_after_forward=True, ignored_params=ignored)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # sums, as everywhere here: the loss is divided by the tokens of all
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # otherwise the factor is a kind of sum that gloo lacks


def local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter or gradient, sharing its memory."""
    found: Any = parameter.detach()
    return cast(Tensor, found.to_local()) if _is_dtensor(found) else found


def local_range(parameter: Tensor) -> range:
    """The part of dimension 0 that `local` holds."""
    if not _is_dtensor(parameter):
        return range(len(parameter))
    mesh = cast(Any, parameter).device_mesh
    return Place(World(mesh.get_local_rank(), mesh.size()), 0, parameter.shape[0], True).held(mesh.get_local_rank())


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # its class takes seconds to import, and without sharding nobody needs it


def moved(group: World, pieces: Sequence[tuple[Tensor, Sequence[range], Sequence[range]]]) -> list[Tensor]:
    """Tensors cut another way along dimension 0, as one message.

    Each piece is what this process has of a tensor, the range that every process has, and the range that every
    process wants. Ranges had must not overlap.
    """
    me, everyone = group.rank, range(group.size)
    found = [tensor.new_empty(len(want[me]), *tensor.shape[1:]) for tensor, _, want in pieces]
    sends = [[cut(t, have[me], both) for t, have, want in pieces if (both := overlap(have[me], want[rank]))]
             for rank in everyone]  # fmt: skip
    receives = [
        [cut(t, want[me], both) for t, (_, have, want) in zip(found, pieces, strict=True)
         if (both := overlap(have[rank], want[me]))]
        for rank in everyone
    ]  # fmt: skip
    if pieces:
        group.exchange(sends, receives, pieces[0][0].dtype)
    return found


def gathered(model: Transformer, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters, one at a time; on all processes but the leading one they are empty. All must ask for all."""
    for name, parameter in model.named_parameters():
        place, have = layout.place(name, parameter), layout.shares(name, parameter)
        rank = place.group.rank
        whole = range(place.length * (layout.expert.size if is_expert(name) else 1))
        want = [whole, *[range(0)] * (layout.world.size - 1)]
        share = cut(local(parameter), place.held(rank), place.share(rank))
        yield name, moved(layout.world, [(share, have, want)])[0]


def whole(model: Transformer, layout: Layout) -> Transformer | None:
    """The model itself where every process has all of it; else a copy of all parts, on the leading process alone."""
    if not layout.split:
        return model
    parts = gathered(model, layout)
    if not layout.world.leads:
        for _ in parts:
            pass
        return None
    copy = spread(model.config, Layout.alone(), parts)
    copy.dtype = model.dtype
    return copy.train(model.training)


def cut(tensor: Tensor, held: range, wanted: range) -> Tensor:
    """The part `wanted` of a tensor that is `held` along dimension 0."""
    return tensor[wanted.start - held.start : wanted.stop - held.start]


def overlap(one: range, other: range) -> range:
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return range(start, max(start, stop))


def _blocks(model: Transformer) -> list[Block]:
    return cast("list[Block]", list(model.model.layers))


def _group(members: list[list[int]]) -> dist.ProcessGroup:
    mine, _ = dist.new_subgroups_by_enumeration(members)  # pyright: ignore
    assert mine is not None
    return cast(dist.ProcessGroup, mine)


def _divisors(*numbers: int) -> list[int]:
    return [d for d in range(1, min(numbers) + 1) if not any(number % d for number in numbers)]
