"""The token directories that a recipe reads, made before training where they are not there yet."""

from __future__ import annotations

import hashlib
from pathlib import Path

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.train.recipe import DataSource, Recipe
from baltoro.train.synthesis import toolsets
from baltoro.train.synthesis.tokens import dialogue_documents, generated_documents, text_documents, write_tokens


def directory(source: DataSource, recipe: Recipe) -> Path:
    """Where a source's tokens lie.

    One that is made here is named by all that decides its content but the generator's code: delete runs/data after
    changing that.
    """
    if source.kind == "tokens":
        return Path(source.directory)
    vocabulary = Path(recipe.tokenizer) / "tiktoken.model"
    decides = [vocabulary.read_bytes(), source.kind.encode()]
    if source.file:
        decides.append(Path(source.file).read_bytes())
    else:
        decides += [str(source.documents).encode(), str(source.seed).encode()]
        decides += [Path(source.without).read_bytes()] if source.without else []
    digest = hashlib.sha256(b"\0".join(decides)).hexdigest()[:12]
    return Path("runs") / "data" / f"{source.kind}-{digest}"


def prepare(recipe: Recipe) -> None:
    """Write what is missing, with a progress bar; a million dialogues take a quarter of an hour on two cores."""
    made = {source for phase in recipe.phases for source in phase.data if source.kind not in ("copy", "tokens")}
    for source in made:
        for file in (source.file, source.without):
            if file and not Path(file).is_file():
                raise RecipeError(f"{file} is not there", hint="paths are read from the working directory")
        target = directory(source, recipe)
        if target.exists():
            continue
        tokenizer = Tokenizer.open(recipe.tokenizer)
        if source.kind == "text":
            write_tokens(target, text_documents(Path(source.file), tokenizer), tokenizer)
        elif source.kind == "toolsets":
            write_tokens(target, dialogue_documents(toolsets.read(Path(source.file)), tokenizer), tokenizer)
        else:
            without = Path(source.without) if source.without else None
            documents = generated_documents(
                source.seed, "train", source.documents, Path(recipe.tokenizer), without=without
            )
            write_tokens(target, documents, tokenizer, total=source.documents)
