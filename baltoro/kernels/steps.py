"""Packed layers as one call a step: between two calls a core forgets the interpreter, and every line of Python costs.

What the other doors check at each call is checked here once, when a layer is described, or the rows of a forward. Each
step gives the bits of the single kernels that it consists of; they and the model's own modules are its twin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baltoro.kernels import attention
from baltoro.kernels.door import check, check_mixture, check_packed, check_scale, described, shape_of, target_for
from baltoro.kernels.formats import Packed
from baltoro.kernels.routing import Choice, check_choice
from baltoro.kernels.rows import Rows
from baltoro.kernels.targets import chosen_target, native

_NOTHING = (0, 0, 0, 0, 0, 0)


def runs(x: Tensor) -> bool:
    """Whether steps take this input: float32 on the CPU, no gradient wanted, and something was built."""
    return target_for(None, x) != "torch"


class AttentionStep:
    """From the normed hidden state to what a layer's attention adds to it, of prompts and decoding tokens together.

    q_a, q_norm: None where q_b makes the queries alone; the norms' weights are float32
    heads:       H, the height of the stacks keys (N, C), absorbed_keys (C, N) and values (V, C)
    """

    def __init__(
        self, *, q_a: Packed | None, q_norm: Tensor | None, q_b: Packed, kv_a: Packed, kv_norm: Tensor,
        keys: Packed, absorbed_keys: Packed, values: Packed, output: Packed, eps: float, heads: int,
    ) -> None:  # fmt: skip
        C, N = absorbed_keys.outputs, absorbed_keys.inputs
        rotary = kv_a.outputs - C
        self.heads, self.rotary, self.width, self.hidden = heads, rotary, kv_a.outputs, kv_a.inputs
        for name, w in (("q_b", q_b), ("kv_a", kv_a), ("output", output)):
            check_packed(name, w, None)
        for name, w in (("keys", keys), ("absorbed_keys", absorbed_keys), ("values", values)):
            check_packed(name, w, heads)
        if (keys.format, keys.group) != (values.format, values.group):
            raise ValueError(f"keys {shape_of(keys)} and values {shape_of(values)} are not of one latent")
        check("kv_norm", kv_norm, torch.float32, (C,))
        if q_a is not None and q_norm is not None:
            check_packed("q_a", q_a, None)
            check("q_norm", q_norm, torch.float32, (q_a.outputs,))
        expected = {
            "q_b": ((q_b.outputs, q_b.inputs), (heads * (N + rotary), self.hidden if q_a is None else q_a.outputs)),
            "keys": ((keys.outputs, keys.inputs), (N, C)),
            "values": ((values.outputs, values.inputs), (values.outputs, C)),
            "output": ((output.outputs, output.inputs), (self.hidden, heads * values.outputs)),
        }
        if q_a is not None:
            expected["q_a"] = ((q_a.outputs, q_a.inputs), (q_b.inputs, self.hidden))
        for name, (found, wanted) in expected.items():
            if found != wanted:
                raise ValueError(f"{name} is {found}, expected {wanted}")
        unfit = C % attention.COLUMNS or values.outputs % attention.COLUMNS or self.width % 4 or (N + rotary) % 4
        if unfit or rotary < 2 or rotary % 2 or (q_a is None) != (q_norm is None):
            raise ValueError(
                f"latents of {C} and {rotary} numbers, values of {values.outputs}, expected multiples of "
                f"{attention.COLUMNS} and 4"
            )
        self._kept = (
            q_a,
            q_norm,
            q_b,
            kv_a,
            kv_norm,
            keys,
            absorbed_keys,
            values,
            output,
        )  # native code has addresses only
        self.weights = native().AttentionWeights(
            _NOTHING if q_a is None else described("q_a", q_a), described("q_b", q_b),
            described("kv_a", kv_a), described("keys", keys), described("absorbed_keys", absorbed_keys),
            described("values", values), described("output", output),
            0 if q_norm is None else q_norm.data_ptr(), kv_norm.data_ptr(), eps,
        )  # fmt: skip

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, rows: Rows, *, scale: float, target: str | None = None
    ) -> Tensor:
        """x: (T, D) float32; cache (any, C + R) bf16 gets the tokens' rows before they are read.

        cos, sin, scale: as in latents.py. Returns: (T, D) float32
        """
        T, pairs = rows.tokens, self.rotary // 2
        check_scale(scale)
        check("x", x, torch.float32, (T, self.hidden))
        check("cos", cos, torch.float32, (T, pairs))
        check("sin", sin, torch.float32, (T, pairs))
        check("cache", cache, torch.bfloat16, (rows.cache_rows, self.width))
        if not cache.is_contiguous():
            raise ValueError("cache is not contiguous")
        x, cos, sin, y = x.contiguous(), cos.contiguous(), sin.contiguous(), torch.empty(T, self.hidden)
        native().attention_step(
            target or chosen_target(), self.weights, x.data_ptr(), rows.native, cos.data_ptr(), sin.data_ptr(),
            cache.data_ptr(), scale, y.data_ptr(), self.heads, self.rotary, torch.get_num_threads(),
        )  # fmt: skip
        return y


class MixtureStep:
    """A layer's router, its routed experts and the shared one.

    router:  (E, D) float32 or bf16; bias: (E,) float32
    gate, up, down: stacks of E, or of the first few where no other is ever chosen
    shared:  the same three of the shared expert, as stacks of one, or None
    """

    def __init__(
        self, router: Tensor, bias: Tensor, choice: Choice, gate: Packed, up: Packed, down: Packed,
        shared: tuple[Packed, Packed, Packed] | None,
    ) -> None:  # fmt: skip
        E, D = router.shape
        check("router", router, torch.bfloat16 if router.dtype is torch.bfloat16 else torch.float32, (E, D))
        check("bias", bias, torch.float32, (E,))
        check_choice(choice, E)
        if not (router.is_contiguous() and bias.is_contiguous()):
            raise ValueError("router and bias are not contiguous")
        here = gate.experts
        if here is None or here > E:
            raise ValueError(f"gate is a stack of {here}, expected at most the {E} experts of the router")
        for experts, three in ((here, (gate, up, down)), (1, shared)):
            if three is not None:
                check_mixture(*three, experts=experts, hidden=D)
        self.chosen, self.hidden, self.here = choice.chosen, D, here
        self.routed_seconds = 0.0  # of the last call, in the routed experts
        self._kept = (router, bias, gate, up, down, shared)  # native code has addresses only
        names = ("gate", "up", "down", "shared gate", "shared up", "shared down")
        packed = [described(name, w) for name, w in zip(names, (gate, up, down, *(shared or ())), strict=False)]
        self.weights = native().MixtureWeights(
            router.data_ptr(), router.dtype is torch.bfloat16, bias.data_ptr(), choice.chosen, choice.groups,
            choice.kept_groups, choice.normalized, choice.factor, E, here, *packed, *([] if shared else [_NOTHING] * 3),
        )  # fmt: skip

    def __call__(self, h: Tensor, x: Tensor, *, target: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x plus the mixture of h, both (T, D) float32. Returns: the sum, and weights and experts as `route`."""
        T = h.shape[0]
        check("h", h, torch.float32, (T, self.hidden))
        check("x", x, torch.float32, (T, self.hidden))
        h, x, y = h.contiguous(), x.contiguous(), torch.empty(T, self.hidden)
        weights, chosen = torch.empty(T, self.chosen), torch.empty(T, self.chosen, dtype=torch.int64)
        seconds = native().mixture_step(
            target or chosen_target(), self.weights, h.data_ptr(), x.data_ptr(), weights.data_ptr(),
            chosen.data_ptr(), y.data_ptr(), T, torch.get_num_threads(),
        )  # fmt: skip
        if seconds is None:
            raise ValueError(f"experts {int(chosen.min())} .. {int(chosen.max())} were chosen, {self.here} are here")
        self.routed_seconds = seconds
        return y, weights, chosen


class DenseStep:
    """A dense layer's MLP, its three matrices as stacks of one; a part of a ForwardStep."""

    def __init__(self, gate: Packed, up: Packed, down: Packed) -> None:
        check_mixture(gate, up, down, experts=1, hidden=gate.inputs)
        self.hidden = gate.inputs
        self._kept = (gate, up, down)  # native code has addresses only
        three = (described("gate", gate), described("up", up), described("down", down))
        self.weights = native().MixtureWeights(0, False, 0, 0, 1, 1, False, 1.0, 0, 0, *[_NOTHING] * 3, *three)
