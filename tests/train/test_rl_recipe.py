"""Recipes of reinforcement learning: ours are sound, and every contradiction is told."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from baltoro.chat.messages import Message
from baltoro.chat.parser import Folded
from baltoro.errors import RecipeError
from baltoro.train.rl_recipe import KINDS, TaskSource, read
from baltoro.train.tasks import Tasks
from tests.train import tiny_rl

ROOT = Path(__file__).parents[2]
TOML = """
seed = 1
out = "out"
init = "start"
tokenizer = "start"
iterations = 4
[optimizer]
lr = 1e-3
[[tasks]]
kind = "single"
"""


def written(folder: Path, text: str) -> Path:
    (folder / "rl.toml").write_text(text)
    return folder / "rl.toml"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("rl_*.toml")), ids=lambda path: path.name)
def test_our_own_recipes_are_sound(path: Path) -> None:
    recipe = read(path)
    assert (ROOT / recipe.tokenizer / "tiktoken.model").is_file()
    assert recipe.task_seed not in {source.seed for source in recipe.ptx}  # prompts are not what SFT has learned


def test_defaults_are_those_of_the_class(tmp_path: Path) -> None:
    recipe = read(written(tmp_path, TOML))
    assert (recipe.samples, recipe.tasks) == (8, (TaskSource(kind="single"),))
    assert [recipe.temperature_at(0), recipe.temperature_at(3)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("iterations = 4", "iteratoins = 4", "did you mean iterations"),
        ("iterations = 4", "iterations = 0", "iterations is 0"),
        ("seed = 1", "seed = 1\nsamples = 1", "samples is 1"),
        ("seed = 1", "seed = 1\nprompts = 3\nprocesses = 2", "prompts is 3"),
        ("seed = 1", "seed = 1\nupdates = 20", "updates is 20"),
        ("seed = 1", "seed = 1\ntemperature_end = 0.0", "temperature_end is 0.0"),
        ("seed = 1", "seed = 1\ntau = 0.0", "tau is 0.0"),
        ("seed = 1", 'seed = 1\nrollout_format = "fp4"', "rollout_format is fp4"),
        ("seed = 1", "seed = 1\nptx_weight = 0.1", "ptx_weight is 0.1"),
        ('kind = "single"', 'kind = "riddle"', "expected one of recite"),
        ('kind = "single"', 'kind = "file"', "a file belongs to kind 'file'"),
        ('kind = "single"', 'kind = "single"\nunavailable = 0.1', "only sessions have calls that fail"),
        ('kind = "single"', 'kind = "session"\nunavailable = 0.9\npartial = 0.2', "0 to 1 together"),
        ('kind = "single"', 'kind = "single"\n[[ptx]]\nkind = "copy"', "ptx_weight is 0.0"),
        ('kind = "single"', 'kind = "single"\n[critic]\nurl = "u"\nmodel = "m"', "critic.weight is missing"),
        ('kind = "single"', 'kind = "single"\n[critic]\nurl = "u"\nmodel = "m"\nweight = 1.0\nkinds = ["x"]', "has x"),
    ],
)
def test_what_contradicts_itself_is_one_error_that_names_it(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(RecipeError, match="explained in") as caught:
        read(written(tmp_path, TOML.replace(old, new)))
    assert told in caught.value.message


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "file"])
def test_every_kind_gives_prompts_that_its_truth_answers(tmp_path: Path, kind: str) -> None:
    """The same number gives the same task; its prompt ends with what is to be answered; silence is worth nothing."""
    recipe = tiny_rl.recipe(tmp_path, tasks=(TaskSource(kind=kind),))
    tasks = Tasks(recipe)
    for group in range(12):
        task, again = tasks.task(group), Tasks(recipe).task(group)
        environment = task.make()
        prompt = environment.reset()
        assert prompt == again.make().reset()
        assert prompt.messages[-1].role in ("user", "tool")
        assert environment.step(Folded(None, (), ())).reward in (0.0, None) or kind == "session"


def test_sources_are_drawn_by_their_weights(tmp_path: Path) -> None:
    recipe = tiny_rl.recipe(tmp_path, tasks=(TaskSource(kind="none", weight=3.0), TaskSource(kind="pick")))
    tasks = Tasks(recipe)
    share = sum(tasks.task(group).kind == "none" for group in range(400)) / 400
    assert 0.67 < share < 0.83  # 0.75, four standard deviations


LINE = '{"messages": [{"role": "user", "content": "2 + 2?"}], "wanted": {"number": 4}}'


def test_a_file_of_tasks_is_asked_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(
        LINE
        + '\n\n{"messages": [{"role": "user", "content": "Be short."}], "wanted": {"instructions": {"max_words": 2}}}\n'
    )
    tasks = Tasks(tiny_rl.recipe(tmp_path, tasks=(TaskSource(kind="file", file=str(tmp_path / "tasks.jsonl")),)))
    first, second = (tasks.task(group).make() for group in range(2))
    assert first.reset().messages == (Message(role="user", content="2 + 2?"),)
    assert first.step(Folded("It is 4.", (), ())).reward == 1.0
    assert second.step(Folded("It is too long.", (), ())).reward == 0.0


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", '{"messages": []}', LINE.replace("number", "nummer"), LINE.replace('"user"', '"assistant"'),
        LINE.replace("messages", "message"), LINE.replace("4}", '"four"}'),
        LINE.replace('2 + 2?"', '2", "colour": 1'),
        LINE.replace('"number": 4', '"instructions": {"max_word": 3}'), LINE.replace('{"number": 4}', "3"), "",
    ],
)  # fmt: skip
def test_a_line_that_is_no_task_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text((LINE + "\n" + line if line else "") + "\n")
    with pytest.raises(RecipeError, match=r"tasks\.jsonl:2" if line else "has no task"):
        Tasks(tiny_rl.recipe(tmp_path, tasks=(TaskSource(kind="file", file=str(path)),)))
    with pytest.raises(RecipeError, match="cannot be read"):
        Tasks(tiny_rl.recipe(tmp_path, tasks=(TaskSource(kind="file", file=str(tmp_path / str(Random(1).random()))),)))
