"""What a recipe would cost: bytes of one process, operations of one token, steps and days. Nothing is run.

The model is built without memory and spread as training spreads it, so bytes of parameters and states are counted, not
estimated; activations and days are formulas, which stand in the text. Bytes are those of the process that has most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.errors import RecipeError
from baltoro.train.distributed import World
from baltoro.train.layout import Layout, is_expert, split
from baltoro.train.muonclip import MuonClip
from baltoro.train.recipe import Recipe, check_processes

WIDE = 4  # bytes of a parameter, gradient, momentum, moment: all float32


@dataclass(frozen=True, slots=True)
class PhasePlan:
    name: str
    steps: int  # at most, where a gate may end it earlier
    tokens: int
    flops: float  # of all its tokens; products of forward and backward, nothing twice
    activation_bytes: int  # of one microbatch


@dataclass(frozen=True, slots=True)
class Plan:
    processes: int
    parameters: int
    active: int  # of them for one token
    layout: str
    parameter_bytes: int
    gradient_bytes: int
    momentum_bytes: int
    adamw_bytes: int
    gathered_bytes: int  # FSDP2: the largest layer, whole, and its gradients before they are summed
    token_flops: float  # of one token of the first phase, forward and backward
    phases: tuple[PhasePlan, ...]

    @property
    def activation_bytes(self) -> int:
        """Of the phase that needs most."""
        return max(phase.activation_bytes for phase in self.phases)

    @property
    def bytes(self) -> int:
        states = self.parameter_bytes + self.gradient_bytes + self.momentum_bytes + self.adamw_bytes
        return states + self.gathered_bytes + self.activation_bytes

    def days(self, *, mfu: float, peak_flops: float) -> float:
        """At `mfu` (0 to 1) of processes times peak_flops operations a second."""
        return sum(phase.flops for phase in self.phases) / (self.processes * peak_flops * mfu) / 86400


def plan(recipe: Recipe, processes: int) -> Plan:
    """Raises RecipeError where the recipe cannot be divided among so many processes."""
    config = ModelConfig.open(recipe.init) if recipe.model is None else recipe.model
    check_processes(recipe, processes)
    layout = Layout.planned(World(0, processes), recipe.parallel, config)
    model = split(config, layout, connected=False)
    held: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        place = layout.place(name, parameter)
        held[name] = len(place.held(0)) * (parameter.numel() // max(len(parameter), 1)) * WIDE
    whole = {name: parameter.numel() * WIDE for name, parameter in model.named_parameters()}
    optimizer = MuonClip(model, recipe.optimizer, layout)
    momentum = [0] * processes
    for matrix in optimizer.matrices:
        row = matrix.parameter.numel() // len(matrix.parameter) * WIDE
        apart = is_expert(matrix.name)
        for rank in range(processes):
            momentum[rank] += row * len(matrix.owned[rank // layout.expert.size if apart else rank])
    bias = sum(size for name, size in held.items() if name.endswith("e_score_correction_bias"))
    largest = max(_layer(whole, index) for index in range(config.num_hidden_layers))
    return Plan(
        processes=processes,
        parameters=counts.parameters(config),
        active=counts.active_parameters(config),
        layout=_described(layout, config),
        parameter_bytes=sum(held.values()),
        gradient_bytes=sum(held.values()) - bias,
        momentum_bytes=max(momentum),
        adamw_bytes=sum(p.tensor.numel() * WIDE for p in optimizer.pieces() if p.kind != "momentum"),
        gathered_bytes=2 * largest if layout.shard else 0,
        token_flops=token_flops(config, recipe.phases[0].microbatch_tokens or recipe.microbatch_tokens),
        phases=tuple(_phases(recipe, config)),
    )


def token_flops(config: ModelConfig, context: int) -> float:
    """Of one token in a document of `context` tokens: three times its forward, as backward is two of them."""
    head = 2 * config.vocab_size * config.hidden_size
    forward = counts.prefill_flops(config, tokens=context) + head * (context - 1)
    return 3 * forward / context


def activation_bytes(recipe: Recipe, config: ModelConfig, tokens: int) -> int:
    """What backward needs of one microbatch that is one document: an estimate from the widths of what each part keeps.

    With recompute: every block's input, and one block in full while it is run again. Logits in float32, twice.
    """
    kept = 2 if recipe.dtype == "bfloat16" else 4
    D, H, S = config.hidden_size, config.num_attention_heads, tokens
    queries = 2 * H * config.qk_head_dim + 2 * (config.q_lora_rank or 0)
    keys = 2 * config.kv_lora_rank + config.qk_rope_head_dim + H * (config.qk_head_dim + config.v_head_dim)
    attention = (
        2 * D + queries + keys + H * config.v_head_dim + H * S // 2
    )  # the scores behind the softmax, half of S x S
    routed = config.num_experts_per_tok * (2 * D + 4 * config.moe_intermediate_size)
    mixture = 2 * D + routed + 4 * config.n_shared_experts * config.moe_intermediate_size
    dense = 2 * D + 4 * config.intermediate_size
    mlps = [mixture if config.is_moe(layer) else dense for layer in range(config.num_hidden_layers)]
    blocks = (
        config.num_hidden_layers * D + attention + max(mlps) if recipe.recompute else sum(mlps) + len(mlps) * attention
    )
    return tokens * (blocks * kept + 2 * 4 * config.vocab_size)


def _phases(recipe: Recipe, config: ModelConfig) -> Iterator[PhasePlan]:
    for phase in recipe.phases:
        tokens = phase.steps * (phase.tokens_per_step or recipe.tokens_per_step)
        context = phase.microbatch_tokens or recipe.microbatch_tokens
        flops, activations = tokens * token_flops(config, context), activation_bytes(recipe, config, context)
        yield PhasePlan(phase.name, phase.steps, tokens, flops, activations)


def _layer(whole: dict[str, int], index: int) -> int:
    prefix = f"model.layers.{index}."
    return sum(size for name, size in whole.items() if name.startswith(prefix))


def _described(layout: Layout, config: ModelConfig) -> str:
    size, replicas = layout.expert.size, layout.replicas.size
    held, kept = config.n_routed_experts // size, "sharded (FSDP2)" if layout.shard else "whole on every process"
    text = f"dense parameters {kept}; {config.n_routed_experts} experts over {size}, {held} each, {replicas} times"
    share = math.ceil(held / replicas)
    if idle := replicas - math.ceil(held / share):
        text += f"; of {replicas} that share {held}, {idle} own none"
    return text


def text(plan: Plan, *, mfu: float, peak_tflops: float) -> str:
    """For people. Raises RecipeError where mfu or peak_tflops make no sense."""
    if not 0 < mfu <= 1 or peak_tflops <= 0:
        raise RecipeError(f"mfu is {mfu}, peak {peak_tflops} TFLOP/s", hint="mfu is above 0 and at most 1")
    lines = [
        f"parameters        {plan.parameters:,}, of which a token meets {plan.active:,}",
        f"processes         {plan.processes}: {plan.layout}",
        "bytes of the process that has most:",
    ]
    for name, size in (
        ("parameters", plan.parameter_bytes), ("gradients", plan.gradient_bytes), ("momentum", plan.momentum_bytes),
        ("AdamW's moments", plan.adamw_bytes), ("a layer gathered", plan.gathered_bytes),
        ("activations (estimated)", plan.activation_bytes), ("together", plan.bytes),
    ):  # fmt: skip
        lines.append(f"  {name:<25}{size / 2**30:>12,.2f} GiB")
    lines.append(f"operations        {plan.token_flops:.3g} a token, forward and backward, nothing twice")
    for phase in plan.phases:
        lines.append(
            f"  {phase.name:<25}{phase.steps:>12,} steps  {phase.tokens:>22,} tokens  {phase.flops:.3g} FLOP  "
            f"{phase.activation_bytes / 2**30:,.2f} GiB of activations"
        )
    total = sum(phase.flops for phase in plan.phases)
    days = plan.days(mfu=mfu, peak_flops=peak_tflops * 1e12)
    speed = f"{plan.processes} x {peak_tflops:g} TFLOP/s x {mfu:g}"
    lines.append(f"days              {days:,.1f} = {total:.4g} FLOP / ({speed}) / 86,400 s")
    return "\n".join(lines)
