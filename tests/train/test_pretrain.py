"""`baltoro pretrain` and `baltoro sft`, from random parameters to a checkpoint that answers."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.eval import run
from baltoro.eval.tasks import nano
from baltoro.model.batch import Batch
from baltoro.model.load import load
from baltoro.train import pretrain, sft
from tests.train import tiny_runs

NANO = Path(__file__).parents[2] / "baltoro" / "nano"
SOURCES = """
[[phases.data]]
kind = "text"
file = "text.jsonl.gz"
[[phases.data]]
kind = "dialogues"
documents = 10
"""


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory with a text; short answers in evaluations; as many threads afterwards as before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ANSWER_TOKENS", 2)
    with gzip.open("text.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"Tea number {n} is green. " * 9}) + "\n" for n in range(20))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def changed(*changes: tuple[str, str]) -> str:
    """The tiny recipe with nano's vocabulary, two steps and one evaluated example a kind."""
    text = tiny_runs.TOML
    for old, new in (
        ("OUT", "out"),
        ("seed = 3\n", f'seed = 3\ntokenizer = "{NANO}"\nevaluate_examples = 1\n'),
        ("vocab_size = 64", "vocab_size = 2048"),
        ("max_position_embeddings = 512", "max_position_embeddings = 8192"),
        ("bos_token_id = 1\neos_token_id = 2", "bos_token_id = 1792\neos_token_id = 1794"),
        ("tokens_per_step = 256\nmicrobatch_tokens = 128", "tokens_per_step = 2048\nmicrobatch_tokens = 2048"),
        ("steps = 8", "steps = 2"),
        *changes,
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def recipe(text: str) -> Path:
    path = Path("recipe.toml")
    path.write_text(text, encoding="utf-8")
    return path


def log(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]


def test_pretraining_leaves_a_checkpoint_a_log_and_a_picture_and_sft_goes_on_from_it() -> None:
    pretrain.main(recipe(changed() + SOURCES))
    assert [line["step"] for line in log("out")] == [1, 2, 2]
    assert set(log("out")[-1]["scores"]) == set(nano.KINDS)
    assert Path("out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert Path("out/checkpoint/tiktoken.model").read_bytes() == (NANO / "tiktoken.model").read_bytes()
    model = load("out/checkpoint")
    parameters = load_file("out/state/parameters-00000-of-00001.safetensors")
    assert parameters.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        kept = parameters[name] if "e_score_correction_bias" in name else parameters[name].bfloat16().float()
        assert torch.equal(value, kept), name
    ids = Tokenizer.open("out/checkpoint").encode("Tea number")
    assert model(Batch.of([ids])).isfinite().all()

    # SFT: the checkpoint's config, one phase of dialogues
    text = changed()
    text = text[: text.index("[model]")] + text[text.index("[optimizer]") : text.index("[[phases.data]]")]
    text = text.replace('out = "out"', 'out = "tuned"\ninit = "out/checkpoint"') + SOURCES.split('gz"\n')[1]
    sft.main(recipe(text + 'loss = "assistant"\n'))
    assert [line["step"] for line in log("tuned")] == [1, 2, 2]
    assert all(line["by_kind"] for line in log("tuned")[:2])
    tuned = load("tuned/checkpoint")
    assert tuned.config == model.config
    moved = [name for name, value in tuned.state_dict().items() if not torch.equal(value, model.state_dict()[name])]
    assert moved

    # Once more changes nothing: the run is at its end
    before = (
        Path("tuned/checkpoint/config.json").read_bytes(),
        load_file("tuned/state/parameters-00000-of-00001.safetensors"),
    )
    sft.main(recipe(text + 'loss = "assistant"\n'))
    assert Path("tuned/checkpoint/config.json").read_bytes() == before[0]
    tiny_runs.assert_same_bits(load_file("tuned/state/parameters-00000-of-00001.safetensors"), before[1])


def test_a_model_of_another_vocabulary_size_is_refused_before_anything_is_made() -> None:
    with pytest.raises(RecipeError, match=r"vocab_size is 2000, the tokenizer of .* has 2048 ids"):
        pretrain.main(recipe(changed(("vocab_size = 2048", "vocab_size = 2000"))))
    assert not Path("out").exists() and not Path("runs").exists()


def test_a_picture_is_drawn_of_a_run_that_fails() -> None:
    gate = 'name = "copy"\ngate_kind = "copy"\ngate_loss = 0.01'
    with pytest.raises(RecipeError, match=r"its gate is 0\.01"):
        pretrain.main(recipe(changed(('name = "copy"', gate))))
    assert Path("out/curves.png").exists() and not Path("out/checkpoint").exists()


@pytest.mark.slow
def test_torchrun_starts_the_processes_and_of_their_errors_one_is_told() -> None:
    root = Path(__file__).parents[2]
    text = tiny_runs.TOML.replace("OUT", "out").replace("steps = 8", "steps = 2")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "baltoro", "pretrain"]

    def run(parallel: str) -> subprocess.CompletedProcess[str]:
        path = recipe(text.replace("[model]", f"[parallel]\n{parallel}\n[model]"))
        environment = os.environ | {"PYTHONPATH": str(root)}
        return subprocess.run([*command, str(path)], env=environment, capture_output=True, text=True, check=False)

    done = run("expert = 2\nshard = true")
    assert done.returncode == 0, done.stderr
    assert len(log("out")) == 2 and len(list(Path("out/state").glob("momentum-*-of-00002.safetensors"))) == 2
    assert load("out/checkpoint")(Batch.of([[3, 4, 5]])).isfinite().all()
    refused = run("expert = 4")
    assert refused.returncode != 0
    assert refused.stderr.count("error: [parallel] expert is 4, which does not divide the 2 processes") == 1
