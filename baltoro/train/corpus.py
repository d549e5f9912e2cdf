"""The token directories that a recipe reads, made before training where they are not there yet."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import RecipeError
from baltoro.train.recipe import DataSource, Recipe
from baltoro.train.synthesis.dialogues import generate
from baltoro.train.synthesis.tokens import dialogue_documents, text_documents, write_tokens


def directory(source: DataSource, recipe: Recipe) -> Path:
    """Where a source's tokens lie.

    One that is made here is named by all that decides its content but the generator's code: delete runs/data after
    changing that.
    """
    if source.kind == "tokens":
        return Path(source.directory)
    vocabulary = Path(recipe.tokenizer) / "tiktoken.model"
    decides = [vocabulary.read_bytes(), source.kind.encode()]
    if source.kind == "text":
        decides.append(Path(source.file).read_bytes())
    else:
        decides += [str(source.documents).encode(), str(source.seed).encode()]
    digest = hashlib.sha256(b"\0".join(decides)).hexdigest()[:12]
    return Path("runs") / "data" / f"{source.kind}-{digest}"


def prepare(recipe: Recipe) -> None:
    """Write what is missing, with a progress bar; 150,000 dialogues take some minutes."""
    for source in {source for phase in recipe.phases for source in phase.data if source.kind in ("text", "dialogues")}:
        if source.kind == "text" and not Path(source.file).is_file():
            raise RecipeError(f"{source.file} is not there", hint="paths are read from the working directory")
        target = directory(source, recipe)
        if target.exists():
            continue
        tokenizer = Tokenizer.open(recipe.tokenizer)
        if source.kind == "text":
            write_tokens(target, text_documents(Path(source.file), tokenizer), tokenizer)
        else:
            dialogues = islice(generate(source.seed), source.documents)
            write_tokens(target, dialogue_documents(dialogues, tokenizer), tokenizer, total=source.documents)
