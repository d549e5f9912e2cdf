"""The routed experts of a layer, from a store that has some of them in memory and reads the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from baltoro.config import ModelConfig
from baltoro.kernels import blocks
from baltoro.model.moe import Routing
from baltoro.weights.experts import ExpertStore

FEW = 256  # (token, choice) pairs whose results are kept apart, so that experts may come in any order


class StreamedExperts(nn.Module):
    """Stands in for `Experts`, with the same bits: a token's experts are added in the order of their numbers."""

    def __init__(self, config: ModelConfig, layer: int, store: ExpertStore) -> None:
        super().__init__()
        self.layer, self.count, self.store = layer, config.n_routed_experts, store
        self.chosen = config.num_experts_per_tok

    def expect(self, tokens: int, guess: Callable[[], Routing]) -> None:
        """While attention runs the disk would rest: what the router will probably want is read already.

        Of a few experts the likeliest; of many, nearly all of which are wanted, as many as there is room for.
        """
        routing = guess()
        if tokens * self.chosen > FEW:
            self.store.expect(self.layer, _wanted(routing), most=self.store.slots)
            return
        order = routing.weights.view(-1).argsort(descending=True)
        likeliest = dict.fromkeys(cast("list[int]", routing.experts.view(-1)[order].tolist()))
        self.store.expect(self.layer, list(likeliest))

    def begin(self, routing: Routing) -> None:
        """Reading starts, while something else is computed."""
        self.store.begin(self.layer, _wanted(routing), in_order=routing.experts.numel() > FEW)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:  # (T, D)
        wide = x.float()
        few = routing.experts.numel() <= FEW
        return (self._any_order if few else self._in_order)(wide, routing).to(x.dtype)

    def _in_order(self, x: Tensor, routing: Routing) -> Tensor:
        """Each expert is read once for all tokens, the next ones while these are multiplied with."""
        y, places = torch.zeros_like(x), torch.full((self.count,), -1)
        for experts, slots in self.store.take(self.layer, _wanted(routing), in_order=True):
            places[experts] = torch.tensor(slots)
            self._add(x, routing.experts, routing.weights, places, y)
            places[experts] = -1
        return y

    def _any_order(self, x: Tensor, routing: Routing) -> Tensor:
        """As they come, each pair of token and expert a row of its own; then the rows are added.

        By numpy: torch would wake its threads for so little, and wait for them while the kernels' own have the cores.
        """
        (T, K), D = routing.experts.shape, x.shape[1]
        rows, chosen, weights = x.numpy().repeat(K, 0), routing.experts.view(-1, 1), routing.weights.view(-1, 1)
        terms, places = np.zeros((T * K, D), dtype=np.float32), torch.full((self.count,), -1)
        inputs, onto = torch.from_numpy(rows), torch.from_numpy(terms)
        for experts, slots in self.store.take(self.layer, _wanted(routing)):
            places[experts] = torch.tensor(slots)
            self._add(inputs, chosen, weights, places, onto)
            places[experts] = -1
        order = routing.experts.numpy().argsort(1) + np.arange(T)[:, None] * K  # (T, K) rows
        y = np.zeros((T, D), dtype=np.float32)
        for k in range(K):
            y += terms[order[:, k]]
        return torch.from_numpy(y)

    def _add(self, x: Tensor, chosen: Tensor, weights: Tensor, places: Tensor, onto: Tensor) -> None:
        blocks.experts(x, chosen, weights, self.store.shape, self.store.blocks, places, onto)


def _wanted(routing: Routing) -> list[int]:
    return cast("list[int]", routing.experts.unique().tolist())  # rising
