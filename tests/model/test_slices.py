"""Random slices: real models in small, that hold what they should and compute what their weights say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.kernels.formats import FORMATS, Format, Packed, unpack
from baltoro.model import slices
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.heads import Heads
from baltoro.model.linear import Linear
from baltoro.model.load import build
from baltoro.model.moe import MoE, StackedLinear
from baltoro.model.transformer import Transformer
from tests import tiny
from tests.model.random_models import random_ids

# All parts of K2's layers, two of the four experts missing.
WHOLE = tiny.config(
    hidden_size=256, q_lora_rank=136, kv_lora_rank=64, v_head_dim=32, n_routed_experts=8, num_hidden_layers=5
)
SHORT = slices.shorten(WHOLE, dense=1, mixtures=1, vocabulary=200)
HERE = 4
ERRORS = {"bf16": 0.012, "fp8": 0.012, "int8": 0.04, "int4": 0.04}  # as in test_load.py


def unpacked(model: Transformer) -> Transformer:
    """The same numbers as parameters."""
    plain = build(model.config).to_empty(device="cpu")
    for name, module in model.named_modules():
        twin = plain.get_submodule(name)
        for key, parameter in module.named_parameters(recurse=False):
            twin.register_parameter(key, parameter)
        packed = getattr(module, "packed", None)
        if isinstance(packed, Packed):
            twin.weight = nn.Parameter(unpack(packed), requires_grad=False)
        elif isinstance(module, Heads):
            stack = torch.cat((unpack(packed.keys), unpack(packed.values)), dim=1)
            twin.weight = nn.Parameter(stack.flatten(0, 1), requires_grad=False)
    return plain.eval()


@pytest.mark.parametrize("format", FORMATS)
def test_a_slice_gives_the_logits_of_a_model_with_its_weights(format: Format) -> None:
    model = slices.make(SHORT, format, experts=HERE)
    plain = unpacked(model)
    with torch.no_grad():
        for tokens in (2, 50):
            batch = Batch.of([random_ids(SHORT, tokens)])
            found, expected = model(batch), plain(batch)
            assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median() <= ERRORS[format]
            assert 0.5 < found.std() < 2  # unit noise stays so through the layers


@pytest.mark.parametrize("format", FORMATS)
def test_decode_agrees_with_prefill_though_keys_lie_there_twice(format: Format) -> None:
    """The slice has one format for both; absorbed keys are quantized along another axis."""
    model = slices.make(SHORT, format, experts=HERE)
    ids = random_ids(SHORT, 12)
    cache = LatentCache(SHORT, num_pages=1)
    with torch.inference_mode():
        expected = model(Batch.of([ids]))
        for position, token in enumerate(ids):
            batch = Batch(ids=torch.tensor([token]), positions=torch.tensor([position]), edges=(0, 1), pages=((0,),))
            found = model(batch, cache)
    assert (found - expected[-1:]).norm() / expected[-1:].norm() < (0.15 if format == "int4" else 0.05)


def test_routers_are_whole_and_choose_only_experts_that_are_there() -> None:
    model = slices.make(SHORT, "int8", experts=HERE)
    mixture = model.model.layers[1].mlp
    assert isinstance(mixture, MoE)
    routing = mixture.gate(torch.randn(500, SHORT.hidden_size))
    assert mixture.gate.weight.shape == (8, 256)
    assert routing.experts.unique().tolist() == list(range(HERE))


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_are_counted_before_they_are_made(format: Format) -> None:
    model = slices.make(SHORT, format, experts=HERE)
    matrices = [module.packed for module in model.modules() if isinstance(module, (Linear, StackedLinear))]
    heads = [module.packed for module in model.modules() if isinstance(module, Heads)]
    matrices += [matrix for each in heads if each for matrix in (each.keys, each.values, each.absorbed_keys)]
    held = sum(matrix.nbytes for matrix in matrices if matrix)
    held += sum(parameter.nbytes for parameter in model.parameters())
    assert held <= slices.nbytes(SHORT, format, experts=HERE) < held + 10_000  # the slab's seams


def test_all_of_kimi_k2_in_fp8_takes_what_its_files_have_and_a_little_more() -> None:
    """More: the embedding in float32, and kv_b's keys a second time."""
    config = ModelConfig.open("kimi-k2-instruct")
    found = slices.nbytes(config, "fp8", experts=config.n_routed_experts)
    assert 1 < found / counts.tensor_bytes(config) < 1.01


def test_shortening_keeps_the_layers_and_cuts_what_is_asked() -> None:
    k2 = ModelConfig.open("kimi-k2-instruct")
    short = slices.shorten(k2, dense=1, mixtures=2, vocabulary=1000)
    assert (short.num_hidden_layers, short.vocab_size) == (3, 1000)
    assert [short.is_moe(layer) for layer in range(3)] == [False, True, True]
    assert (short.hidden_size, short.n_routed_experts) == (k2.hidden_size, k2.n_routed_experts)
    assert slices.shorten(k2, dense=1, mixtures=1, vocabulary=10**9).vocab_size == k2.vocab_size


def test_what_one_token_is_multiplied_with_is_counted_once() -> None:
    model = slices.make(SHORT, "int8", experts=HERE)
    dense, mixture = model.model.layers
    assert isinstance(mixture.mlp, MoE)
    attention = 136 * 256 + 3 * 24 * 136 + 72 * 256 + 3 * (16 + 32) * 64 + 256 * 96
    weights = [sum(packed.outputs * packed.inputs * (packed.experts or 1) for packed in slices.packed_of(block))
               for block in (dense, mixture)]  # fmt: skip
    assert weights == [attention + 3 * 256 * 200, attention + 3 * 256 * 136]
    assert slices.expert_bytes(mixture.mlp) > 3 * 256 * 136
