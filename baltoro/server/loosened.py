"""`x-baltoro-loosened`: which keywords of a request's schemas are not enforced, where --loose-schemas allows that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

from baltoro.chat.messages import ChatRequest

if TYPE_CHECKING:
    from baltoro.llm import ChatModel

HEADER = "x-baltoro-loosened"
LONGEST = 4000  # characters; clients and proxies bound all headers together at 8 KiB and more


async def headers(llm: ChatModel, request: ChatRequest) -> dict[str, str]:
    """Compiles the schemas on a thread, so that the answers of others go on meanwhile; {} where all are enforced.

    Entries are `TOOL PATH`, a JSON pointer into its schema, percent-encoded where a header needs it.
    """
    if not request.tools and request.answer_format is None:
        return {}
    loose = await asyncio.to_thread(llm.loosened, request)
    told: list[str] = []
    left = LONGEST
    for place, each in enumerate(loose):
        entry = f"{quote(each.owner)} {quote(each.path, safe='/#$')}"
        left -= len(entry) + 2
        if left < 0:
            told.append(f"{len(loose) - place} more")
            break
        told.append(entry)
    return {HEADER: ", ".join(told)} if told else {}
