"""What those above need of an engine, be it in this process or behind a URL."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from baltoro.engine.request import Request
from baltoro.weights.experts import ExpertStore

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class AnyEngine(Protocol):
    """Token ids in, token ids out. Every method may be called from any thread."""

    @property
    def max_context(self) -> int: ...  # tokens of prompt and answer

    @property
    def vocab_size(self) -> int: ...

    @property
    def fault(self) -> str | None: ...  # why it does not answer; None while it does

    @property
    def store(self) -> ExpertStore | None: ...  # of experts that are not all in memory here

    @property
    def dead(self) -> threading.Event: ...  # set once it will never answer again

    @property
    def stuck(self) -> bool: ...  # dead in a step that does not end

    def observed(self) -> dict[str, Any]: ...  # steps and requests since it started, for JSON

    def submit(self, request: Request) -> None: ...  # its sink hears of every token, and lastly of its end, once

    def cancel(self, request: Request) -> None: ...  # one that has ended is left alone

    def stop(self, *, drain: bool = True, timeout_s: float | None = None) -> None: ...

    def statistics(self) -> DataclassInstance: ...
