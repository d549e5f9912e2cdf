"""YAML as these files need it: mappings, lists, numbers, strings in JSON's quotes; long strings as blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")  # nothing that YAML reads as something else
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def dump(*documents: dict[str, Any]) -> str:
    return "---\n".join("\n".join(_lines(document, 0)) + "\n" for document in documents)


def _lines(value: dict[str, Any] | list[Any], depth: int) -> Iterator[str]:
    pad = "  " * depth
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, dict | list) and each:
                yield f"{pad}{_scalar(key)}:"
                yield from _lines(cast("dict[str, Any] | list[Any]", each), depth + 1)
            elif isinstance(each, str) and "\n" in each:
                yield f"{pad}{_scalar(key)}: |-"
                yield from (f"{pad}  {line}".rstrip() for line in each.rstrip("\n").split("\n"))
            else:
                yield f"{pad}{_scalar(key)}: {_scalar(each)}"
        return
    for each in value:
        if isinstance(each, dict | list) and each:
            inner = list(_lines(cast("dict[str, Any] | list[Any]", each), depth + 1))
            yield f"{pad}- {inner[0].lstrip()}"
            yield from inner[1:]
        elif isinstance(each, str) and "\n" in each:
            yield f"{pad}- |-"
            yield from (f"{pad}  {line}".rstrip() for line in each.rstrip("\n").split("\n"))
        else:
            yield f"{pad}- {_scalar(each)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
