"""What is known of one request when it has been answered: for its line in the log, and for its span."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from starlette.types import Scope

from baltoro import choices
from baltoro.answer import Progress, Reader
from baltoro.chat.messages import Usage

GONE = 499  # nginx's word for a client that left before its answer began


class Tally:
    """Filled while the request is under way; numbers and names, never a text."""

    def __init__(self) -> None:
        self.model: str | None = None  # as it was asked for; one of those that are served
        self.trace_id: str | None = None
        self._prompts: list[Sequence[Progress]] = []  # the answers to each

    def admit(self, answers: Sequence[Progress]) -> None:
        self._prompts.append(answers)

    @property
    def usage(self) -> Usage | None:
        """Until now, each prompt once; None: nothing reached the model."""
        if not self._prompts:
            return None
        each = [choices.usage([answer.usage for answer in answers], len(answers)) for answers in self._prompts]
        return choices.usage(each, 1)

    @property
    def readers(self) -> Iterator[Reader[Any]]:
        """The answers one after the other; of a model without tokens there are none."""
        for answers in self._prompts:
            yield from (cast("Reader[Any]", each) for each in answers if isinstance(each, Reader))

    @property
    def finishes(self) -> list[str]:
        """How each answer ended; "error" where it failed, "left" where nobody waited for its end."""
        return [each.finish or ("error" if each.over else "left") for each in self.readers]


def ran(status: int) -> bool:
    """Whether a request with this answer used the model: what was refused, or failed before it began, did not."""
    return status < 400 or status == GONE


def of(scope: Scope) -> Tally:
    """The one of this request, made for whoever asks first."""
    return scope.setdefault("state", {}).setdefault("tally", Tally())
