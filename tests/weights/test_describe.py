from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from baltoro.weights import save
from baltoro.weights.describe import describe
from tests import tiny

CONFIG = tiny.config(weight_block_size=(128, 128))


def test_a_preset_is_described_by_its_published_numbers() -> None:
    facts = describe("kimi-k2-instruct")
    assert facts["parameters"] == 1_026_408_232_448
    assert facts["active_parameters"] == 32_861_500_928
    assert facts["tensor_bytes"] == 1_029_173_256_720
    assert facts["cache_bytes_per_token"] == 70_272
    assert (facts["format"], facts["context_tokens"], facts["checkpoint"]) == ("block-fp8", 131072, None)
    assert describe("moonlight-16b-a3b")["format"] == "bf16"


def test_a_lone_config_is_described_like_the_preset_it_was_copied_from(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    by_file, by_directory = describe(tmp_path / "config.json"), describe(tmp_path)
    assert {k: v for k, v in by_file.items() if k not in ("model", "path")}.items() <= by_directory.items()


def test_a_whole_checkpoint_has_no_mismatch_and_its_sizes_agree(tmp_path: Path) -> None:
    save.write(tmp_path, tiny.weights(CONFIG), CONFIG.to_dict(), shard_bytes=100_000)
    facts = describe(tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    assert facts["checkpoint"] == {
        "files": len(files),
        "file_bytes": sum(file.stat().st_size for file in files),
        "tensors": len(list(tiny.weights(CONFIG))),
        "tensor_bytes": facts["tensor_bytes"],
        "mismatches": [],
    }
    assert json.loads(json.dumps(facts)) == facts


def test_mismatches_and_damage_are_described_not_refused(tmp_path: Path) -> None:
    save.write(tmp_path, tiny.weights(CONFIG), tiny.config(q_lora_rank=41, weight_block_size=(128, 128)).to_dict())
    mismatches = describe(tmp_path)["checkpoint"]["mismatches"]
    assert any("q_a_proj.weight is [40, 144], config.json implies [41, 144]" in line for line in mismatches)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "not a whole safetensors file" in describe(tmp_path)["checkpoint"]["mismatches"][0]


def test_a_model_without_weights_is_described_without_torch() -> None:
    program = (
        "import sys; from baltoro.weights.describe import describe; describe('kimi-k2-base');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
