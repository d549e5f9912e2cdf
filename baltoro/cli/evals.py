"""`baltoro eval`: the card's benchmarks by their protocols, delegated or run here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baltoro.cli.app import app
from baltoro.cli.evaluate import (
    BudgetMoney,
    BudgetTokens,
    Concurrency,
    ExtraBody,
    PriceInput,
    PriceOutput,
    Retries,
    Timeout,
    budget_of,
    extra_of,
)
from baltoro.cli.options import AnyFormat, OptionalModel, Threads
from baltoro.errors import BaltoroError

if TYPE_CHECKING:
    import httpx2

    from baltoro.eval.evaluate import Protocol, Result
    from baltoro.eval.task import Task

evals = typer.Typer(
    name="eval", help="How good is a model? K2's card's benchmarks, each by its own protocol.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
app.add_typer(evals)


@evals.command("list")
def list_all(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """The 32 benchmarks of Kimi K2's card: protocol, runner, what it needs; and the tasks that run here."""
    from dataclasses import asdict

    from baltoro.eval import card
    from baltoro.eval.offline import TASKS

    if as_json:
        rows = [{"name": each.slug, **asdict(each)} for each in card.benchmarks()]
        typer.echo(json.dumps({"benchmarks": rows, "tasks": list(TASKS)}, indent=2, ensure_ascii=False))
        return
    for each in card.benchmarks():
        here = f"here: --task {each.task}; " if each.task else ""
        needs = f" (needs {', '.join(each.needs)})" if each.needs else ""
        typer.echo(f"{each.slug:44} avg@{each.samples:<3}{each.max_tokens:>6} tokens, T={each.temperature}  "
                   f"{here}{each.runner}{needs}")  # fmt: skip
    typer.echo(f"run here: {', '.join(TASKS)}")


@evals.command("delegate")
def delegate(
    name: Annotated[str, typer.Argument(metavar="BENCHMARK", help="As `baltoro eval list` has it.")],
    url: Annotated[str, typer.Option(help="The endpoint, as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="What the endpoint calls it.")] = "kimi-k2-instruct",
    go: Annotated[bool, typer.Option("--go", help="Run it now, where its runner is installed.")] = False,
) -> None:
    """Print the command that runs BENCHMARK by the card's protocol with the runner that keeps it best, or run it.

    What it downloads, and whether it wants docker or another model as judge, is said first.
    """
    from baltoro.eval import card

    found = card.find(name)
    say = [f"{found.benchmark}, {found.metric}: {found.samples} answers a question, {found.max_tokens} tokens, "
           f"temperature {found.temperature}", *([f"needs {', '.join(found.needs)}"] if found.needs else []),
           *([f"judge: {found.judge}"] if found.judge else []), *([found.note] if found.note else [])]  # fmt: skip
    typer.echo("\n".join(say), err=True)
    line = card.command(found, url, model)
    lacking = card.missing(found)
    if not go:
        typer.echo(line)
        if lacking:
            typer.echo(f"first: {lacking}", err=True)
        return
    if lacking:
        raise BaltoroError(f"{found.benchmark} cannot run here yet", hint=lacking)
    raise typer.Exit(subprocess.run(line, shell=True, check=False).returncode)


@evals.command("run")
def run(
    model: OptionalModel = "nano",
    url: Annotated[str | None, typer.Option(help="Instead of MODEL: an endpoint, as http://127.0.0.1:8000.")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --url: what it calls its model. [default: the first]")
    ] = None,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Where the benchmarks' files lie: docs/eval.md.")] = Path(
        "data"
    ),
    task: Annotated[list[str] | None, typer.Option(help="Repeatable. [default: all that can run here]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each kind. [default: all]")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to each. [default: the card's, or 1]")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer. [default: 8192, the card's]")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="[default: the card's, or 0]")] = None,
    user_url: Annotated[
        str | None, typer.Option(help="Who plays the users of tau2. [default: the model that is asked]")
    ] = None,
    user_name: Annotated[str | None, typer.Option(metavar="NAME", help="What it calls its model.")] = None,
    unsafe_code: Annotated[
        bool, typer.Option("--unsafe-code", help="Run what the model programs without bubblewrap, if there is none.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="[default: ./eval-MODEL]")] = None,
    format: AnyFormat = None,
    threads: Threads = None,
    extra_body: ExtraBody = None,
    concurrency: Concurrency = 8,
    retries: Retries = 5,
    timeout: Timeout = 600,
    budget_tokens: BudgetTokens = None,
    budget_money: BudgetMoney = None,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    as_json: Annotated[bool, typer.Option("--json", help="The results as one JSON object.")] = False,
) -> None:
    """Ask MODEL, or what is behind --url, the tasks whose files lie in --data; scores stand beside the published ones.

    Killed at any moment, the same command goes on to the same result and asks nothing twice. What BALTORO_API_KEY holds
    goes along to an endpoint, BALTORO_USER_KEY to --user-url.
    """
    from baltoro.eval import compare, evaluate
    from baltoro.eval.code import Runner
    from baltoro.eval.display import Display
    from baltoro.eval.endpoint import Endpoint, connected
    from baltoro.eval.ledger import Ledger
    from baltoro.eval.offline import chosen

    if url is not None and (model != "nano" or format is not None or threads is not None):
        raise typer.BadParameter("the endpoint has its own model and options", param_hint="--url")
    if user_name is not None and user_url is None:
        raise typer.BadParameter("it goes with --user-url", param_hint="--user-name")
    if url is None and name is not None:
        raise typer.BadParameter("it goes with --url", param_hint="--name")
    tasks, left_out = chosen(task or [])
    if not data.is_dir():
        raise BaltoroError(f"{data} is no folder", hint="--data DIR: docs/eval.md says what lies where")
    if absent := [each for each in tasks if not (data / each.data).exists()]:
        if task:
            files = ", ".join(str(each.data) for each in absent)
            raise BaltoroError(f"{data} has no {files}", hint="docs/eval.md says where it is to be had")
        left_out += [f"{each.name}: its files are not in {data}" for each in absent]
        tasks = [each for each in tasks if each not in absent]
    runner = Runner.open(unsafe=unsafe_code) if any(each.runs_code for each in tasks) else Runner(walled=False)
    wanted = [(each, _protocol(each, samples, max_tokens, temperature, limit)) for each in tasks]
    folder = out or Path("eval-" + re.sub(r"[^\w.-]+", "_", (url or model).split("://")[-1]).strip("_"))
    budget = budget_of(budget_tokens, budget_money, price_input, price_output)

    async def go() -> tuple[str, list[Result], list[str]]:
        key = os.environ.get("BALTORO_USER_KEY")
        async with AsyncExitStack() as stack:
            client, called = await stack.enter_async_context(_target(url, name, model, format, threads, timeout))
            played = (
                await stack.enter_async_context(connected(user_url, key=key, model=user_name, timeout_s=timeout))
                if user_url
                else None
            )
            owner = {"target": url or model, "model": called, "format": format and format.value,
                     "user": played and played[1]}  # fmt: skip
            with Ledger(folder / "ledger.jsonl", owner) as ledger, Display(budget) as display:
                endpoint = Endpoint(client, called, ledger=ledger, budget=budget, extra=extra_of(extra_body),
                                    concurrency=concurrency, retries=retries)  # fmt: skip
                user = played and Endpoint(*played, ledger=ledger, budget=budget, concurrency=concurrency,
                                           retries=retries, earlier=False)  # fmt: skip
                length_field = "max_tokens" if url else "max_completion_tokens"
                work = evaluate.Work(user=user, endpoint=endpoint, out=folder, data=data, runner=runner,
                                     display=display, length_field=length_field)  # fmt: skip
                return called, *await evaluate.run(work, wanted)

    called, results, open_ends = asyncio.run(go())
    open_ends = [*left_out, *open_ends]
    found = compare.document(called, results, open_ends)
    evaluate.write(folder / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    evaluate.write(folder / "results.html", compare.html(called, results, open_ends))
    typer.echo(f"report: {folder / 'results.html'}", err=True)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(compare.lines(called, results, open_ends)))


def _protocol(
    task: Task, samples: int | None, max_tokens: int | None, temperature: float | None, limit: int | None
) -> Protocol:
    """The card's where it has the task; options take its place."""
    from baltoro.eval import card
    from baltoro.eval.evaluate import Protocol

    theirs = next((each for each in card.benchmarks() if each.task == task.name), None)
    base = Protocol(
        samples=theirs.samples if theirs else 1, max_tokens=theirs.max_tokens if theirs else 8192,
        temperature=theirs.temperature if theirs else 0.0, limit=limit,
    )  # fmt: skip
    given: dict[str, Any] = {"samples": samples, "max_tokens": max_tokens, "temperature": temperature}
    return replace(base, **{field: value for field, value in given.items() if value is not None})


@asynccontextmanager
async def _target(
    url: str | None, name: str | None, model: str, format: AnyFormat, threads: int | None, timeout_s: float
) -> AsyncGenerator[tuple[httpx2.AsyncClient, str]]:
    from baltoro.eval.endpoint import connected, loaded

    if url is not None:
        async with connected(url, key=os.environ.get("BALTORO_API_KEY"), model=name, timeout_s=timeout_s) as target:
            yield target
        return
    from baltoro.llm import LLM

    opened = LLM.open(model, threads=threads, format=format.value if format else None, loose_schemas=True)
    with closing(opened) as llm:
        async with loaded(llm) as target:
            yield target
