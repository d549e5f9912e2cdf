"""A model that acts, in a folder."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baltoro.cli.app import app
from baltoro.cli.options import AnyFormat, ExpertMemory, Threads, WeightFormat
from baltoro.errors import BaltoroError

if TYPE_CHECKING:
    from baltoro.agent.attempts import Attempt
    from baltoro.agent.episode import Episode
    from baltoro.agent.loop import AnyModel
    from baltoro.agent.tool import AgentTool
    from baltoro.agent.workspace import Workspace


class Choose(StrEnum):
    tests = "tests"
    verifier = "verifier"
    model = "model"


@app.command()
def agent(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="What is to be done, in words; `-`: stdin.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A directory or a preset to load here; with --url what the server calls its model.",
            show_default="nano",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask this OpenAI-compatible server; what BALTORO_API_KEY holds goes along."),
    ] = None,
    workspace: Annotated[Path, typer.Option(metavar="DIR", help="The folder that it sees and changes.")] = Path(),
    attempts: Annotated[int, typer.Option(min=1, help="Episodes side by side, each in a copy of DIR.")] = 1,
    choose: Annotated[
        Choose | None,
        typer.Option(
            help="The best of them by --check's exit code, by the number it prints last, or by the model's own score."
        ),
    ] = None,
    check: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Of --choose tests and verifier; runs in the sandbox.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep all attempts' copies there, a folder that is new or empty.")
    ] = None,
    protect: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="May be read and not changed, as .git; repeatable.")
    ] = None,
    readable: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Commands may read this folder too; repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Answers of the model, at most.")] = 50,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Of prompts, less what a cache had, and of answers.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Of time, commands included.")] = None,
    mcp: Annotated[
        list[str] | None,
        typer.Option(metavar="COMMAND|URL", help="Tools of this MCP server, which runs in no sandbox; repeatable."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: always the likeliest token.")] = 0.6,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Where there is no sandbox, run commands without asking.")] = False,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the episode there. [default: ~/.local/share/baltoro/episodes/...]"),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Run a journal's calls again, in a copy of --workspace, and show what differs."
        ),
    ] = None,
    format: AnyFormat = None,
    expert_memory: ExpertMemory = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in place of the last answer.")] = False,
) -> None:
    """Give MODEL tools and a TASK: it reads, searches and edits files in DIR and runs commands until the task is done.

    Commands run in bubblewrap, without network, and see DIR and the system's libraries alone; where there is no
    bubblewrap each one needs a yes. Ctrl-C ends it, and what was done until then is in the journal.
    """
    from baltoro.agent.workspace import Workspace

    place = Workspace(workspace, tuple(protect or ()))
    if replay is not None:
        if task is not None or attempts > 1 or url is not None or model is not None:
            raise typer.BadParameter("goes without TASK, --model, --url and --attempts", param_hint="--replay")
        _replay(replay, place, mcp or [], yes=yes, as_json=as_json)
        return
    if task == "-":
        task = sys.stdin.read()
    if task is None or not task.strip():
        raise typer.BadParameter("what is to be done?", param_hint="TASK")
    _check_choice(attempts, choose, check, keep)
    for name, path in {"--keep": keep, "--journal": journal}.items():
        if path is not None and path.resolve().is_relative_to(place.root):
            raise typer.BadParameter("would be in the workspace, where the agent may change it", param_hint=name)
    if url is not None and (format, expert_memory, threads) != (None, None, None):
        raise typer.BadParameter(
            "is for a model that is loaded here", param_hint="--format, --expert-memory, --threads"
        )

    from baltoro.agent import attempts as attempting
    from baltoro.agent import choose as choosing
    from baltoro.agent import sandbox
    from baltoro.agent.act import act
    from baltoro.agent.budget import Budget
    from baltoro.agent.loop import Settings
    from baltoro.cli.acting import Display

    ask = _consent(yes=yes, several=attempts > 1)
    settings = Settings(temperature=temperature, seed=seed)
    budget = Budget(steps=steps, tokens=tokens, seconds=seconds)
    journals = _journals(journal)
    show = Display(quiet=as_json)
    if sandbox.Bubblewrap.missing() is not None:
        show.say(
            f"no sandbox: {sandbox.Bubblewrap.missing()}; " + ("commands run" if yes else "commands need a yes each")
        )
    with ExitStack() as stack:
        asked = stack.enter_context(_model(model, url, format, expert_memory, threads, show.say))
        tools = _mcp_tools(stack, mcp or [])
        boxed = partial(sandbox.opened, ask=ask, readable=readable or ())
        if attempts == 1:
            episode = act(
                asked, task, place, sandbox=boxed(place), tools=tools, settings=settings, budget=budget,
                journal=journals(None), tell=show.teller(None),
            )  # fmt: skip
            _told(episode, journals(None), as_json)
            return
        judge = {
            Choose.tests: lambda: choosing.by_tests(check or ""),
            Choose.verifier: lambda: choosing.by_verifier(check or ""),
            Choose.model: lambda: choosing.by_model(asked),
        }[choose or Choose.model]()
        plan = attempting.Plan(
            count=attempts, judge=judge, sandbox=boxed, tools=tools, settings=settings, budget=budget,
            journal=journals, tell=show.teller,
        )  # fmt: skip
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="baltoro-attempts-")))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BaltoroError(f"{folder} is not empty", hint="--keep names a folder that is new or empty")
        found, best = attempting.attempt(asked, task, place, folder, plan)
        _told_attempts(found, best, as_json)


def _check_choice(attempts: int, choose: Choose | None, check: str | None, keep: Path | None) -> None:
    if attempts == 1:
        given = {"--choose": choose, "--check": check, "--keep": keep}
        if named := [name for name, value in given.items() if value is not None]:
            raise typer.BadParameter("is for several --attempts", param_hint=named[0])
    elif choose is None:
        raise typer.BadParameter("how is the best found? tests, verifier or model", param_hint="--choose")
    elif (choose is Choose.model) == (check is not None):
        raise typer.BadParameter("goes with --choose tests or verifier, and these with it", param_hint="--check")


def _consent(*, yes: bool, several: bool) -> Callable[[str], bool]:
    """Who is asked about a command that no sandbox keeps in."""
    if yes:
        return lambda _: True
    if several or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return lambda _: False

    def ask(command: str) -> bool:
        from baltoro.terminal import printable

        return typer.confirm(f"\n{printable(command)}\nrun this, with all your rights?", err=True)

    return ask


@contextmanager
def _model(
    model: str | None, url: str | None, format: WeightFormat | None, expert_memory: int | None, threads: int | None,
    say: Callable[[str], None],
) -> Generator[AnyModel]:  # fmt: skip
    if url is not None:
        from baltoro.agent.endpoint import open_endpoint

        with open_endpoint(url, model=model, key=os.environ.get("BALTORO_API_KEY")) as endpoint:
            yield endpoint
        return
    from contextlib import closing

    from baltoro.llm import LLM

    say(f"loading {model or 'nano'} ...")
    # Loose: schemas of MCP servers have keywords that no grammar enforces; arguments are checked before a tool runs.
    with closing(
        LLM.open(
            model or "nano", threads=threads, format=format.value if format else None, expert_memory=expert_memory,
            loose_schemas=True,
        )
    ) as llm:  # fmt: skip
        yield llm


def _mcp_tools(stack: ExitStack, servers: list[str]) -> list[AgentTool]:
    from baltoro.agent.mcp import connect

    return [tool for where in servers for tool in stack.enter_context(connect(where)).tools()]


def _journals(given: Path | None) -> Callable[[int | None], Path]:
    """The journal of attempt n, or of the only one."""
    from baltoro.agent.episode import new_id

    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    whole = given or home / "baltoro" / "episodes" / f"{new_id()}.jsonl"
    return lambda number: whole if number is None else whole.with_name(f"{whole.stem}-{number}{whole.suffix}")


def _told(episode: Episode, journal: Path, as_json: bool) -> None:
    from baltoro.cli.acting import facts
    from baltoro.terminal import printable

    if as_json:
        typer.echo(json.dumps(facts(episode) | {"journal": str(journal)}, indent=2))
    else:
        typer.echo(printable(episode.text))
        spent = f"{len(episode.turns)} steps, {episode.tokens:,} tokens, {episode.seconds:.1f} s"
        typer.echo(f"[{episode.end}: {spent}; {journal}]", err=True)
    if episode.end == "error":
        raise BaltoroError(episode.error)
    if episode.end != "done":
        raise typer.Exit(1)


def _told_attempts(found: list[Attempt], best: Attempt | None, as_json: bool) -> None:
    from baltoro.cli.acting import facts
    from baltoro.terminal import printable

    if as_json:
        rows = [
            facts(each.episode)
            | {"attempt": each.number, "score": each.verdict.score, "good": each.verdict.good,
               "reason": each.verdict.reason, "changed": [change.path for change in each.changes]}
            for each in found
        ]  # fmt: skip
        typer.echo(json.dumps({"chosen": best and best.number, "attempts": rows}, indent=2))
    else:
        for each in found:
            reason = printable(each.verdict.reason.splitlines()[0] if each.verdict.reason else "")
            what = f"{each.episode.end}, {len(each.changes)} files, score {each.verdict.score:g}"
            typer.echo(f"attempt {each.number}: {what}: {reason}", err=True)
        if best is not None:
            typer.echo(f"attempt {best.number} is in the workspace now:", err=True)
            typer.echo(printable(best.diff), nl=False)
    if best is None:
        raise BaltoroError(
            "no attempt was good enough, and the workspace is as it was", hint="--keep keeps what they did"
        )


def _replay(path: Path, place: Workspace, servers: list[str], *, yes: bool, as_json: bool) -> None:
    from baltoro.agent import copies, episode, sandbox
    from baltoro.agent.commands import Commands
    from baltoro.agent.files import Files
    from baltoro.agent.replay import replay
    from baltoro.agent.workspace import Workspace
    from baltoro.terminal import printable

    then = episode.read(path)
    with ExitStack() as stack:
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="baltoro-replay-"))).resolve() / "workspace"
        copies.copy(place.root, copy)
        work = Workspace(copy, tuple(then.facts["protected"]))
        box = sandbox.opened(work, _consent(yes=yes, several=False))
        tools = [*Files(work).tools(), *Commands(box).tools(), *_mcp_tools(stack, servers)]
        now, found = replay(then, tools, copy)
    calls = sum(len(turn.results) for turn in now.turns)
    if as_json:
        rows = [
            {"step": each.step, "name": each.call.name, "arguments": each.call.arguments,
             "then": each.then, "now": each.now}
            for each in found
        ]  # fmt: skip
        typer.echo(json.dumps({"id": then.id, "calls": calls, "differences": rows}, indent=2))
    else:
        for each in found:
            typer.echo(
                printable(f"step {each.step}: {each.call.name} {each.call.arguments}\n- {each.then}\n+ {each.now}")
            )
        typer.echo(f"{calls} calls, {len(found)} with another result", err=True)
    if found:
        raise typer.Exit(1)
