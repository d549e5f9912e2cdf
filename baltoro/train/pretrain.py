"""`baltoro pretrain RECIPE`: from random parameters to a checkpoint, through the recipe's phases."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.model.load import stored
from baltoro.train import corpus, curves, heldout, loop
from baltoro.train.distributed import World, launch, one_voice, processes_of
from baltoro.train.layout import gathered
from baltoro.train.recipe import Recipe, check_processes, read
from baltoro.train.state import TrainState
from baltoro.weights.save import write


def main(path: str | Path) -> None:
    """Train, or go on where the last call stopped. Writes recipe.out: state, log, picture, checkpoint/ at the end."""
    with one_voice():
        recipe = read(path)
    train(recipe)


def train(recipe: Recipe) -> None:
    with one_voice():
        vocabulary = Tokenizer.open(recipe.tokenizer).vocab_size if recipe.tokenizer else None
        if recipe.model is not None and vocabulary not in (None, recipe.model.vocab_size):
            raise RecipeError(
                f"[model] vocab_size is {recipe.model.vocab_size}, "
                f"the tokenizer of {recipe.tokenizer} has {vocabulary} ids"
            )
        processes = processes_of(recipe.processes)
        check_processes(recipe, processes)
    launch(_process, processes, recipe.threads, recipe)


def _process(world: World, recipe: Recipe) -> None:
    out = Path(recipe.out)
    if world.leads:
        corpus.prepare(recipe)
    world.wait()
    scored = bool(recipe.tokenizer) and recipe.evaluate_examples > 0
    evaluate = heldout.Evaluation(recipe.tokenizer, recipe.evaluate_examples) if scored else None
    try:
        state = loop.run(world, recipe, evaluate)
    finally:
        if world.leads and (out / "log.jsonl").exists():
            with contextlib.suppress(OSError):  # a picture is no reason to hide why a run ended
                curves.draw(out / "log.jsonl", out / "curves.png")
    if state is not None:
        export(state, recipe)


def export(state: TrainState, recipe: Recipe) -> None:
    """The finished model as a checkpoint directory: block-fp8 if its config says so, with its vocabulary.

    Written by the leading process, to which the others send their parts one tensor at a time.
    """
    config, parts = state.model.config, gathered(state.model, state.layout)
    if not state.layout.world.leads:
        for _ in parts:
            pass
        return
    directory = Path(recipe.out) / "checkpoint"
    if directory.exists():
        shutil.rmtree(directory)
    write(directory, stored(parts, config), config.to_dict())
    if recipe.tokenizer:
        shutil.copy(Path(recipe.tokenizer) / "tiktoken.model", directory / "tiktoken.model")
