"""A packed copy of a model in training is what loading its checkpoint in that format would be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baltoro.config import ModelConfig
from baltoro.errors import BaltoroError
from baltoro.kernels.formats import FORMATS, Format
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.load import initialise, load, save
from baltoro.model.mirror import mirror, refresh
from baltoro.model.transformer import Transformer
from tests import tiny


def config() -> ModelConfig:
    return tiny.config(qk_nope_head_dim=16, v_head_dim=16, kv_lora_rank=32, q_lora_rank=48)


def logits(model: Transformer) -> torch.Tensor:
    """Through a cache, as the engine runs it: a prompt, and a token behind it."""
    cache = LatentCache(model.config, num_pages=1)
    prompt = Batch(ids=torch.arange(20), positions=torch.arange(20), edges=(0, 20), pages=((0,),), generated=(False,))
    one = Batch(ids=torch.tensor([5]), positions=torch.tensor([20]), edges=(0, 1), pages=((0,),), generated=(True,))
    with torch.inference_mode():
        return torch.cat([model(prompt, cache), model(one, cache)]).clone()


@pytest.mark.parametrize("format", FORMATS)
def test_a_mirror_is_the_checkpoint_loaded_in_that_format(format: Format, tmp_path: Path) -> None:
    model = initialise(config(), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # as a checkpoint keeps them
    save(model, tmp_path)
    assert torch.equal(logits(mirror(model, format)), logits(load(tmp_path, format=format)))


def test_a_refreshed_mirror_is_a_new_one_in_the_old_memory() -> None:
    model = initialise(config(), seed=1)
    twin = mirror(model, "bf16")
    before, places = logits(twin), [p.data_ptr() for p in twin.parameters()]
    head = twin.lm_head.packed
    assert head is not None
    address = head.data.data_ptr()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    refresh(twin, model)
    after = logits(twin)
    assert not torch.equal(after, before)
    assert torch.equal(after, logits(mirror(model, "bf16")))
    assert [p.data_ptr() for p in twin.parameters()] == places
    assert twin.lm_head.packed is head
    assert head.data.data_ptr() == address


def test_weights_that_are_not_finite_and_shapes_that_no_panel_takes_are_refused() -> None:
    model = initialise(config(), seed=1)
    twin = mirror(model, "bf16")
    with torch.no_grad():
        model.lm_head.weight[3, 4] = float("nan")
    with pytest.raises(BaltoroError, match="inf or nan"):
        refresh(twin, model)
    with pytest.raises(BaltoroError, match="multiples of 16"):
        mirror(initialise(tiny.config(), seed=1), "bf16")
