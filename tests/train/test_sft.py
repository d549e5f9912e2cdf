"""SFT refuses what would not be SFT. tests/train/test_pretrain.py runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from baltoro.errors import RecipeError
from baltoro.train import pretrain, sft
from baltoro.train.recipe import Recipe
from tests.train import tiny_runs

DIALOGUES = """
[[phases.data]]
kind = "dialogues"
documents = 10
"""
TUNED = tiny_runs.TOML.replace("seed = 3\n", 'seed = 3\ninit = "some/checkpoint"\ntokenizer = "words"\n')


def test_random_parameters_and_loss_on_every_token_are_refused_in_one_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(TUNED.replace('init = "some/checkpoint"\n', "") + DIALOGUES)
    with pytest.raises(RecipeError) as caught:
        sft.main(path)
    assert "init is missing" in caught.value.message
    assert "phase 'copy' learns every token of its dialogues, expected loss = 'assistant'" in caught.value.message


def test_copying_beside_the_assistants_turns_is_trained_as_pretraining_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Recipe] = []
    monkeypatch.setattr(pretrain, "train", trained.append)
    path = tmp_path / "recipe.toml"
    path.write_text(TUNED + DIALOGUES + 'loss = "assistant"\n')
    sft.main(path)
    assert [source.loss for source in trained[0].phases[0].data] == ["all", "assistant"]
