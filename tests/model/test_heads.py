"""kv_b's three uses against each other, with parameters and packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baltoro.kernels.formats import FORMATS, Format
from baltoro.model.load import load, save
from tests import tiny
from tests.model.random_models import random_model

CONFIG = tiny.config(kv_lora_rank=64, v_head_dim=16, qk_nope_head_dim=32, num_attention_heads=3)
NEAR = {None: 1e-5, "bf16": 0.02, "fp8": 0.1, "int8": 0.04, "int4": 0.2}  # both halves of the keys are rounded apart


@pytest.mark.parametrize("format", [None, *FORMATS])
def test_absorbed_products_equal_those_with_expanded_keys_and_values(format: Format | None, tmp_path: Path) -> None:
    save(random_model(CONFIG), tmp_path)
    heads = load(tmp_path, format=format).model.layers[0].self_attn.kv_b_proj
    generator = torch.Generator().manual_seed(0)
    q, latent = torch.randn(5, 3, 32, generator=generator), torch.randn(7, 64, generator=generator)
    weights = torch.rand(5, 3, 7, generator=generator)
    with torch.no_grad():
        k, v = heads(latent)
        assert (k.shape, v.shape) == ((7, 3, 32), (7, 3, 16))
        scores = heads.query_to_latent(q) @ latent.T
        expected = torch.einsum("bhn,shn->bhs", q, k)
        assert (scores - expected).norm() <= NEAR[format] * expected.norm()
        mixed = heads.latent_to_value(weights @ latent)
        expected = torch.einsum("bhs,shv->bhv", weights, v)
        assert (mixed - expected).norm() <= NEAR[format] * expected.norm()
