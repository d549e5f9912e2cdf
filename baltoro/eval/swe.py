"""python -m baltoro.eval.swe (--url URL | --model DIR) [--tasks NAME ...] [--attempts k] [--out FILE]

Small Python packages with a failing test and an issue: can a model that acts repair them? A task is solved when its
tests pass in the end; they can be read and not changed. With --out every result is a line of FILE, and tasks that are
there already are not asked again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baltoro.agent import attempts as attempting
from baltoro.agent.act import act
from baltoro.agent.budget import Budget
from baltoro.agent.choose import by_tests
from baltoro.agent.endpoint import open_endpoint
from baltoro.agent.loop import AnyModel, Settings
from baltoro.agent.sandbox import Sandbox, opened, refuse
from baltoro.agent.workspace import Workspace
from baltoro.errors import BaltoroError
from baltoro.eval.score import wilson

FOLDER = Path(__file__).with_name("tasks") / "swe"
CHECK = "python -P -m unittest discover -s tests -t ."  # -P: a unittest.py of the workspace is not taken for Python's


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One file of tasks/swe/."""

    name: str
    issue: str
    files: dict[str, str]  # path -> text
    tests: dict[str, str]
    reference: tuple[Edit, ...]  # what makes the tests pass; no model sees it

    @property
    def prompt(self) -> str:
        return (
            f"{self.issue.strip()}\n\nRepair this in the package here. Its tests are in tests/, which you cannot"
            f" change; run them with `{CHECK}`."
        )

    def lay_out(self, folder: Path) -> Workspace:
        """An empty folder becomes the package with its tests."""
        _write(folder, self.files)
        return self.lay_tests(folder)

    def lay_tests(self, folder: Path) -> Workspace:
        """The tests as they are written, whatever is there."""
        shutil.rmtree(folder / "tests", ignore_errors=True)
        _write(folder, self.tests | {"tests/__init__.py": ""})
        return Workspace(folder, protected=("tests",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of a task."""

    task: str
    solved: bool
    end: str  # of the episode, the chosen one's of several
    attempts: int
    steps: int  # of all attempts
    tokens: int
    seconds: float
    reason: str = ""  # why it is not solved


def tasks(names: Sequence[str] = ()) -> list[Task]:
    """Those named, or all, in the order of their names."""
    known = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
    if unknown := [name for name in names if name not in known]:
        raise BaltoroError(f"there is no task {unknown[0]}", hint=f"there are {', '.join(known)}")
    return [_read(known[name]) for name in names or known]


def run(
    model: AnyModel,
    chosen: Sequence[Task],
    *,
    attempts: int = 1,
    settings: Settings | None = None,
    budget: Budget | None = None,
    sandbox: Callable[[Workspace], Sandbox] = lambda each: opened(each, refuse),
    tell: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """A record of each task; of several attempts the one whose tests pass counts."""
    records: list[Record] = []
    for task in chosen:
        record = _run(model, task, attempts, settings or Settings(), budget or Budget(steps=30), sandbox)
        tell(record)
        records.append(record)
    return records


def _run(
    model: AnyModel, task: Task, attempts: int, settings: Settings, budget: Budget,
    sandbox: Callable[[Workspace], Sandbox],
) -> Record:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="baltoro-swe-") as folder:
        (Path(folder) / "work").mkdir()
        (Path(folder) / "copies").mkdir()
        workspace = task.lay_out(Path(folder) / "work")
        if attempts > 1:
            plan = attempting.Plan(
                count=attempts, judge=by_tests(CHECK), sandbox=sandbox, settings=settings, budget=budget
            )
            found, best = attempting.attempt(model, task.prompt, workspace, Path(folder) / "copies", plan)
            episodes = [each.episode for each in found]
            episode = (best or found[0]).episode
        else:
            episode = act(model, task.prompt, workspace, sandbox=sandbox(workspace), settings=settings, budget=budget)
            episodes = [episode]
        # In a workspace of its own, with the tests as they are written: whatever was done to those there has no say.
        judged = Path(folder) / "judged"
        shutil.copytree(workspace.root, judged, symlinks=True)
        ran = sandbox(task.lay_tests(judged)).run(["sh", "-c", CHECK], seconds=60, cancelled=lambda: False)
        return Record(
            task=task.name,
            solved=ran.rc == 0,
            end=str(episode.end),
            attempts=attempts,
            steps=sum(len(each.turns) for each in episodes),
            tokens=sum(each.tokens for each in episodes),
            seconds=round(sum(each.seconds for each in episodes), 3),
            reason="" if ran.rc == 0 else episode.error or ran.ended or (ran.output.strip().splitlines() or [""])[-1],
        )


def _write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def _read(path: Path) -> Task:
    found = tomllib.loads(path.read_text())
    return Task(
        name=path.stem,
        issue=found["issue"],
        files=found["files"],
        tests=found["tests"],
        reference=tuple(Edit(**each) for each in found["reference"]),
    )


def table(records: Sequence[Record]) -> str:
    lines = [f"{each.task:18} {'solved' if each.solved else 'failed':7} {each.end:12} {each.steps:4} steps "
             f"{each.tokens:8,} tokens {each.seconds:8.1f} s  {each.reason}" for each in records]  # fmt: skip
    return "\n".join([*lines, f"solved {wilson(sum(each.solved for each in records), len(records))}"])


def _known(out: Path | None) -> list[Record]:
    if out is None or not out.exists():
        return []
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in out.read_text().splitlines(keepends=True) if line.endswith("\n")
    ]
    return [Record(**each) for each in lines]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m baltoro.eval.swe", description="Small repairs by an agent.")
    parser.add_argument("--url", help="an OpenAI-compatible server; BALTORO_API_KEY goes along")
    parser.add_argument("--model", help="a directory or preset; with --url what the server calls it")
    parser.add_argument("--tasks", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--attempts", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=Path, help="a line of JSON for each task; those there are not run again")
    args = parser.parse_args()
    known = _known(args.out)
    left = [each for each in tasks(args.tasks) if each.name not in {record.task for record in known}]

    def tell(record: Record) -> None:
        print(f"{record.task}: {'solved' if record.solved else record.reason}", file=sys.stderr)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")

    with ExitStack() as stack:
        model: AnyModel
        if args.url:
            key = os.environ.get("BALTORO_API_KEY")
            model = stack.enter_context(open_endpoint(args.url, model=args.model, key=key))
        else:
            from baltoro.llm import LLM

            model = stack.enter_context(closing(LLM.open(args.model or "nano")))
        found = run(
            model, left, attempts=args.attempts, settings=Settings(seed=args.seed), budget=Budget(steps=args.steps),
            tell=tell,
        )  # fmt: skip
    print(table([*known, *found]))


if __name__ == "__main__":
    try:
        main()
    except BaltoroError as error:
        sys.exit(f"error: {error}")
