"""What the options of `serve` say about a journal."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from baltoro.errors import BaltoroError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from baltoro.llm import LLM
    from baltoro.server.journal import Journal

DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Writing:
    """An open journal, and what goes into it."""

    journal: Journal
    content: bool

    def around(self, model: str, llm: LLM) -> Callable[[ASGIApp], ASGIApp]:
        """What puts the recording around an app that serves `llm`, opened from `model`."""
        from baltoro.config import resolve
        from baltoro.server.recording import Origin, Recording
        from baltoro.start import language
        from baltoro.weights.identity import identity

        directory = resolve(model)
        local = directory.is_dir() and next(directory.glob("*.safetensors"), None) is not None
        origin = Origin(
            model=llm.name,
            weights=identity(directory).hex() if local else None,
            template=language(llm.tokenizer).hex(),
        )
        return lambda app: Recording(app, self.journal.append, origin, content=self.content)

    def close(self) -> None:
        self.journal.close()


def opened(
    folder: Path | None, *, content: bool, redact: str | None, most_bytes: int | None, most_days: float | None
) -> Writing | None:
    """None: there is to be none."""
    given = {"--journal-content": content or None, "--journal-redact": redact,
             "--journal-size": most_bytes, "--journal-days": most_days}  # fmt: skip
    if folder is None:
        if named := [name for name, value in given.items() if value is not None]:
            raise typer.BadParameter("of which journal? name a DIR with --journal", param_hint=named[0])
        return None
    from baltoro.server.journal import Journal, Retention

    kept = Retention(most_age_s=None if most_days is None else most_days * DAY_S)
    if most_bytes is not None:
        kept = Retention(most_bytes=most_bytes, most_age_s=kept.most_age_s)
    journal = Journal(folder, retention=kept, redact=None if redact is None else _function(redact))
    return Writing(journal, content)


def _function(text: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    module, _, name = text.partition(":")
    sys.path.insert(0, "")  # as `python -m` would find it
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BaltoroError(f"--journal-redact {text}: {error}", hint="write MODULE:FUNCTION") from error
    finally:
        sys.path.remove("")
    if not callable(function):
        raise BaltoroError(f"--journal-redact {text} is no function", hint="write MODULE:FUNCTION")
    return cast("Callable[[dict[str, Any]], dict[str, Any] | None]", function)
