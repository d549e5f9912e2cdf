"""An episode once more: what the model said then, the tools as they are now. What comes out differently?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from baltoro.agent.budget import Budget
from baltoro.agent.episode import Episode
from baltoro.agent.loop import AnyModel, Loop, Settings
from baltoro.agent.tool import AgentTool
from baltoro.answer import Answer
from baltoro.chat.messages import ChatRequest, ToolCall
from baltoro.errors import BaltoroError, EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A call whose result is another than it was."""

    step: int  # from 1
    call: ToolCall
    then: str
    now: str


class Recorded:
    """A model that says what an episode's said."""

    def __init__(self, episode: Episode) -> None:
        self.name = episode.model
        self._answers: Iterator[Answer] = iter([turn.answer for turn in episode.turns])

    def complete(self, request: ChatRequest) -> Answer:  # noqa: ARG002
        answer = next(self._answers, None)
        if answer is None:
            raise EngineError("the journal has no further answer")
        return answer


def replay(episode: Episode, tools: Sequence[AgentTool], root: Path) -> tuple[Episode, list[Difference]]:
    """Runs the calls again, in a workspace that is as it was when the episode began, or differences are to be expected.

    The episode's tools have to be there: `tools` has those of the workspace, and of the MCP servers that it had.
    root: of the workspace; where results name it, it counts as the episode's own.
    """
    wanted = {each["function"]["name"] for each in episode.facts["tools"]}
    if missing := sorted(wanted - {each.name for each in tools}):
        raise BaltoroError(
            f"the episode had the tools {', '.join(missing)}, which are not here",
            hint="give the same --mcp as then",
        )
    settings = Settings(**episode.facts["settings"])
    model: AnyModel = Recorded(episode)
    budget = Budget(steps=max(1, len(episode.turns)))
    again = Loop(model=model, tools=tools, settings=settings, budget=budget).run(episode.task)
    return again, list(_differences(episode, again, str(root)))


def _differences(then: Episode, now: Episode, root: str) -> Iterator[Difference]:
    place: str = then.facts["workspace"]
    for step, (before, after) in enumerate(zip(then.turns, now.turns, strict=False), 1):
        for old, new in zip(before.results, after.results, strict=False):
            told = new.result.for_model.replace(root, place)
            if (old.result.for_model, old.result.failed) != (told, new.result.failed):
                yield Difference(step=step, call=old.call, then=old.result.for_model, now=told)
