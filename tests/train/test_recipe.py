"""A recipe is refused as a whole: one error names everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from baltoro.errors import RecipeError
from baltoro.train.recipe import Recipe, read
from tests.train import tiny_runs

ROOT = Path(__file__).parents[2]
RECIPES = [
    path for path in sorted((ROOT / "recipes").glob("*.toml")) if not path.name.startswith("rl_")
]  # test_rl_recipe.py


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(written(tmp_path, text))
    return caught.value.message


def changed(*changes: tuple[str, str]) -> str:
    text = tiny_runs.TOML
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_a_file_gives_the_same_recipe_as_python_does(tmp_path: Path) -> None:
    assert read(written(tmp_path, tiny_runs.TOML)) == tiny_runs.recipe(Path("OUT"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_our_own_recipes_are_sound_and_their_files_exist(path: Path) -> None:
    recipe = read(path)
    for phase in recipe.phases:
        assert recipe.lanes(phase) % recipe.processes == 0
        for source in phase.data:
            assert not source.file or (ROOT / source.file).is_file()
    if not any(source.kind == "tokens" for phase in recipe.phases for source in phase.data):  # those a user brings
        assert (ROOT / recipe.tokenizer / "tiktoken.model").is_file()


def test_lanes_are_microbatches_and_a_phase_may_have_its_own_number(tmp_path: Path) -> None:
    recipe = tiny_runs.recipe(tmp_path, tokens_per_step=1024, microbatch_tokens=128)
    assert recipe.lanes(tiny_runs.phase()) == 8
    assert recipe.lanes(tiny_runs.phase(tokens_per_step=256)) == 2


def test_unknown_missing_and_mistyped_keys_come_in_one_error_with_the_nearest_names(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        changed(
            ("seed = 3\n", "sead = 3\n"),
            ("warmup_steps = 2", 'warmup_steps = "2"'),
            ('dtype = "float32"', 'dtype = "float16"'),
            ("hidden_size = 32", "hiden_size = 32"),
            ("lr = 3e-3", "rate = 3e-3\nadamw_betas = [0.9]"),
            ("steps = 8\n", "step = 8\n"),
            ("lengths = [64, 96]", 'lengths = [64, "96"]\nnothing_like_it = 1'),
        ),
    )
    for part in (
        "sead is unknown, did you mean seed?",
        "; seed is missing",
        "warmup_steps is '2', expected int",
        "dtype is 'float16', expected one of bfloat16, float32",
        "hiden_size",
        "optimizer.rate is unknown",
        "optimizer.lr is missing",
        "optimizer.adamw_betas is [0.9], expected 2 values",
        "phases[0].step is unknown, did you mean steps?",
        "phases[0].steps is missing",
        "phases[0].data[0].lengths[1] is '96', expected int",
        "phases[0].data[0].nothing_like_it is unknown",
    ):
        assert part in message
    assert "model is missing" not in message  # it is there, and wrong


@pytest.mark.parametrize(
    "old, new, part",
    [
        ("warmup_steps = 2", "warmup_steps = true", "warmup_steps is True, expected int"),
        ("[optimizer]\nlr = 3e-3", "", "optimizer is missing"),
        ('name = "copy"\n', "name = 1\n", "phases[0].name is 1, expected str"),
        ("lengths = [64, 96]", "lengths = 64", "lengths is 64, expected a list"),
        ("[optimizer]\nlr = 3e-3", "[[optimizer]]\nlr = 3e-3", "optimizer is [{'lr': 0.003}], expected a table"),
        ("seed = 3\n", "seed = 3\nmodel.a = 1\n", "not valid TOML"),
    ],
)
def test_what_is_of_the_wrong_type_is_named_with_its_place(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert part in refusal(tmp_path, changed((old, new)))


def test_whole_numbers_are_accepted_where_a_fraction_may_stand(tmp_path: Path) -> None:
    recipe = read(written(tmp_path, changed(("lr = 3e-3", "lr = 1"))))
    assert type(recipe.optimizer.lr) is float


def test_every_contradiction_comes_in_one_error(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        changed(
            ("seed = 3", "seed = -3"),
            ("tokens_per_step = 256", "tokens_per_step = 200\nthreads = 0"),
            ("lr = 3e-3", 'lr = 3e-3\nadamw_matrices = ["q_[ab"]'),
            ("steps = 8", 'steps = 0\ngate_kind = "copy"'),
            ("lengths = [64, 96]", 'weight = 0\nfile = "text.gz"\n[[phases.data]]\nkind = "dialogues"'),
        )
        + '[[phases]]\nname = "empty"\nsteps = 1\ndata = []\n',
    )
    for part in (
        "seed is -3",
        "threads is 0, expected at least 1",
        "tokens_per_step 200 is not a multiple of microbatch_tokens 128 times processes 1",
        "'q_[ab' is not a regular expression",
        "steps, tokens_per_step and microbatch_tokens must be positive",
        "gate_kind and a gate_loss above 0 belong together",
        "weight is 0.0, expected more than 0",
        "copy has no file, only text or toolsets has",
        "copy needs lengths",
        "dialogues need documents",
        "dialogues needs the recipe's tokenizer",
        "phase 'empty' has no [[phases.data]]",
    ):
        assert part in message


@pytest.mark.parametrize("key", ["microbatch_tokens = 128", "tokens_per_step = 256"])
def test_no_tokens_are_refused_not_divided_by(tmp_path: Path, key: str) -> None:
    name = key.split(" = ")[0]
    assert f"{name} is 0, expected at least 1" in refusal(tmp_path, changed((key, f"{name} = 0")))


def test_without_model_and_init_there_is_nothing_to_train(tmp_path: Path) -> None:
    text = tiny_runs.TOML
    text = text[: text.index("[model]")] + text[text.index("[optimizer]") :]
    assert "[model] is missing, and there is no init" in refusal(tmp_path, text)
    assert isinstance(read(written(tmp_path, 'init = "some/checkpoint"\n' + text)), Recipe)


def test_a_file_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path / "none.toml")
