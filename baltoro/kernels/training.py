"""Products, attention, experts and the loss with their gradients, in bfloat16 with float32 sums, for training on CPUs.

Some targets have them (`runs`): AVX-512 BF16 and AMX. Where there is none, on GPUs and in float32, the model's modules
under torch's autograd do the same; they are the twin of what model/trained.py makes of these calls. All widths are
multiples of 16. Weights' gradients are added to float32 buffers. Results don't depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baltoro.kernels.room import Room
from baltoro.kernels.routing import Choice
from baltoro.kernels.targets import chosen_target, native

WIDTH = 16  # every width is a multiple of it


def runs() -> bool:
    """Whether the chosen target has kernels for training."""
    return chosen_target() != "torch" and native().can_train(chosen_target())


@dataclass(frozen=True, slots=True)
class Panels:
    """One factor (I, O) of a product as kernels read it, or a stack of them (kernels/csrc/training.h)."""

    numbers: Tensor  # bf16, of (I, O) or (E, I, O)
    inputs: int
    outputs: int


def forward_panels(weight: Tensor) -> Panels:
    """Of y = x W^T, W (O, I) or a stack (E, O, I) float32."""
    E, O, I = _stack(weight)
    panels = torch.empty(E * O * I, dtype=torch.bfloat16)
    native().train_pack(
        chosen_target(), weight.data_ptr(), panels.data_ptr(), E, O, I, torch.get_num_threads()
    )  # fmt: skip
    return Panels(panels, I, O)


def gradient_panels(*weights: Tensor) -> Panels:
    """Of dx = dy W, the rows of all `weights` being one matrix's: (O, I) or stacks (E, O, I) float32."""
    E, _, I = _stack(weights[0])
    every = sum(_stack(weight)[1] for weight in weights)
    panels = torch.empty(E * every * I, dtype=torch.bfloat16)
    offset = 0
    for weight in weights:
        O = _stack(weight)[1]
        native().train_pack_back(
            chosen_target(), weight.data_ptr(), panels.data_ptr(), E, O, I, every, offset, torch.get_num_threads()
        )
        offset += O
    return Panels(panels, every, I)


def rounded(x: Tensor, room: Room) -> Tensor:
    """float32 -> bf16; a multiple of 16 numbers."""
    y = room.empty(*x.shape, dtype=torch.bfloat16)
    native().train_round(chosen_target(), _is(x, torch.float32), y.data_ptr(), x.numel(), torch.get_num_threads())
    return y


def product(x: Tensor, w: Panels, room: Room, *, onto: Tensor | None = None, wide: bool = False) -> Tensor:
    """x (T, I) bf16 times w: (T, O) bf16, or float32 where it is `wide` or has `onto` (T, O) float32 added to it."""
    wide = wide or onto is not None
    T = x.shape[0]
    assert x.shape[1] == w.inputs, f"{x.shape[1]} inputs, panels of {w.inputs}"
    y = room.empty(T, w.outputs, dtype=torch.float32 if wide else torch.bfloat16)
    native().train_product(
        chosen_target(), _is(x, torch.bfloat16), w.inputs, T, w.inputs, w.numbers.data_ptr(), w.outputs,
        0 if onto is None else _is(onto, torch.float32), y.data_ptr(), w.outputs, not wide, torch.get_num_threads(),
    )  # fmt: skip
    return y


def add_outer(a: Tensor, b: Tensor, onto: Tensor) -> None:
    """onto (O, I) float32 += a (T, O)^T b (T, I), both bf16: a weight's gradient from its output's and its input."""
    (T, O), I = a.shape, b.shape[1]
    assert onto.shape == (O, I) and len(b) == T
    native().train_outer(
        chosen_target(), _is(a, torch.bfloat16), _is(b, torch.bfloat16), _is(onto, torch.float32), T, O, I,
        torch.get_num_threads(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Norm:
    """x / rms(x) * weight, and what its gradient needs."""

    x: Tensor  # (T, n) float32, rows may lie apart
    weight: Tensor  # (n,)
    y: Tensor  # (T, n) bf16
    wide: Tensor | None  # the same in float32
    scales: Tensor  # (T,) 1 / rms

    def gradient(self, dy: Tensor, dweight: Tensor, *, to: Tensor, onto: Tensor | None = None) -> None:
        """Of dy (T, n) float32: x's goes to the rows of `to`, which are bf16, or float32 and then have `onto` added."""
        T, n = self.x.shape
        wide = to.dtype is torch.float32
        assert to.shape == self.x.shape and to.stride(1) == 1 and (to.is_contiguous() or not wide)
        native().train_norm_gradient(
            chosen_target(), _is(dy, torch.float32), self.x.data_ptr(), self.weight.data_ptr(),
            self.scales.data_ptr(), self.x.stride(0), T, n, 0 if onto is None else _is(onto, torch.float32),
            to.data_ptr() if wide else 0, 0 if wide else to.data_ptr(), to.stride(0), _is(dweight, torch.float32),
            torch.get_num_threads(),
        )  # fmt: skip


def norm(x: Tensor, weight: Tensor, eps: float, room: Room, *, wide: bool = False) -> Norm:
    T, n = x.shape
    y, scales = room.empty(T, n, dtype=torch.bfloat16), room.empty(T)
    widened = room.empty(T, n) if wide else None
    assert x.dtype is torch.float32 and x.stride(1) == 1
    native().train_norm(
        chosen_target(), x.data_ptr(), _is(weight, torch.float32), x.stride(0), T, n, eps, y.data_ptr(),
        0 if widened is None else widened.data_ptr(), scales.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return Norm(x, weight, y, widened, scales)


def turn(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> None:
    """The last R numbers of x (T, H, .) bf16 turned in place by its positions' angles, or `back` by them.

    cos, sin: (T, R / 2) float32
    """
    T, H, width = x.shape
    R = 2 * cos.shape[1]
    assert x.stride(2) == 1 and x.dtype is torch.bfloat16
    native().train_turn(
        chosen_target(), x.data_ptr() + 2 * (width - R), _is(cos, torch.float32), _is(sin, torch.float32), T, H, R,
        x.stride(0), x.stride(1), -1.0 if back else 1.0, torch.get_num_threads(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attended:
    """Causal attention inside each document, and what its gradient needs.

    q: (T, H, N + R) and k_pe: (T, R), turned; kv: (T, H, N + V), keys without position beside values; all bf16
    """

    q: Tensor
    kv: Tensor
    k_pe: Tensor
    edges: Tensor  # (B + 1,) int64
    scale: float
    context: Tensor  # (T, H, V) bf16
    log_sums: Tensor  # (T, H) float32: log of the sum of exp(scaled score)
    peaks: Tensor  # (B, H) float32: the largest scaled score

    def gradient(self, dcontext: Tensor, room: Room) -> tuple[Tensor, Tensor, Tensor]:
        """Of dcontext (T, H, V) bf16: q's and kv's, bf16, and k_pe's of each head, (T, H, R) float32."""
        dq, dkv = (room.empty(*like.shape, dtype=torch.bfloat16) for like in (self.q, self.kv))
        dk_pe = room.empty(*self.q.shape[:2], self.k_pe.shape[1])
        self._call(dcontext, dq, dkv, dk_pe)
        return dq, dkv, dk_pe

    def _call(self, dcontext: Tensor | None, dq: Tensor | None, dkv: Tensor | None, dk_pe: Tensor | None) -> None:
        (_, H, width), R, V = self.q.shape, self.k_pe.shape[1], self.context.shape[2]
        given = (_is(self.q, torch.bfloat16), _is(self.kv, torch.bfloat16), _is(self.k_pe, torch.bfloat16))
        others = (0 if each is None else each.data_ptr() for each in (dcontext, dq, dkv, dk_pe))
        native().train_attend(
            chosen_target(), *given, _is(self.edges, torch.int64), len(self.edges) - 1, H, width - R, R, V,
            self.scale, self.context.data_ptr(), self.log_sums.data_ptr(), self.peaks.data_ptr(), *others,
            torch.get_num_threads(),
        )  # fmt: skip


def attend(q: Tensor, kv: Tensor, k_pe: Tensor, edges: Tensor, room: Room, *, scale: float) -> Attended:
    (T, H, width), R = q.shape, k_pe.shape[1]
    V = kv.shape[2] - (width - R)
    peaks = torch.empty(len(edges) - 1, H)
    context, log_sums = room.empty(T, H, V, dtype=torch.bfloat16), room.empty(T, H)
    done = Attended(q, kv, k_pe, edges, scale, context, log_sums, peaks)
    done._call(None, None, None, None)  # pyright: ignore[reportPrivateUsage]
    return done


@dataclass(frozen=True, slots=True)
class Groups:
    """Pairs of a token and one of its experts, grouped by expert."""

    places: Tensor  # (T, K) int64: each pair's place
    tokens: Tensor  # (places,) int64
    pieces: Tensor  # (., 3) int64: expert, first place, places
    bounds: Tensor  # (E, 2) int64: each expert's places
    count: int  # of places; a few are nobody's
    piece_count: int


def grouped(chosen: Tensor, experts: int) -> Groups:
    """chosen: (T, K) int64, numbers below `experts`."""
    T, K = chosen.shape
    places, tokens = torch.empty_like(chosen), torch.zeros(T * K + experts, dtype=torch.int64)
    pieces = torch.empty(T * K // 48 + experts, 3, dtype=torch.int64)
    bounds = torch.empty(experts, 2, dtype=torch.int64)
    count, piece_count = native().group_by_expert(
        _is(chosen, torch.int64), T, K, experts, places.data_ptr(), tokens.data_ptr(), pieces.data_ptr(),
        bounds.data_ptr(),
    )  # fmt: skip
    return Groups(places, tokens, pieces, bounds, count, piece_count)


@dataclass(frozen=True, slots=True)
class ExpertPanels:
    """Gated experts' weights: gate and up (E, F, D), down (E, D, F)."""

    gate: Panels
    up: Panels
    down: Panels
    from_hidden: Panels  # of gate and up: (E, 2 F, D)
    from_output: Panels  # of down: (E, D, F)


def expert_panels(gate: Tensor, up: Tensor, down: Tensor) -> ExpertPanels:
    return ExpertPanels(
        forward_panels(gate), forward_panels(up), forward_panels(down), gradient_panels(gate, up), gradient_panels(down)
    )


@dataclass(frozen=True, slots=True)
class Mixed:
    """Each token's sum over its experts of weight * down(silu(gate x) * up x), and what its gradient needs."""

    x: Tensor  # (T, D) bf16
    weights: Tensor | None  # (T, K) float32; None: ones
    groups: Groups
    panels: ExpertPanels
    gates: Tensor  # (places, F) bf16, before silu
    ups: Tensor
    y: Tensor  # (T, D) float32

    def gradient(
        self, dy: Tensor, gradients: tuple[Tensor, Tensor, Tensor], room: Room, *, onto: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of dy (T, D) bf16: x's, float32, added to `onto`, which is written to, and the weights', (T, K) float32.

        gradients: float32 of gate, up and down; theirs are added.
        """
        (T, D), F, K, groups = self.x.shape, self.panels.gate.outputs, self.groups.places.shape[1], self.groups
        rows = room.empty(groups.count, D)
        dx = room.empty(T, D) if onto is None else onto
        dweights = room.empty(T, K)
        native().train_experts_gradient(
            chosen_target(), groups.tokens.data_ptr(), groups.pieces.data_ptr(), groups.bounds.data_ptr(),
            groups.count, groups.piece_count, len(groups.bounds), D, F, self.panels.from_hidden.numbers.data_ptr(),
            self.panels.from_output.numbers.data_ptr(), self.x.data_ptr(), self.gates.data_ptr(), self.ups.data_ptr(),
            _is(dy, torch.bfloat16), rows.data_ptr(), groups.places.data_ptr(),
            0 if self.weights is None else self.weights.data_ptr(), T, K, 0 if onto is None else dx.data_ptr(),
            dx.data_ptr(), dweights.data_ptr(), *(_is(each, torch.float32) for each in gradients),
            torch.get_num_threads(),
        )  # fmt: skip
        return dx, dweights


def experts(
    x: Tensor, weights: Tensor | None, groups: Groups, panels: ExpertPanels, room: Room, *, onto: Tensor
) -> Mixed:
    """`onto` (T, D) float32 plus the mixture of x (T, D) bf16."""
    (T, D), F = x.shape, panels.gate.outputs
    gates, ups = (room.empty(groups.count, F, dtype=torch.bfloat16) for _ in range(2))
    y = room.empty(T, D)
    with room.piece():
        rows = room.empty(groups.count, D)
    native().train_experts(
        chosen_target(), groups.tokens.data_ptr(), groups.pieces.data_ptr(), groups.count, groups.piece_count, D, F,
        panels.gate.numbers.data_ptr(), panels.up.numbers.data_ptr(), panels.down.numbers.data_ptr(),
        _is(x, torch.bfloat16), gates.data_ptr(), ups.data_ptr(), rows.data_ptr(), groups.places.data_ptr(),
        0 if weights is None else _is(weights, torch.float32), T, groups.places.shape[1], _is(onto, torch.float32),
        y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return Mixed(x, weights, groups, panels, gates, ups, y)


def add_route_gradient(
    x: Tensor, weight: Tensor, choice: Choice, chosen: Tensor, dweights: Tensor, *, dx: Tensor, dweight: Tensor
) -> None:
    """What `routing.route` gave, towards its input and its weight: added to dx (T, D) and dweight (E, D).

    x: (T, D) and dweights: (T, K) float32; chosen: (T, K) int64
    """
    (T, K), (E, D) = chosen.shape, weight.shape
    native().train_route_gradient(
        chosen_target(), _is(x, torch.float32), _is(weight, torch.float32), _is(dweights, torch.float32),
        _is(chosen, torch.int64), T, K, D, E, choice.normalized, choice.factor, _is(dx, torch.float32),
        _is(dweight, torch.float32), torch.get_num_threads(),
    )  # fmt: skip


def sum_heads(x: Tensor, to: Tensor) -> None:
    """The sum over heads of x (T, H, R) float32, to the rows of `to` (T, R) bf16."""
    T, H, R = x.shape
    assert to.shape == (T, R) and to.stride(1) == 1 and to.dtype is torch.bfloat16
    native().train_sum_heads(
        chosen_target(), _is(x, torch.float32), to.data_ptr(), T, H, R, to.stride(0), torch.get_num_threads()
    )


def losses(
    x: Tensor, targets: Tensor, head: Panels, head_back: Panels, dhead: Tensor, room: Room
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the head's logits of x (rows, D) bf16, a few rows' at a time.

    targets: (rows,) int64. dhead (V, D) float32 += the sum's gradient towards the head.
    Returns: (rows,) nats, and the sum's gradient towards x, (rows, D) float32.
    """
    rows, D = x.shape
    V = head.outputs
    if rows and not native().within(_is(targets, torch.int64), rows, V):
        raise ValueError(f"targets are {int(targets.min())} .. {int(targets.max())}, expected 0 .. {V - 1}")
    nats, dx = torch.empty(rows), room.empty(rows, D)
    native().train_loss(
        chosen_target(), _is(x, torch.bfloat16), targets.data_ptr(), rows, D, V, head.numbers.data_ptr(),
        head_back.numbers.data_ptr(), nats.data_ptr(), dx.data_ptr(), _is(dhead, torch.float32),
        torch.get_num_threads(),
    )  # fmt: skip
    return nats, dx


def _stack(weight: Tensor) -> tuple[int, int, int]:
    _is(weight, torch.float32)
    E, O, I = weight.shape if weight.dim() == 3 else (1, *weight.shape)
    if O % WIDTH or I % WIDTH:
        raise ValueError(f"a weight is {tuple(weight.shape)}, expected multiples of {WIDTH}")
    return E, O, I


def _is(tensor: Tensor, dtype: torch.dtype) -> int:
    """Its address, if it is what native code takes it for."""
    if tensor.dtype is not dtype or not tensor.is_cpu or not tensor.is_contiguous():
        raise ValueError(
            f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, strides {tensor.stride()}, expected contiguous "
            f"{dtype} on the CPU"
        )
    return tensor.data_ptr()
