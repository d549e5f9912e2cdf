"""A training step's forward and backward as a few nodes of autograd, native inside: half a layer each, and the head.

What torch's modules do operator by operator in bfloat16 is here two nodes a layer, which keep the residual stream in
float32, attend inside each packed document without padding, and add weights' gradients straight to `.grad`. Weights
are rounded and packed once a step, not once a microbatch. `suits` is the one place that decides.
The modules are the twin: tests/model/test_trained.py compares both with float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from baltoro.kernels import training
from baltoro.kernels.room import Room
from baltoro.kernels.routing import route
from baltoro.kernels.training import Attended, ExpertPanels, Groups, Norm, Panels
from baltoro.model.attention import Attention
from baltoro.model.batch import Batch
from baltoro.model.linear import Linear, RMSNorm
from baltoro.model.moe import MLP, Experts, MoE
from baltoro.model.rope import rotary_table


class PackedWeights:
    """Each weight's panels, made when they are first asked for and kept until they are forgotten."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Any] = {}
        self.room = Room()
        self._parameters: list[tuple[bool, nn.Parameter]] = []

    def parameters(self, model: nn.Module) -> list[tuple[bool, nn.Parameter]]:
        """Of this model, and whether each is trained; looked for once, since that takes milliseconds."""
        if not self._parameters:
            named = model.named_parameters()
            self._parameters = [(not name.endswith("e_score_correction_bias"), each) for name, each in named]
        return self._parameters

    def forget(self) -> None:
        self._kept.clear()

    def linear(self, weight: Tensor) -> tuple[Panels, Panels]:
        """Of y = x W^T, and of x's gradient."""
        return self._of((weight,), _both_panels)

    def experts(self, module: MLP | Experts) -> ExpertPanels:
        return self._of(_three(module), training.expert_panels)

    def _of(self, weights: tuple[Tensor, ...], make: Callable[..., Any]) -> Any:
        key = tuple(weight.data_ptr() for weight in weights)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = make(*(weight.detach() for weight in weights))
        return kept


def _both_panels(weight: Tensor) -> tuple[Panels, Panels]:
    return training.forward_panels(weight), training.gradient_panels(weight)


def _three(module: MLP | Experts) -> tuple[Tensor, Tensor, Tensor]:
    return module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight


def _gradient(parameter: Tensor) -> Tensor:
    """Where its gradient is added up."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class Documents:
    """What all layers of one forward share: where documents end, and their tokens' angles."""

    def __init__(self, cos: Tensor, sin: Tensor, edges: Tensor, room: Room) -> None:
        self.cos, self.sin, self.edges, self.room = cos.contiguous(), sin.contiguous(), edges, room
        self._generation = room.generation
        self.all = training.grouped(torch.zeros(len(cos), 1, dtype=torch.int64), 1)  # one expert has every token

    def still_here(self) -> Room:
        """Its room, for the backward."""
        if self.room.generation != self._generation:
            raise RuntimeError("backward comes after the next loss, whose forward has overwritten what it needs")
        return self.room


def _taken(ctx: Any) -> tuple[Any, ...]:
    """What a forward has kept. What its node kept beyond that would never be freed: its output is among it."""
    kept, ctx.kept = ctx.kept, ()
    return kept


class _AttentionHalf(torch.autograd.Function):
    """x + o(attention(norm(x))), (T, D) float32, and each document's and head's largest score."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: RMSNorm, attention: Attention, packed: PackedWeights, documents: Documents
    ) -> tuple[Tensor, Tensor]:
        config = attention.config
        H, C, cos, sin = config.num_attention_heads, config.kv_lora_rank, documents.cos, documents.sin
        room = documents.room
        h = training.norm(x.detach(), norm.weight.detach(), norm.eps, room)
        latent_q = None
        if config.q_lora_rank is None:
            q = training.product(h.y, packed.linear(attention.q_proj.weight)[0], room)
        else:
            narrow = training.product(h.y, packed.linear(attention.q_a_proj.weight)[0], room, wide=True)
            inner = attention.q_a_layernorm
            latent_q = training.norm(narrow, inner.weight.detach(), inner.eps, room)
            q = training.product(latent_q.y, packed.linear(attention.q_b_proj.weight)[0], room)
        q = q.view(len(x), H, config.qk_head_dim)
        training.turn(q, cos, sin)
        both = training.product(
            h.y, packed.linear(attention.kv_a_proj_with_mqa.weight)[0], room, wide=True
        )  # (T, C + R)
        inner = attention.kv_a_layernorm
        latent = training.norm(both[:, :C], inner.weight.detach(), inner.eps, room)
        k_pe = room.empty(len(x), config.qk_rope_head_dim, dtype=torch.bfloat16).copy_(both[:, C:])
        training.turn(k_pe.unsqueeze(1), cos, sin)
        kv = training.product(latent.y, packed.linear(attention.kv_b_proj.weight)[0], room).view(len(x), H, -1)
        attended = training.attend(q, kv, k_pe, documents.edges, room, scale=attention.scale)
        y = training.product(
            attended.context.flatten(1), packed.linear(attention.o_proj.weight)[0], room, onto=x.detach()
        )
        ctx.kept = (norm, attention, packed, documents, h, latent_q, latent, attended)
        ctx.mark_non_differentiable(attended.peaks)
        return y, attended.peaks

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _peaks: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        norm, attention, packed, documents, h, latent_q, latent, attended = _taken(ctx)
        room, dy = documents.still_here(), dy.contiguous()
        dx = room.empty(*dy.shape)
        with room.piece():
            _attention_gradient(dy, dx, norm, attention, packed, documents, h, latent_q, latent, attended)
        return dx, None, None, None, None


def _attention_gradient(
    dy: Tensor, dx: Tensor, norm: RMSNorm, attention: Attention, packed: PackedWeights, documents: Documents, h: Norm,
    latent_q: Norm | None, latent: Norm, attended: Attended,
) -> None:  # fmt: skip
    """To dx. Weights' gradients are added to theirs."""
    config, room = attention.config, documents.room
    T, C, cos, sin = len(dy), config.kv_lora_rank, documents.cos, documents.sin
    rounded = training.rounded(dy, room)
    dcontext = _through(packed, attention.o_proj.weight, rounded, attended.context.flatten(1), room, wide=False)
    dq, dkv, dk_pe = attended.gradient(dcontext.view_as(attended.context), room)
    training.turn(dq, cos, sin, back=True)
    dboth = room.empty(T, C + config.qk_rope_head_dim, dtype=torch.bfloat16)
    training.sum_heads(dk_pe, dboth[:, C:])
    training.turn(dboth.unsqueeze(1), cos, sin, back=True)
    dlatent = _through(packed, attention.kv_b_proj.weight, dkv.flatten(1), latent.y, room)
    latent.gradient(dlatent, _gradient(attention.kv_a_layernorm.weight), to=dboth[:, :C])
    dh = _through(packed, attention.kv_a_proj_with_mqa.weight, dboth, h.y, room)
    if latent_q is None:
        dh = _through(packed, attention.q_proj.weight, dq.flatten(1), h.y, room, onto=dh)
    else:
        dlatent_q = _through(packed, attention.q_b_proj.weight, dq.flatten(1), latent_q.y, room)
        dnarrow = room.empty(*latent_q.y.shape, dtype=torch.bfloat16)
        latent_q.gradient(dlatent_q, _gradient(attention.q_a_layernorm.weight), to=dnarrow)
        dh = _through(packed, attention.q_a_proj.weight, dnarrow, h.y, room, onto=dh)
    h.gradient(dh, _gradient(norm.weight), to=dx, onto=dy)


def _through(
    packed: PackedWeights,
    weight: Tensor,
    dy: Tensor,
    x: Tensor,
    room: Room,
    *,
    onto: Tensor | None = None,
    wide: bool = True,
) -> Tensor:
    """x's gradient of y = x W^T, of dy (T, O) and x (T, I) bf16; W's is added to its own."""
    training.add_outer(dy, x, _gradient(weight))
    return training.product(dy, packed.linear(weight)[1], room, onto=onto, wide=wide)


class _MixtureHalf(torch.autograd.Function):
    """x + mlp(norm(x)), (T, D) float32, and who was chosen, (T, K); (T, 0) of a dense layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: RMSNorm, mlp: MLP | MoE, packed: PackedWeights, documents: Documents
    ) -> tuple[Tensor, Tensor]:
        room = documents.room
        h = training.norm(x.detach(), norm.weight.detach(), norm.eps, room, wide=isinstance(mlp, MoE))
        routed = shared = None
        y, chosen = x.detach(), torch.empty(len(x), 0, dtype=torch.int64)
        if isinstance(mlp, MoE):
            assert h.wide is not None
            gate = mlp.gate
            weights, chosen = route(h.wide, gate.weight, gate.e_score_correction_bias, gate.choice)
            groups: Groups = training.grouped(chosen, len(gate.weight))
            routed = training.experts(h.y, weights, groups, packed.experts(mlp.experts), room, onto=y)
            y = routed.y
        dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
        if dense is not None:
            shared = training.experts(h.y, None, documents.all, packed.experts(dense), room, onto=y)
            y = shared.y
        ctx.kept = (documents, norm, mlp, dense, h, routed, shared, chosen)
        ctx.mark_non_differentiable(chosen)
        return y, chosen

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _chosen: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        documents, norm, mlp, dense, h, routed, shared, chosen = _taken(ctx)
        room = documents.still_here()
        dx = room.empty(*dy.shape)
        with room.piece():
            dy = dy.contiguous()
            rounded, dh = training.rounded(dy, room), None
            if shared is not None:
                dh, _ = shared.gradient(rounded, _gradients(dense), room)
            if routed is not None:
                dh, dweights = routed.gradient(rounded, _gradients(mlp.experts), room, onto=dh)
                gate = mlp.gate
                training.add_route_gradient(
                    h.wide, gate.weight.detach(), gate.choice, chosen, dweights, dx=dh, dweight=_gradient(gate.weight)
                )
            h.gradient(dh, _gradient(norm.weight), to=dx, onto=dy)
        return dx, None, None, None, None


def _gradients(module: MLP | Experts) -> tuple[Tensor, Tensor, Tensor]:
    gate, up, down = _three(module)
    return _gradient(gate), _gradient(up), _gradient(down)


class _Head(torch.autograd.Function):
    """The sum of the cross-entropies of x (rows, D) float32, and each, (rows,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: RMSNorm, head: Linear, packed: PackedWeights, documents: Documents, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        room = documents.room
        h = training.norm(x.detach(), norm.weight.detach(), norm.eps, room)
        dhead = room.empty(*head.weight.shape).zero_()
        nats, dh = training.losses(h.y, targets, *packed.linear(head.weight), dhead, room)
        ctx.kept = (documents, norm, head, h, dh, dhead)
        ctx.mark_non_differentiable(nats)
        return nats.sum(), nats

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor, _nats: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        documents, norm, head, h, dh, dhead = _taken(ctx)
        room, by = documents.still_here(), float(dtotal)
        _gradient(head.weight).add_(dhead, alpha=by)
        dx = room.empty(*dh.shape)
        h.gradient(dh if by == 1 else dh * by, _gradient(norm.weight), to=dx)
        return dx, None, None, None, None, None


def suits(model: Any, packed: PackedWeights, batch: Batch) -> bool:
    """Whether this model's training step runs natively: bfloat16, whole, on a CPU whose target has the kernels."""
    config = model.config
    if model.dtype is not torch.bfloat16 or not torch.is_grad_enabled() or not training.runs():
        return False
    widths = (
        config.hidden_size, config.vocab_size, config.intermediate_size, config.moe_intermediate_size,
        config.q_lora_rank or 0, config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim,
        config.v_head_dim,
    )  # fmt: skip
    if any(width % training.WIDTH for width in widths) or batch.pages:
        return False
    blocks = model.model.layers
    if any(block.recompute or (isinstance(block.mlp, MoE) and block.mlp.experts.spread) for block in blocks):
        return False
    return all(
        parameter.requires_grad == wanted
        and parameter.dtype is torch.float32
        and parameter.is_cpu
        and parameter.is_contiguous()
        and not isinstance(parameter, DTensor)
        for wanted, parameter in packed.parameters(model)
    )


def total_loss(
    model: Any, packed: PackedWeights, batch: Batch, targets: Tensor, observed: Any
) -> tuple[Tensor, Tensor]:
    """As `Transformer.loss`, of a model that suits."""
    packed.room.clear()
    documents = Documents(*rotary_table(model.config, batch.positions), torch.tensor(batch.edges), packed.room)
    x: Tensor = model.model.embed_tokens(batch.ids)  # (T, D) float32
    for block in model.model.layers:
        x, peaks = _applied(_AttentionHalf, x, block.input_layernorm, block.self_attn, packed, documents)
        x, chosen = _applied(_MixtureHalf, x, block.post_attention_layernorm, block.mlp, packed, documents)
        if observed is not None:
            observed.max_logits.append(peaks.amax(0))
            if isinstance(block.mlp, MoE):
                observed.chosen.append(chosen)
    if batch.logit_rows is not None:
        x = x[batch.logit_rows]
    return _applied(_Head, x, model.model.norm, model.lm_head, packed, documents, targets)


def _applied(node: type[torch.autograd.Function], *arguments: object) -> tuple[Tensor, Tensor]:
    return cast("tuple[Tensor, Tensor]", node.apply(*arguments))  # pyright: ignore[reportUnknownMemberType]
