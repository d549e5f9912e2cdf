"""How long parts of a model take while it runs, by hooks: what runs stays the model's own code."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from baltoro.model.moe import Experts, Routing


class Watch:
    """Seconds inside some modules of a model."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.seconds: dict[str, float] = {}
        for name, module in modules.items():
            self._time(name, module)

    def clear(self) -> None:
        self.seconds.clear()

    def _time(self, name: str, module: nn.Module) -> None:
        began = 0.0

        def start(_module: nn.Module, _inputs: Any) -> None:
            nonlocal began
            began = time.perf_counter()

        def stop(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop)


class Share(nn.Module):
    """A prompt's tokens spread over all experts of a mixture: those that are here get their share of the tokens.

    So each of them has as many as in the whole model; the other tokens pass by.
    """

    def __init__(self, experts: Experts, part: float) -> None:
        super().__init__()
        self.experts, self.part = experts, part

    def tokens(self, tokens: int) -> int:
        return max(1, round(tokens * self.part))

    def begin(self, routing: Routing) -> None:
        self.experts.begin(routing)

    def expect(self, tokens: int, guess: Callable[[], Routing]) -> None:
        self.experts.expect(tokens, guess)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:  # (T, D)
        some = self.tokens(len(x))
        y = torch.zeros_like(x)
        y[:some] = self.experts(x[:some], Routing(routing.weights[:some], routing.experts[:some]))
        return y
