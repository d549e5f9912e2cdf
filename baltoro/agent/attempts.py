"""k episodes side by side, each in a copy of the workspace; the best one's change comes into the workspace.

So Kimi K2 is scored on SWE-bench Verified with several attempts: more sequences are drawn, and one is chosen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from baltoro.agent import copies
from baltoro.agent.act import act
from baltoro.agent.budget import Budget
from baltoro.agent.choose import Candidate, Judge, Verdict
from baltoro.agent.copies import Change
from baltoro.agent.episode import Episode
from baltoro.agent.loop import AnyModel, Settings, Tell, ignore
from baltoro.agent.sandbox import Sandbox
from baltoro.agent.tool import AgentTool
from baltoro.agent.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One of them, judged."""

    number: int  # from 1
    episode: Episode
    place: Path  # its copy of the workspace
    changes: list[Change]
    diff: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How attempts are made and chosen."""

    count: int
    judge: Judge
    sandbox: Callable[[Workspace], Sandbox]  # one for each copy
    tools: Sequence[AgentTool] = ()  # beside those of the workspace; called by several threads
    settings: Settings
    budget: Budget  # of each
    journal: Callable[[int], Path | None] = lambda _: None  # of attempt n
    tell: Callable[[int], Tell] = lambda _: ignore


def attempt(
    model: AnyModel, task: str, workspace: Workspace, place: Path, plan: Plan
) -> tuple[list[Attempt], Attempt | None]:
    """All attempts, and the one whose change is in the workspace now; None: none was good, and it is as it was.

    place: an empty folder for the copies, and for whoever wants to look at them afterwards.
    """
    base = copies.state(workspace.root)
    stop = threading.Event()
    with ThreadPoolExecutor(plan.count, "baltoro-attempt") as threads:
        running = [
            threads.submit(_one, model, task, workspace, place / str(number), plan, number, base, stop)
            for number in range(1, plan.count + 1)
        ]
        try:
            wait(running)
        except KeyboardInterrupt:
            stop.set()  # each ends before its next call, and its episode is saved
            wait(running)
            raise
    found = [each.result() for each in running]
    best = _best(found)
    if best is not None:
        copies.apply(best.changes, best.place, workspace, base)
    return found, best


def _one(
    model: AnyModel, task: str, workspace: Workspace, place: Path, plan: Plan, number: int, base: copies.State,
    stop: threading.Event,
) -> Attempt:  # fmt: skip
    copies.copy(workspace.root, place)
    mine = Workspace(place, workspace.protected)
    sandbox = plan.sandbox(mine)
    seed = None if plan.settings.seed is None else plan.settings.seed + 1000 * number  # else all would be the same
    episode = act(
        model, task, mine, sandbox=sandbox, tools=plan.tools, settings=replace(plan.settings, seed=seed),
        budget=plan.budget, journal=plan.journal(number), tell=plan.tell(number), cancelled=stop.is_set,
    )  # fmt: skip
    changes = copies.changes(base, copies.state(place))
    diff = copies.diff(workspace.root, place, changes)
    verdict = _judged(Candidate(episode=episode, diff=diff, sandbox=sandbox), mine, changes, plan.judge, stop)
    return Attempt(number=number, episode=episode, place=place, changes=changes, diff=diff, verdict=verdict)


def _judged(
    candidate: Candidate, mine: Workspace, changes: list[Change], judge: Judge, stop: threading.Event
) -> Verdict:
    if stop.is_set():
        return Verdict(score=0.0, good=False, reason="it was stopped")
    touched = [each.path for each in changes if mine.is_protected(mine.root / each.path)]
    if touched:
        return Verdict(score=0.0, good=False, reason=f"it changed {touched[0]}, which is protected")
    return judge(candidate, stop.is_set)


def _best(found: list[Attempt]) -> Attempt | None:
    """The highest score; of several the shortest change, then the first."""
    good = [each for each in found if each.verdict.good]
    return max(good, key=lambda each: (each.verdict.score, -each.diff.count("\n"), -each.number), default=None)
