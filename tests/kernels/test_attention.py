"""Attention kernels against float64, on ragged sizes, and against themselves in other company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from baltoro.kernels import attention
from baltoro.kernels.targets import targets

NATIVE = targets()[1:]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=targets())
def target(request: pytest.FixtureRequest) -> str:
    return request.param


def decode_case(lengths: list[int], heads: int, latent: int, rope: int, seed: int = 0) -> dict[str, Any]:
    """Sequences whose rows lie scattered over a cache."""
    total = sum(lengths)
    cache = randn(total + 7, latent + rope, seed=seed).bfloat16()
    slots = torch.randperm(total + 7, generator=torch.Generator().manual_seed(seed))[:total]
    edges = torch.tensor([0, *lengths]).cumsum(0)
    q = randn(len(lengths), heads, latent + rope, seed=seed + 1)
    return {"q": q, "cache": cache, "slots": slots, "edges": edges, "scale": 0.3, "latent": latent}


def decode_truth(case: dict[str, Any]) -> Tensor:
    out = []
    for b, (start, end) in enumerate(zip(case["edges"], case["edges"][1:], strict=False)):
        rows = case["cache"][case["slots"][start:end]].double()
        weights = (case["q"][b].bfloat16().double() @ rows.T * case["scale"]).softmax(-1)
        out.append(weights @ rows[:, : case["latent"]])
    return torch.stack(out)


def assert_near(found: Tensor, truth: Tensor, values: Tensor) -> None:
    """Weights are rounded to bf16, 2^-9 each: a mixture is off by at most that share of the largest value. Scores are
    float32 sums of some hundred products: their error is a tenth of that, and allowed for as much again."""
    assert found.dtype is torch.float32
    assert ((found.double() - truth).abs() <= 2.0**-8 * values.double().abs().max()).all()


@pytest.mark.parametrize(
    ("lengths", "heads", "latent", "rope"),
    [([1], 1, 32, 4), ([5, 1, 40], 3, 32, 8), ([511], 64, 64, 16), ([512, 513], 16, 32, 8), ([1500, 3], 33, 96, 32),
     ([70], 64, 512, 64)],
)  # fmt: skip
def test_decode_equals_float64(lengths: list[int], heads: int, latent: int, rope: int, target: str) -> None:
    case = decode_case(lengths, heads, latent, rope)
    assert_near(attention.mla_decode(**case, target=target), decode_truth(case), case["cache"])


def test_decode_finds_the_one_row_that_matters(target: str) -> None:
    case = decode_case([3000], 64, 64, 16)
    for head, position in enumerate(range(0, 3000, 47)):
        case["q"][0, head] = case["cache"][case["slots"][position]].float() * 10
    found = attention.mla_decode(**case, target=target)
    expected = case["cache"][case["slots"][range(0, 3000, 47)]][:, :64].float()
    torch.testing.assert_close(found[0], expected, rtol=2.0**-7, atol=1e-3)


@pytest.mark.parametrize("native", NATIVE)
def test_a_sequence_gets_the_same_bits_in_any_company_and_on_any_number_of_threads(
    native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = decode_case([700, 1, 33, 1024], 40, 64, 16)
    results: list[Tensor] = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(attention.mla_decode(**case, target=native))
    alone = [
        attention.mla_decode(
            case["q"][b : b + 1], case["cache"], case["slots"][start:end], torch.tensor([0, end - start]),
            scale=0.3, latent=64, target=native,
        )
        for b, (start, end) in enumerate(zip(case["edges"].tolist(), case["edges"].tolist()[1:], strict=False))
    ]  # fmt: skip
    for other in (*results[1:], torch.cat(alone)):
        assert torch.equal(results[0], other)


@pytest.mark.parametrize(
    ("new", "all_", "heads", "key", "value"),
    [(1, 1, 1, 4, 32), (5, 5, 2, 48, 32), (33, 33, 3, 24, 32), (31, 600, 2, 32, 64), (200, 200, 4, 192, 128),
     (70, 1100, 1, 40, 96)],
)  # fmt: skip
def test_causal_attention_equals_float64(new: int, all_: int, heads: int, key: int, value: int, target: str) -> None:
    q, k, v = randn(new, heads, key, seed=0), randn(all_, heads, key, seed=1), randn(all_, heads, value, seed=2)
    k, v = k.bfloat16(), v.bfloat16()
    found = attention.causal_attention(q, k, v, scale=0.4, target=target)
    scores = torch.einsum("thk,shk->hts", q.bfloat16().double(), k.double()) * 0.4
    unseen = torch.arange(all_)[None, :] > torch.arange(all_ - new, all_)[:, None]
    truth = torch.einsum("hts,shv->thv", scores.masked_fill(unseen, -torch.inf).softmax(-1), v.double())
    assert_near(found, truth, v)


@pytest.mark.parametrize("native", NATIVE)
def test_what_comes_later_changes_nothing_not_even_a_bit(native: str) -> None:
    q, k, v = randn(90, 2, 32, seed=0), randn(90, 2, 32, seed=1).bfloat16(), randn(90, 2, 32, seed=2).bfloat16()
    whole = attention.causal_attention(q, k, v, scale=0.4, target=native)
    k[64:], v[64:] = 1000.0, torch.nan
    assert torch.equal(whole[:64], attention.causal_attention(q, k, v, scale=0.4, target=native)[:64])


def test_a_nan_reaches_the_result(target: str) -> None:
    q, k, v = randn(4, 1, 32, seed=0), randn(4, 1, 32, seed=1).bfloat16(), randn(4, 1, 32, seed=2).bfloat16()
    q[2, 0, 5] = torch.nan
    found = attention.causal_attention(q, k, v, scale=0.4, target=target)
    assert found[2].isnan().all()
    assert found[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"latent": 30}, "latent is 30 of 80"),
        ({"latent": 96}, "latent is 96 of 80"),
        ({"cache": torch.zeros(20, 80)}, "cache is torch.float32"),
        ({"slots": torch.tensor([0, 1, 20])}, "slots holds 0 .. 20, expected 0 .. 19"),
        ({"slots": torch.tensor([0, -1, 2])}, "slots holds -1"),
        ({"edges": torch.tensor([0, 2, 2])}, "edges are"),
        ({"edges": torch.tensor([0, 1, 4])}, r"edges are \[0, 1, 4\], expected to rise from 0 to 3"),
        ({"q": torch.zeros(2, 3, 84)}, "cache is"),
    ],
)
def test_decode_tensors_that_do_not_fit_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    good = {
        "q": torch.zeros(2, 3, 80), "cache": torch.zeros(20, 80, dtype=torch.bfloat16), "scale": 1.0, "latent": 64,
        "slots": torch.tensor([0, 1, 2]), "edges": torch.tensor([0, 1, 3]),
    }  # fmt: skip
    attention.mla_decode(**good)
    with pytest.raises(ValueError, match=named):
        attention.mla_decode(**(good | change))


def test_attention_shapes_that_do_not_fit_are_refused() -> None:
    q, k = torch.zeros(3, 2, 32), torch.zeros(2, 2, 32, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="expected S >= T"):
        attention.causal_attention(q, k, k, scale=1.0)
    with pytest.raises(ValueError, match="v is"):
        attention.causal_attention(q[:2], k, k.float(), scale=1.0)
