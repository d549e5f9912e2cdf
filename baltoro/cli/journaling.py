"""What the options of `serve` say about a journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from baltoro.cli import hooks

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
    redaction = None if redact is None else hooks.load("--journal-redact", redact)
    journal = Journal(folder, retention=kept, redact=redaction)
    return Writing(journal, content)
