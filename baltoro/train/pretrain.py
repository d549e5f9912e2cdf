"""`baltoro pretrain RECIPE`: from random parameters to a checkpoint, through the recipe's phases."""

from __future__ import annotations

import shutil
from pathlib import Path

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.model.load import save
from baltoro.train import corpus, curves, heldout, loop
from baltoro.train.distributed import World, launch
from baltoro.train.recipe import Recipe, read


def main(path: str | Path) -> None:
    """Train, or go on where the last call stopped. Writes recipe.out: state, log, picture, checkpoint/ at the end."""
    train(read(path))


def train(recipe: Recipe) -> None:
    vocabulary = Tokenizer.open(recipe.tokenizer).vocab_size if recipe.tokenizer else None
    if recipe.model is not None and vocabulary not in (None, recipe.model.vocab_size):
        raise RecipeError(
            f"[model] vocab_size is {recipe.model.vocab_size}, the tokenizer of {recipe.tokenizer} has {vocabulary} ids"
        )
    corpus.prepare(recipe)
    launch(_process, recipe.processes, recipe.threads, recipe)


def _process(world: World, recipe: Recipe) -> None:
    out = Path(recipe.out)
    evaluate = heldout.Evaluation(recipe.tokenizer, recipe.evaluate_examples) if recipe.tokenizer else None
    try:
        state = loop.run(world, recipe, evaluate)
    finally:
        if world.leads and (out / "log.jsonl").exists():
            curves.draw(out / "log.jsonl", out / "curves.png")
    if state is not None and world.leads:
        export(state.model, recipe)


def export(model: loop.Transformer, recipe: Recipe) -> None:
    """The finished model as a checkpoint directory: block-fp8 if its config says so, with its vocabulary."""
    directory = Path(recipe.out) / "checkpoint"
    if directory.exists():
        shutil.rmtree(directory)
    save(model, directory)
    if recipe.tokenizer:
        shutil.copy(Path(recipe.tokenizer) / "tiktoken.model", directory / "tiktoken.model")
