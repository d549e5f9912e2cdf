"""What a scripted model says: text and calls, spelled as K2 does."""

from __future__ import annotations

import json
from collections.abc import Mapping


def said(text: str, *calls: tuple[str, object], first: int = 0) -> str:
    """first: the index of the first call, which counts over the conversation"""
    if not calls:
        return text
    told = "".join(
        f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>"
        f"{json.dumps(arguments) if isinstance(arguments, Mapping) else arguments}<|tool_call_end|>"
        for index, (name, arguments) in enumerate(calls, first)
    )
    return f"{text}<|tool_calls_section_begin|>{told}<|tool_calls_section_end|>"
