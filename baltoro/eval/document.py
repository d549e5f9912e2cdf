"""Looking into JSON that others wrote: what is not there is None, or nothing."""

from __future__ import annotations

from typing import Any, cast

Json = Any


def at(document: Json, *path: str | int) -> Json:
    """The value at `path`; None where there is none."""
    for step in path:
        if isinstance(document, dict):
            document = cast("dict[Json, Json]", document).get(step)
        elif isinstance(document, list) and isinstance(step, int):
            items = cast("list[Json]", document)
            document = items[step] if -len(items) <= step < len(items) else None
        else:
            return None
    return document


def listed(document: Json, *path: str | int) -> list[Json]:
    """The list at `path`; empty where there is none."""
    found = at(document, *path)
    return cast("list[Json]", found) if isinstance(found, list) else []


def text_at(document: Json, *path: str | int) -> str:
    """The text at `path`; empty where there is none."""
    found = at(document, *path)
    return found if isinstance(found, str) else ""
