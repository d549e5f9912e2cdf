"""What a server says of itself: lines for people, or one JSON object a line for programs. All of it goes to stderr.

    time, level, message    when (UTC), how bad, what
    logger                  which part of the program; `baltoro.access` tells of requests, whose facts are fields beside
    error                   what was raised, and where

No text of a prompt or an answer is in any line, whatever the level. So an error's own message is told only where
nothing on its way knew texts: engine, model and kernels know token ids alone.
"""

from __future__ import annotations

import json
import logging
import logging.config
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from uvicorn.logging import DefaultFormatter

_log = logging.getLogger(__name__)
_KNOW_TEXTS = frozenset({"answer", "chat", "choices", "llm", "mailbox", "scripted", "server"})  # rooms


def configure(*, as_json: bool = False, level: str = "info") -> None:
    """For the whole process, which is a server: logging has no other place for it.

    level: debug, info, warning or error, of our own lines. Libraries tell warnings and errors alone, as what they would
    say in detail is not ours to vouch for.
    """
    libraries = "ERROR" if level == "error" else "WARNING"
    lines = JsonLines if as_json else TextLines
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"lines": {"()": lines}},
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"}
            },
            "root": {"handlers": ["stderr"], "level": libraries},
            "loggers": {"baltoro": {"level": level.upper()}},
        }
    )
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda it: _uncaught(it.exc_type, it.exc_value, it.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    _log.critical("an error that nobody expected", exc_info=(kind, error or kind(), trace))


class TextLines(DefaultFormatter):
    """Time, level, message, in uvicorn's form."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelprefix)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(record.__dict__)
        shown.msg, shown.args = _message(record), None
        shown.exc_info = shown.exc_text = None
        error = _error(record)
        return super().format(shown) + (f"\n{error}" if error else "")


class JsonLines(logging.Formatter):
    """What a record has in `facts` stands beside the rest."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **getattr(record, "facts", {}),
        }
        if error := _error(record):
            line["error"] = error
        return json.dumps(line, ensure_ascii=False)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    return message.partition("\n")[0] if record.name == "asyncio" else message  # behind it is the repr of an error


def _error(record: logging.LogRecord) -> str:
    """The traceback, the innermost cause first as Python prints it; without messages where they may be texts."""
    if record.exc_info is None or record.exc_info[1] is None:
        return ""
    chain = list(_chain(record.exc_info[1]))
    frames = [traceback.walk_tb(each.__traceback__) for each in chain]
    rooms = {str(frame.f_globals.get("__name__", "")) for walked in frames for frame, _ in walked}
    discreet = any(name.startswith("baltoro.") and name.split(".")[1] in _KNOW_TEXTS for name in rooms)
    told: list[str] = []
    for each in chain:
        kind = f"{type(each).__module__}.{type(each).__qualname__}".removeprefix("builtins.")
        where = "".join(traceback.format_tb(each.__traceback__))
        told.append(where + (kind if discreet else f"{kind}: {each}"))
    return "\n\nwhich led to\n\n".join(reversed(told))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """It, its cause, the cause's cause."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
