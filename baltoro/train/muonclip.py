"""MuonClip: Muon with weight decay and matched RMS, and QK-clip per head of multi-head latent attention.

    matrices    M <- mu M + G;  O <- NewtonSchulz(mu M + G) * 0.2 sqrt(max(rows, columns));  W <- W - lr (O + wd W)
    the rest    AdamW: embeddings, head, norms
    then        each head whose largest score S exceeded tau: gamma = tau / S,
                q_b no-rope rows and kv_b key rows times sqrt(gamma), q_b rope rows times gamma; the shared
                rotary key (kv_a) is untouched, since other heads read it too

Source: Kimi K2 report, algorithm 1; constants of Newton-Schulz, momentum, RMS matching: Moonlight, arXiv:2502.16982.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from baltoro.config import ModelConfig
from baltoro.model.attention import Attention
from baltoro.model.transformer import Transformer
from baltoro.train.layout import Layout, Place, cut, local, local_range, moved, overlap

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # singular values land in about 0.7 .. 1.2, not at 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Field names are recipe keys. One learning rate drives both optimizers, as in Moonlight."""

    lr: float  # peak, update RMS of a matrix is about 0.2 lr
    adamw_lr: float | None = None  # peak for what AdamW trains; None: lr
    weight_decay: float = 0.1  # decoupled: lr * weight_decay * W
    momentum: float = 0.95
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    adamw_eps: float = 1e-8
    qk_clip_tau: float = 100.0  # largest score before the softmax that a head may show
    newton_schulz_steps: int = 5
    per_head: bool = True  # orthogonalise each head's block of q_b and kv_b, and latent and key rows of kv_a, apart
    adamw_matrices: tuple[str, ...] = ()  # regular expressions of matrices that AdamW trains instead


def newton_schulz(matrices: Tensor, steps: int) -> Tensor:
    """(B, n, m) -> about the nearest semi-orthogonal matrices, in bfloat16, each for itself.

    Runs on the smaller side. Source: Moonlight toy_train.py's constants; Jordan et al., "Muon".
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    norm = cast(Tensor, x.float().norm(dim=(-2, -1), keepdim=True))
    x = (x / (norm + 1e-7).to(x.dtype)).contiguous()
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@dataclass(slots=True)
class _Matrix:
    """A parameter that Muon trains: how its rows fall into blocks that are orthogonalised apart, and who does that."""

    name: str
    parameter: nn.Parameter
    place: Place
    blocks: list[int]  # row counts; [rows] for a whole matrix, and for each of a stack
    owned: list[range]  # by process of place.group, along dimension 0; a matrix has one owner, a stack one per expert
    momentum: Tensor = field(init=False)  # of what is owned here

    @property
    def here(self) -> range:
        """What is owned by this process."""
        return self.owned[self.place.group.rank]

    @property
    def stays(self) -> bool:
        """Every process owns just what it holds: nothing travels."""
        return all(self.place.held(rank) == owned for rank, owned in enumerate(self.owned))

    def runs(self) -> list[tuple[int, int, float]]:
        """Rows held here, first and behind the last, whose updates have one scale."""
        held, columns, row = self.place.held(self.place.group.rank), self.parameter.shape[-1], 0
        found: list[tuple[int, int, float]] = []
        within = range(self.parameter.shape[-2]) if self.parameter.dim() == 3 else held
        for rows in self.blocks:
            both, scale = overlap(range(row, row + rows), within), _scale(rows, columns)
            start, stop = both.start - within.start, both.stop - within.start
            if both and found and found[-1][2] == scale:
                found[-1] = (found[-1][0], stop, scale)
            elif both:
                found.append((start, stop, scale))
            row += rows
        return found


def _scale(rows: int, columns: int) -> float:
    """Gives the update the RMS that AdamW's has: Moonlight, section 2.2."""
    return 0.2 * max(rows, columns) ** 0.5


class MuonClip:
    """Steps a Transformer. `step(lr_scale, max_logits)` after backward; `pieces` are what a resumed run needs.

    Momentum and AdamW's moments exist once among the processes that share a parameter: a matrix, or an expert of a
    stack, has one owner, which orthogonalises it for all; what AdamW trains is cut in equal pieces.
    """

    def __init__(self, model: Transformer, config: OptimizerConfig, layout: Layout | None = None) -> None:
        """layout: how `model` is spread; None: it is whole, and this process alone"""
        self.model, self.config = model, config
        self.layout = Layout.alone() if layout is None else layout
        self.updates = 0  # steps taken
        self.attentions = [module for module in model.modules() if isinstance(module, Attention)]  # by layer
        hidden: list[tuple[str, nn.Parameter]] = []
        self.rest: list[tuple[str, nn.Parameter]] = []
        by_hand = re.compile("|".join(config.adamw_matrices)) if config.adamw_matrices else None
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            matrix = parameter.dim() >= 2 and "embed_tokens" not in name and "lm_head" not in name
            (hidden if matrix and not (by_hand and by_hand.search(name)) else self.rest).append((name, parameter))
        self.matrices = self._owners(hidden)
        self.shares = {name: self._share(name, parameter) for name, parameter in self.rest}
        self.adamw_lr = config.lr if config.adamw_lr is None else config.adamw_lr
        self.adamw = torch.optim.AdamW(
            list(self.shares.values()), lr=self.adamw_lr, betas=config.adamw_betas, eps=config.adamw_eps,
            weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip
        for share in self.shares.values():  # there from the start, so that a state can be read into them
            self.adamw.state[share] = {
                "step": torch.zeros(()), "exp_avg": torch.zeros_like(share), "exp_avg_sq": torch.zeros_like(share),
            }  # fmt: skip

    def _owners(self, hidden: list[tuple[str, nn.Parameter]]) -> list[_Matrix]:
        """Stacks are split evenly; of the rest the costliest first, each to the process with the least to do."""
        work = [0.0] * self.layout.world.size
        costs: list[float] = []
        matrices: list[_Matrix] = []
        for name, parameter in hidden:
            place = self.layout.place(name, parameter)
            blocks = _row_blocks(name, parameter, self.model.config) if self.config.per_head else [parameter.shape[-2]]
            columns = parameter.shape[-1]
            costs.append(sum(min(rows, columns) ** 2.0 * max(rows, columns) for rows in blocks))
            owned = [place.share(rank) for rank in range(place.group.size)]
            if parameter.dim() == 3:
                for rank in range(len(work)):
                    work[rank] += costs[-1] * len(owned[rank // self.layout.expert.size])
            matrices.append(_Matrix(name, parameter, place, blocks, owned))
        for index in sorted(range(len(matrices)), key=lambda index: -costs[index]):
            matrix = matrices[index]
            if matrix.parameter.dim() == 2:
                owner = work.index(min(work))
                work[owner] += costs[index]
                matrix.owned = [range(matrix.place.length if rank == owner else 0) for rank in range(len(work))]
        for matrix in matrices:
            shape = (len(matrix.here), *matrix.parameter.shape[1:])
            matrix.momentum = torch.zeros(shape, device=matrix.parameter.device)
        return matrices

    def _share(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """The piece of it that AdamW trains here, in the parameter's own memory."""
        place = self.layout.place(name, parameter)
        rank = place.group.rank
        return nn.Parameter(cut(local(parameter), place.held(rank), place.share(rank)))

    @torch.no_grad()
    def step(self, lr_scale: float, max_logits: list[Tensor]) -> int:
        """One update at `lr_scale` times the peak rates. max_logits: per layer (H,). Returns the heads clipped."""
        self._adamw(self.adamw_lr * lr_scale)
        self._muon(self.config.lr * lr_scale)
        clipped = 0
        for attention, peaks in zip(self.attentions, max_logits, strict=True):
            clipped += qk_clip(attention, peaks, self.config.qk_clip_tau)
        return clipped

    def _adamw(self, lr: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr
        travelling: list[tuple[Tensor, Tensor, Place]] = []
        for name, parameter in self.rest:
            place, share = self.layout.place(name, parameter), self.shares[name]
            rank = place.group.rank
            share.grad = cut(_gradient(name, parameter), place.held(rank), place.share(rank))
            if place.group.size > 1 and not place.sharded:
                travelling.append((local(parameter), share.detach(), place))
        self.adamw.step()
        self.updates += 1
        for group in self.layout.groups:
            pieces = [(whole, share, place) for whole, share, place in travelling if place.group is group]
            ranks = range(group.size)
            came = moved(group, [(share, [place.share(r) for r in ranks], [place.held(r) for r in ranks])
                                 for _, share, place in pieces])  # fmt: skip
            for (whole, _, _), updated in zip(pieces, came, strict=True):
                whole.copy_(updated)

    def _muon(self, lr: float) -> None:
        updates = self._orthogonalised(self._nesterov())
        for matrix, update in zip(self.matrices, self._to_holders(updates), strict=True):
            held = local(matrix.parameter)
            held.mul_(1 - lr * self.config.weight_decay)
            for start, stop, scale in matrix.runs():
                held[..., start:stop, :].add_(update[..., start:stop, :].to(held.dtype), alpha=-lr * scale)

    def _nesterov(self) -> list[Tensor]:
        """Of what each matrix's owner is here: its gradient, gone through momentum."""
        found: list[Tensor] = []
        for matrix, gradient in zip(self.matrices, self._to_owners(), strict=True):
            matrix.momentum.mul_(self.config.momentum).add_(gradient)
            found.append(gradient.add(matrix.momentum, alpha=self.config.momentum))
        return found

    def _to_owners(self) -> list[Tensor]:
        """Whole gradients of the matrices owned here."""
        gradients = [_gradient(matrix.name, matrix.parameter) for matrix in self.matrices]

        def here(matrix: _Matrix, gradient: Tensor) -> Tensor:
            return cut(gradient, matrix.place.held(matrix.place.group.rank), matrix.here)

        def travels(matrix: _Matrix) -> bool:
            return matrix.place.sharded and not matrix.stays

        def ways(matrix: _Matrix) -> tuple[Sequence[range], Sequence[range]]:
            return [matrix.place.held(rank) for rank in range(matrix.place.group.size)], matrix.owned

        return self._travelled(gradients, travels, ways, here)

    def _to_holders(self, updates: list[Tensor]) -> list[Tensor]:
        """Of updates made by the owners, what each process holds the parameters of."""

        def ways(matrix: _Matrix) -> tuple[Sequence[range], Sequence[range]]:
            return matrix.owned, [matrix.place.held(rank) for rank in range(matrix.place.group.size)]

        return self._travelled(updates, lambda matrix: not matrix.stays, ways, lambda _, update: update)

    def _travelled(
        self, tensors: list[Tensor], travels: Callable[[_Matrix], bool],
        ways: Callable[[_Matrix], tuple[Sequence[range], Sequence[range]]], stayed: Callable[[_Matrix, Tensor], Tensor],
    ) -> list[Tensor]:  # fmt: skip
        """One message a group of processes for those that travel."""
        found: list[Tensor] = [torch.empty(0)] * len(tensors)
        for group in self.layout.groups:
            going = [i for i, matrix in enumerate(self.matrices) if matrix.place.group is group and travels(matrix)]
            came = moved(group, [(tensors[i], *ways(self.matrices[i])) for i in going])
            for i, tensor in zip(going, came, strict=True):
                found[i] = tensor
        for i, matrix in enumerate(self.matrices):
            if not travels(matrix):
                found[i] = stayed(matrix, tensors[i])
        return found

    def _orthogonalised(self, sources: list[Tensor]) -> list[Tensor]:
        """Blocks of one shape go through one batched Newton-Schulz, whatever matrix or expert they come from."""
        updates = [torch.empty_like(source, dtype=torch.bfloat16) for source in sources]
        same_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for matrix, source, update in zip(self.matrices, sources, updates, strict=True):
            if not len(source):
                continue
            for piece, block in zip(*(torch.split(t, matrix.blocks, dim=-2) for t in (source, update)), strict=True):
                rows, columns = piece.shape[-2:]
                if rows > columns:  # a tall block joins the wide ones: NS(X^T) = NS(X)^T
                    piece, block = piece.mT, block.mT
                shape = (min(rows, columns), max(rows, columns))
                same_shape[shape].append((piece.reshape(-1, *piece.shape[-2:]), block))
        for pairs in same_shape.values():
            made = newton_schulz(torch.cat([source for source, _ in pairs]), self.config.newton_schulz_steps)
            for (_, block), update in zip(pairs, torch.split(made, [len(s) for s, _ in pairs]), strict=True):
                block.copy_(update.view(block.shape))
        return updates

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def pieces(self) -> Iterator[Piece]:
        """What of momentum and moments is here; loading is writing into these tensors."""
        for matrix in self.matrices:
            first = matrix.place.first + matrix.here.start
            yield Piece("momentum", matrix.name, matrix.momentum, first)
        for name, parameter in self.rest:
            place = self.layout.place(name, parameter)
            first = place.first + place.share(place.group.rank).start
            for moment in ("exp_avg", "exp_avg_sq"):
                yield Piece(moment, name, self.adamw.state[self.shares[name]][moment], first)

    def taken(self, steps: int) -> None:
        """So many steps were taken before, which AdamW's bias correction knows."""
        self.updates = steps
        for share in self.shares.values():
            self.adamw.state[share]["step"].fill_(float(steps))


class Piece(NamedTuple):
    kind: str  # parameters, momentum, exp_avg, exp_avg_sq
    name: str  # of the parameter
    tensor: Tensor
    first: int  # where it begins in the whole, along dimension 0


def _gradient(name: str, parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, f"{name} had no gradient"
    return local(parameter.grad)


def _row_blocks(name: str, parameter: Tensor, config: ModelConfig) -> list[int]:
    heads = config.num_attention_heads
    if name.endswith(("q_b_proj.weight", "q_proj.weight")):
        return [config.qk_nope_head_dim, config.qk_rope_head_dim] * heads
    if name.endswith("kv_b_proj.weight"):
        return [config.qk_nope_head_dim, config.v_head_dim] * heads
    if name.endswith("kv_a_proj_with_mqa.weight"):
        return [config.kv_lora_rank, config.qk_rope_head_dim]
    return [parameter.shape[-2]]


@torch.no_grad()
def qk_clip(attention: Attention, peaks: Tensor, tau: float) -> int:
    """Shrink the heads whose largest score exceeded tau, so that the same batch would now give exactly tau.

    peaks: (H,). Returns how many heads were shrunk; the others are left bit for bit. A peak that is 0, negative or not
    a number shrinks nothing; an infinite one neither, since no factor would make it tau.
    """
    config = attention.config
    over = (peaks > tau) & peaks.isfinite()
    if not over.any():
        return 0
    gamma = torch.where(over, tau / peaks, 1.0).double().unsqueeze(1)  # (H, 1); 1 leaves every bit as it is
    N, R, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    queries = attention.q_proj if config.q_lora_rank is None else attention.q_b_proj
    _scale_rows(queries.weight, torch.cat((gamma.sqrt().expand(-1, N), gamma.expand(-1, R)), 1))
    _scale_rows(attention.kv_b_proj.weight, torch.cat((gamma.sqrt().expand(-1, N), torch.ones(len(gamma), V)), 1))
    return int(over.sum())


def _scale_rows(parameter: nn.Parameter, factors: Tensor) -> None:
    """factors: (H, rows / H), of the whole parameter; this process may hold some of its rows alone."""
    held, rows = local(parameter), local_range(parameter)
    held.mul_(factors.flatten()[rows.start : rows.stop].to(held.dtype).unsqueeze(1))


@torch.no_grad()
def rebalance(biases: Iterable[Tensor], expert_tokens: Iterable[Tensor], rate: float) -> None:
    """Move each router's selection bias towards even load: b += u (sign(err) - mean(sign(err))).

    err is the mean load less the expert's. Source: Moonlight, section 2.3 (u = 1e-3); DeepSeek-V3, section 2.1.2.
    """
    for bias, tokens in zip(biases, expert_tokens, strict=True):
        sign = (tokens.float().mean() - tokens.float()).sign()
        bias += rate * (sign - sign.mean())
