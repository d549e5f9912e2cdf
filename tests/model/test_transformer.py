"""Logits against transformers' DeepseekV3ForCausalLM and against the float64 oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from baltoro.config import ModelConfig
from baltoro.kernels import steps
from baltoro.kernels.formats import FORMATS, Format
from baltoro.kernels.targets import targets
from baltoro.model.batch import Batch, LatentCache
from baltoro.model.load import load, save
from baltoro.model.transformer import Observed, Transformer
from tests import oracle, tiny
from tests.model.random_models import ODD_SHAPES, SHAPES, random_ids, random_model

PARITY = Path(__file__).parents[3] / "shared" / "parity"
CLOSE = 1e-4  # float32; logits are of size 10 and beyond position 100 rotary angles alone differ by 1e-5

LoadTheirs = Callable[[Path, torch.dtype], Any]


@pytest.fixture(scope="module")
def load_theirs() -> LoadTheirs:
    transformers = pytest.importorskip("transformers")

    def load_theirs(directory: Path, dtype: torch.dtype) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    return load_theirs


def in_block_fp8(config: ModelConfig) -> ModelConfig:
    return ModelConfig.from_dict(
        {
            **config.to_dict(),
            "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        }
    )


def logits(model: Transformer, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(Batch.of([ids]))


def their_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1, "logits too flat to tell models apart"
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", SHAPES)
def test_a_bf16_checkpoint_gives_the_logits_of_transformers(name: str, load_theirs: LoadTheirs, tmp_path: Path) -> None:
    """Up to twice the original context; transformers reads the same directory."""
    save(random_model(SHAPES[name]), tmp_path)
    ours, theirs = load(tmp_path), load_theirs(tmp_path, torch.float32)
    for tokens in (1, 7, 64, 65, 140):
        ids = random_ids(ours.config, tokens)
        assert_close(logits(ours, ids), their_logits(theirs, ids))


@pytest.mark.parametrize("name", SHAPES)
def test_a_block_fp8_checkpoint_gives_the_logits_of_transformers(
    name: str, load_theirs: LoadTheirs, tmp_path: Path
) -> None:
    """transformers cannot compute with block-fp8 on a CPU: it gets the weights as the oracle dequantizes them."""
    config = in_block_fp8(SHAPES[name])
    model = random_model(config)
    save(model, tmp_path / "fp8")
    _, weights = oracle.read(tmp_path / "fp8")
    (tmp_path / "plain").mkdir()
    plain = {name: torch.from_numpy(value).float() for name, value in weights.items()}
    save_file(plain, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "plain" / "config.json").write_text(json.dumps(SHAPES[name].to_dict()))

    ours, theirs = load(tmp_path / "fp8"), load_theirs(tmp_path / "plain", torch.float32)
    for tokens in (1, 140):
        ids = random_ids(config, tokens)
        assert_close(logits(ours, ids), their_logits(theirs, ids))
    assert (logits(ours, ids) - logits(model, ids)).abs().max() > 0.01, "nothing was quantized"


def test_transformers_reads_our_block_fp8_files_by_itself(load_theirs: LoadTheirs, tmp_path: Path) -> None:
    """On a CPU it dequantizes to bf16, so both are compared with those weights, computing in float32.

    No block here is ragged: transformers 5.23 divides 160 rows with 2 scales into 80 and 80 instead of 128 and 32.
    """
    config = in_block_fp8(
        tiny.config(
            hidden_size=256,
            intermediate_size=384,
            moe_intermediate_size=128,
            num_attention_heads=4,
            q_lora_rank=128,
            kv_lora_rank=96,
            qk_nope_head_dim=32,
            qk_rope_head_dim=32,
            v_head_dim=64,
        )
    )
    save(random_model(config), tmp_path)
    theirs = load_theirs(tmp_path, torch.bfloat16).float()
    ours = load(tmp_path, dtype=torch.bfloat16).float()
    ours.dtype = torch.float32
    ids = random_ids(config, 40)
    assert_close(logits(ours, ids), their_logits(theirs, ids))


@pytest.mark.parametrize("name", [*SHAPES, *ODD_SHAPES])
@pytest.mark.parametrize("block_fp8", [False, True])
def test_logits_equal_the_oracle(name: str, block_fp8: bool, tmp_path: Path) -> None:
    config = {**SHAPES, **ODD_SHAPES}[name]
    save(random_model(in_block_fp8(config) if block_fp8 else config), tmp_path)
    ids = random_ids(config, 30)
    truth = oracle.forward(*oracle.read(tmp_path), ids)
    assert_close(logits(load(tmp_path), ids).double(), torch.from_numpy(truth.logits))


@pytest.mark.parametrize("name", SHAPES)
def test_what_training_observes_equals_the_oracle(name: str, tmp_path: Path) -> None:
    """Largest score of each head over sequences of uneven length, and the load of each expert."""
    model = random_model(SHAPES[name])
    save(model, tmp_path)
    config, weights = oracle.read(tmp_path)
    sequences = [random_ids(model.config, tokens, seed=tokens) for tokens in (13, 1, 22)]
    truths = [oracle.forward(config, weights, ids) for ids in sequences]
    observed = Observed()
    with torch.no_grad():
        seen = model(Batch.of(sequences), observed=observed)
        assert torch.equal(seen, model(Batch.of(sequences))), "being observed changes the logits"
    assert len(observed.max_logits) == model.config.num_hidden_layers
    for layer, peak in enumerate(observed.max_logits):
        expected = np.max([truth.max_scores[layer] for truth in truths], axis=0)
        np.testing.assert_allclose(peak.numpy(), expected, rtol=1e-5, atol=1e-4)
    for layer, tokens in enumerate(observed.expert_tokens(model.config.n_routed_experts)):
        assert tokens.tolist() == np.sum([truth.expert_tokens[layer] for truth in truths], axis=0).tolist()


def test_what_is_computed_in_bfloat16_stays_as_near_as_transformers_does(
    load_theirs: LoadTheirs, tmp_path: Path
) -> None:
    save(random_model(SHAPES["k2"]), tmp_path)
    ids = random_ids(SHAPES["k2"], 60)
    exact = logits(load(tmp_path), ids)
    ours = (logits(load(tmp_path, dtype=torch.bfloat16), ids) - exact).square().mean().sqrt()
    theirs = (their_logits(load_theirs(tmp_path, torch.bfloat16), ids).float() - exact).square().mean().sqrt()
    assert 0 < ours < 1.5 * theirs


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = random_model(SHAPES["deepseek"]).train()
    ids = random_ids(model.config, 120)
    torch.nn.functional.cross_entropy(model(Batch.of([ids]))[:-1], torch.tensor(ids[1:])).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@pytest.mark.skipif(not PARITY.is_dir(), reason="the recorded checkpoints are not here")
@pytest.mark.parametrize("stored", ["bf16", "fp8"])
@pytest.mark.parametrize("variant", ["tiny_a", "tiny_b", "tiny_c"])
def test_recorded_logits_of_transformers_are_met(variant: str, stored: str) -> None:
    """Whole, and through a paged cache: a chunk of the first half, a second chunk, the last tokens one by one."""
    model = load(PARITY / variant / stored)
    tag = "bf16_weights" if stored == "bf16" else "fp8_dequant_f32"
    records, arrays = (
        json.loads((PARITY / variant / "ref.json").read_text())[tag],
        np.load(PARITY / variant / "ref.npz"),
    )
    for tokens in (1, 7, 33, 64, 65, 200, 500):
        record = records[f"len{tokens}"]
        whole = logits(model, record["ids"])
        np.testing.assert_allclose(
            whole[record["positions"]].numpy(), arrays[f"{tag}.len{tokens}.logits"], rtol=0, atol=CLOSE
        )
        assert whole.argmax(-1).tolist() == record["argmax_all"]

        cache = LatentCache(model.config, num_pages=40, page_tokens=16, dtype=torch.float32)
        pages = (tuple(range(39, 39 - -(-tokens // 16), -1)),)
        first, last = tokens // 2, min(4, tokens - tokens // 2)
        cuts = sorted({0, first, tokens - last, *range(tokens - last, tokens), tokens})
        outs = []
        for start, end in zip(cuts, cuts[1:], strict=False):
            ids = torch.tensor(record["ids"][start:end])
            positions = torch.arange(start, end)
            with torch.no_grad():
                outs.append(model(Batch(ids=ids, positions=positions, edges=(0, end - start), pages=pages), cache))
        torch.testing.assert_close(torch.cat(outs), whole, rtol=0, atol=CLOSE)


@pytest.mark.skipif(len(targets()) == 1, reason="nothing was built")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("query_rank", [40, None])
def test_whole_native_steps_change_no_bit(
    format: Format, query_rank: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: Tensor) -> bool:
        return False

    config = tiny.config(q_lora_rank=query_rank, kv_lora_rank=32, v_head_dim=32)
    save(random_model(config), tmp_path)
    ids, found = random_ids(config, 20), list[Tensor]()
    for whole in (True, False):
        if not whole:
            monkeypatch.setattr(steps, "runs", never)
        model, cache = load(tmp_path, format=format), LatentCache(config, num_pages=4, page_tokens=16)
        with torch.no_grad():
            for new in (slice(0, 18), slice(18, 19), slice(19, 20)):  # a prompt, then two tokens
                batch = Batch(
                    ids=torch.tensor(ids[new] * 2), positions=torch.arange(20)[new].repeat(2),
                    edges=(0, len(ids[new]), 2 * len(ids[new])), pages=((0, 1), (3, 2)),
                )  # fmt: skip
                found.append(model(batch, cache))
        block: Any = model.model.layers[1]
        assert (block.self_attn.step is not None) == whole
        assert (block.mlp.step is not None) == whole
    for one, other in zip(found[:3], found[3:], strict=True):
        assert torch.equal(one, other)
