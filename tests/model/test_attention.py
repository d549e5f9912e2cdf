"""Latent attention against the oracle, absorbed against expanded, and the peaks that QK-clip reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from baltoro.kernels import attention as attention_kernels
from baltoro.kernels import door
from baltoro.kernels.targets import targets
from baltoro.model import attention as attention_module
from baltoro.model.attention import Attention, causal_attention
from baltoro.model.batch import Batch, LatentCache, Layout
from baltoro.model.rope import rotary_table
from tests import oracle, tiny
from tests.model.random_models import SHAPES, random_ids, random_model


def layer_of(name: str) -> Attention:
    return next(module for module in random_model(SHAPES[name]).modules() if isinstance(module, Attention))


def hidden(attention: Attention, tokens: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, attention.config.hidden_size, generator=torch.Generator().manual_seed(seed))


def run(attention: Attention, x: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = Batch.of([[0] * length for length in lengths])
    table = rotary_table(attention.config, batch.positions)
    with torch.no_grad():
        out, peak = attention(x, Layout(batch, None), *table, None, True)
    assert peak is not None
    return out, peak


def truth(attention: Attention, x: torch.Tensor, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    own = {f"self_attn.{name}": p.detach().double().numpy() for name, p in attention.named_parameters()}
    pieces = [oracle.attention(attention.config.to_dict(), own, part.double().numpy()) for part in x.split(lengths)]
    return np.concatenate([out for out, _ in pieces]), np.max([peak for _, peak in pieces], axis=0)


@pytest.mark.parametrize("lengths", [[9], [4, 4], [1, 6, 3]])
@pytest.mark.parametrize("name", SHAPES)
def test_attention_and_its_peaks_equal_the_oracle(name: str, lengths: list[int]) -> None:
    attention = layer_of(name)
    x = hidden(attention, sum(lengths))
    out, peak = run(attention, x, lengths)
    expected, expected_peak = truth(attention, x, lengths)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(peak.numpy(), expected_peak, rtol=1e-5, atol=1e-5)


def test_the_inner_norms_keep_their_own_epsilon() -> None:
    """Moonlight's rms_norm_eps is 1e-5, q_a and kv_a layernorm have 1e-6; it shows where the input is small."""
    attention = layer_of("moonlight")
    assert attention.config.rms_norm_eps == 1e-5
    x = 0.003 * hidden(attention, 6)
    np.testing.assert_allclose(run(attention, x, [6])[0].numpy(), truth(attention, x, [6])[0], atol=1e-5)


def test_padding_does_not_hide_that_all_scores_of_a_head_are_negative() -> None:
    attention = layer_of("k2")
    lengths = [1, 2]
    negative = []
    for seed in range(40):
        x = hidden(attention, 3, seed=seed)
        _, peak = run(attention, x, lengths)
        np.testing.assert_allclose(peak.numpy(), truth(attention, x, lengths)[1], rtol=1e-5, atol=1e-5)
        negative.append(bool((peak < 0).any()))
    assert any(negative), "the case that matters did not occur"


@pytest.mark.parametrize("tile", [1, 4, 7])
def test_the_size_of_a_tile_of_queries_changes_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, lengths = layer_of("deepseek"), [13, 9]
    x = hidden(attention, 22)
    whole, peak = run(attention, x, lengths)
    monkeypatch.setattr(attention_module, "QUERY_TILE", tile)
    tiled, tiled_peak = run(attention, x, lengths)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(tiled_peak, peak, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile", [2, 1024])
def test_a_query_sees_the_past_and_itself_and_no_more(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "QUERY_TILE", tile)
    past, new = 3, 5
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, new, 6, generator=generator), torch.randn(1, 2, past + new, 6, generator=generator)
    v = torch.eye(past + new).expand(1, 2, -1, -1)  # the output is the attention itself
    out, peaks = causal_attention(q, k, v, scale=0.5, past=past, observe=True)
    assert peaks is not None
    for row in range(new):
        seen = past + row + 1
        scores = (q[:, :, row : row + 1].double() @ k[:, :, :seen].double().mT).squeeze(2) * 0.5
        torch.testing.assert_close(out[:, :, row, :seen].double(), scores.softmax(-1), rtol=0, atol=1e-6)
        assert (out[:, :, row, seen:] == 0).all()
        torch.testing.assert_close(peaks[:, :, row].double(), scores.amax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_absorbed_attention_equals_expanded(name: str) -> None:
    """One token at a time goes the absorbed way; the same sequence as one chunk, and without a cache, the expanded."""
    model = random_model(SHAPES[name])
    ids = torch.tensor(random_ids(model.config, 70))
    cache = LatentCache(model.config, num_pages=5, page_tokens=16, dtype=torch.float32)
    pages = ((0, 1, 2, 3, 4),)
    with torch.no_grad():
        expanded = model(Batch.of([ids.tolist()]))
        absorbed = torch.cat(
            [
                model(Batch(ids=ids[t : t + 1], positions=torch.tensor([t]), edges=(0, 1), pages=pages), cache)
                for t in range(70)
            ]
        )
        chunk = model(Batch(ids=ids, positions=torch.arange(70), edges=(0, 70), pages=pages), cache)
    torch.testing.assert_close(absorbed, expanded, rtol=0, atol=1e-4)
    torch.testing.assert_close(chunk, expanded, rtol=0, atol=1e-4)


def test_scores_are_observed_in_training_alone() -> None:
    model = random_model(SHAPES["k2"])
    attention = next(module for module in model.modules() if isinstance(module, Attention))
    batch = Batch.of([[1, 2, 3]])
    with torch.no_grad():
        _, peak = attention(
            hidden(attention, 3), Layout(batch, None), *rotary_table(model.config, batch.positions), None, False
        )
    assert peak is None


@pytest.mark.skipif(len(targets()) == 1, reason="no native kernels were built")
def test_native_attention_over_a_bf16_cache_gives_what_torch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences: a chunk, another chunk that sees the first, then single tokens of both at once."""
    config = tiny.config(num_attention_heads=3, kv_lora_rank=32, v_head_dim=32, qk_nope_head_dim=16, qk_rope_head_dim=8)
    model = random_model(config)
    ids = [random_ids(config, 60, seed=seed) for seed in range(2)]
    steps = [((0, 0, 30), (1, 0, 41)), ((0, 30, 57), (1, 41, 42)), ((0, 57, 58), (1, 42, 43)), ((1, 43, 60),)]

    def run(target: str) -> Tensor:
        for asked in (door, attention_kernels):
            monkeypatch.setattr(asked, "chosen_target", lambda: target)
        cache = LatentCache(config, num_pages=8, page_tokens=16, dtype=torch.bfloat16)
        pages = ((3, 0, 5, 1), (2, 7, 4, 6))
        outs: list[Tensor] = []
        for step in steps:
            parts = [ids[who][start:end] for who, start, end in step]
            edges = [0]
            for part in parts:
                edges.append(edges[-1] + len(part))
            batch = Batch(
                ids=torch.tensor([token for part in parts for token in part]),
                positions=torch.cat([torch.arange(start, end) for _, start, end in step]),
                edges=tuple(edges),
                pages=tuple(pages[who] for who, _, _ in step),
            )
            with torch.no_grad():
                outs.append(model(batch, cache))
        return torch.cat(outs)

    found, expected = run(targets()[-1]), run("torch")
    # Queries, keys and weights are rounded to bf16 here and not there: 2^-9 each, through two layers
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert errors.median() < 0.02
    assert not torch.equal(found, expected), "both ran the same code"
