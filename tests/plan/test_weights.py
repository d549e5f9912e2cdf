"""Bytes by purpose, against the exact counts of the checkpoint and the layout of packed files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baltoro import counts
from baltoro.config import ModelConfig
from baltoro.kernels.formats import FORMATS as KERNEL_FORMATS
from baltoro.plan.formats import FORMATS, format_of
from baltoro.plan.weights import weights
from baltoro.weights.fit import Need
from tests import tiny


@pytest.mark.parametrize("name, format", [("kimi-k2-instruct", "fp8"), ("moonlight-16b-a3b", "bf16"), ("nano", "fp8")])
def test_published_files_have_the_planned_bytes(name: str, format: str) -> None:
    config = ModelConfig.open(name)
    planned, published = weights(config, FORMATS[format]).whole, counts.tensor_bytes(config)
    # Strays of two checkpoints, and partial edge blocks' scales: 13 kB of Kimi K2's terabyte.
    assert abs(planned - published) < max(2e-7 * published, 1000)


@pytest.mark.parametrize("format", KERNEL_FORMATS)
def test_packed_files_have_nearly_the_planned_bytes(format: str) -> None:
    """Packed files hold kv_b_proj's keys twice and pad panels and pages: some thousandths more at real widths."""
    config = ModelConfig.open("moonlight-16b-a3b")
    need = Need.of(replace(config, packed_format=format))
    planned = weights(config, FORMATS[format])
    assert planned.experts <= need.experts <= 1.01 * planned.experts
    assert 0.98 * planned.resident <= need.resident <= 1.06 * planned.resident


def test_the_parts_are_those_of_a_walk_over_every_tensor() -> None:
    config = tiny.config(num_hidden_layers=4, n_routed_experts=6, n_shared_experts=2)
    held = weights(config, FORMATS["bf16"])
    every = [spec for spec in counts.tensors(config) if spec.is_parameter]

    def of(*words: str) -> int:
        return sum(spec.nbytes for spec in every if any(word in spec.name for word in words))

    assert held.embedding == of("embed_tokens")
    assert held.head == of("lm_head")
    assert held.experts == of(".experts.")
    assert held.attention == of("self_attn", "layernorm")
    assert held.replicated_attention == of("q_a_proj", "kv_a_proj", "layernorm")
    assert held.dense == of("layers.0.mlp")
    assert held.shared == of("shared_experts", "mlp.gate.") + of("model.norm")
    assert held.whole == sum(spec.nbytes for spec in every)


def test_figures_that_users_know() -> None:
    """users' arithmetic of Kimi K2: 11.72 B resident weights, 1,014.7 B routed; 21.1 GB a token in fp8, cold."""
    config = ModelConfig.open("kimi-k2-instruct")
    one_byte = weights(config, format_of("8bit"))
    assert one_byte.experts == pytest.approx(1014.7e9, rel=1e-4)
    assert one_byte.resident == pytest.approx(11.72e9, rel=0.02)  # routers and norms stay in 16 bits
    assert weights(config, FORMATS["fp8"]).read_experts == pytest.approx(21.1e9, rel=3e-3)
    for bits, cold in ((4.25, 11.2e9), (3.3, 8.7e9), (2.7, 7.1e9), (1.8, 4.8e9)):
        assert weights(config, format_of(f"{bits}bit")).read_experts == pytest.approx(cold, rel=0.01)


def test_a_step_of_many_reads_each_expert_once_at_most() -> None:
    held = weights(ModelConfig.open("kimi-k2-instruct"), FORMATS["fp8"])
    assert held.read_by(1) == pytest.approx(held.read_experts)
    reads = [held.read_by(tokens) for tokens in (1, 2, 4, 64, 4096, 10**6)]
    assert reads == sorted(reads)
    assert reads[-1] == pytest.approx(held.experts)
    assert reads[1] < 2 * reads[0]


@pytest.mark.parametrize("text", ["", "fp4", "0.5bit", "17bits", "bit", "-3bit", "nan bit", "1e3bit"])
def test_an_unknown_format_is_an_error_that_names_the_known_ones(text: str) -> None:
    with pytest.raises(Exception, match="format") as error:
        format_of(text)
    assert "w4a16" in str(error.value)


def test_two_bits_are_called_unsafe_for_tools() -> None:
    assert "unsafe" in format_of("2.7bit").quality
    assert "unsafe" not in format_of("3.3bit").quality
