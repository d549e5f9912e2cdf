"""RMSNorm against float64, and the same bits on every target, alone and in company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baltoro.kernels.norm import add_rms_norm, rms_norm
from baltoro.kernels.targets import targets

NATIVE = targets()[1:]
SIZES = [(0, 8), (1, 1), (1, 7168), (3, 15), (2, 17), (5, 130), (64, 1536), (9, 575)]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=targets())
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(("tokens", "width"), SIZES)
def test_norms_equal_float64(tokens: int, width: int, target: str) -> None:
    x, added, weight = randn(tokens, width, seed=0) * 30, randn(tokens, width, seed=1), randn(width, seed=2)
    total, found = add_rms_norm(x, added, weight, 1e-6, target=target)
    wide = (x + added).double()
    truth = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert torch.equal(total, x + added)
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=1e-12)
    assert torch.equal(rms_norm(total, weight, 1e-6, target=target), found)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize(("tokens", "width"), SIZES)
def test_a_row_has_the_same_bits_on_every_target_and_in_any_company(
    tokens: int, width: int, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = randn(tokens, width + 3, seed=3)[:, :width], randn(width, seed=4)  # rows of longer ones
    expected = rms_norm(x.contiguous(), weight, 1e-5, target="scalar")
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(rms_norm(x, weight, 1e-5, target=native), expected)
    for t in range(tokens):
        assert torch.equal(rms_norm(x[t : t + 1], weight, 1e-5, target=native)[0], expected[t])


def test_rows_of_zeros_and_of_nan_stay_so(target: str) -> None:
    x = torch.stack((torch.zeros(20), torch.full((20,), torch.nan)))
    found = rms_norm(x, torch.ones(20), 1e-6, target=target)
    assert torch.equal(found[0], x[0])
    assert found[1].isnan().all()


def test_a_gradient_is_kept(target: str) -> None:
    x, weight = randn(3, 20, seed=0).requires_grad_(), torch.ones(20, requires_grad=True)
    rms_norm(x, weight, 1e-6, target=target).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None


@pytest.mark.skipif(not NATIVE, reason="nothing was built")
def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"weight is torch.float32 \(3,\)"):
        rms_norm(torch.zeros(2, 4), torch.ones(3), 1e-6, target=NATIVE[-1])
    with pytest.raises(ValueError, match=r"added is torch.float32 \(2, 3\)"):
        add_rms_norm(torch.zeros(2, 4), torch.zeros(2, 3), torch.ones(4), 1e-6, target=NATIVE[-1])
