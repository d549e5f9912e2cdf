"""What an agent does, as a person reads it while it happens, and as a script does afterwards."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import typer

from baltoro.agent.episode import CallResult, Turn
from baltoro.agent.loop import Called, Event, Tell
from baltoro.terminal import printable

if TYPE_CHECKING:
    from baltoro.agent.episode import Episode

WIDTH = 160  # characters of a call or of its result


class Display:
    """Lines on stderr; of several attempts each line begins with its number."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._writing = threading.Lock()

    def say(self, text: str) -> None:
        if not self._quiet:
            with self._writing:
                typer.echo(text, err=True)

    def teller(self, number: int | None) -> Tell:
        begin = "" if number is None else f"[{number}] "

        def tell(event: Event) -> None:
            for line in _lines(event):
                self.say(begin + printable(line))

        return tell


def _lines(event: Event) -> list[str]:
    match event:
        case Turn():  # the last one's text is the answer, which goes to stdout
            text = (event.answer.content or "").strip()
            return text.splitlines() if text and event.answer.tool_calls else []
        case Called():
            arguments = event.call.arguments
            told = arguments if isinstance(arguments, str) else json.dumps(dict(arguments))
            return [_short(f"· {event.call.name} {told}")]
        case CallResult():
            result = event.result
            return [_short(f"  {'✗' if result.failed else '→'} {result.for_user or result.for_model.strip()}")]


def _short(text: str) -> str:
    first, *rest = text.split("\n")
    return first[:WIDTH] + (" ..." if rest or len(first) > WIDTH else "")


def facts(episode: Episode) -> dict[str, Any]:
    return {
        "id": episode.id, "end": episode.end, "error": episode.error, "text": episode.text, "model": episode.model,
        "steps": len(episode.turns), "tokens": episode.tokens, "seconds": round(episode.seconds, 3),
    }  # fmt: skip
